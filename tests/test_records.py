"""Every recorded number of the book can be traced.

Tables follow from records, records from a setting, and the same setting draws the same pictures.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from asddim_lib import Recipe, load_pipeline, metrics
from asddim_lib.cache import short_hash
from asddim_lib.evidence.profile import Profile
from asddim_lib.models.prompts import load_prompts
from experiments import grids as finder
from experiments import score as scoring
from experiments import setting as design
from experiments.draw import weights_hash
from experiments.intervals import effective_size, proportion_interval
from experiments.pictures import draw
from experiments.records import read_records
from tests.dmn import check_as_good

RESULTS = Path(__file__).parents[1] / "results"
EVERY = sorted(file.parent for file in RESULTS.rglob("provenance.json"))
SEARCHED = RESULTS / "recipes" / "thousand"  # whose setting is in the recipes
FOLDERS = [folder for folder in EVERY if folder.parent != SEARCHED]
KEYS = ["method", "steps", "guidance_scale", "solver", "guidance_plan"]


def opened(folder):
    """What a record says of itself, its setting, prompts and rows."""
    said = json.loads((folder / "provenance.json").read_text())
    setting = design.Setting(
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in said["setting"].items()
        }
    )
    early = "bundled-tune" if folder.name.startswith("tune") else "bundled"
    prompts = said.get("prompts_from", early)
    prompts = RESULTS / "guidance-plans" / prompts if prompts == "noises.csv" else prompts
    table = load_prompts(prompts, said["prompts"])
    return said, setting, table, read_records(folder)


@cache
def model(name):
    return load_pipeline(name)


@pytest.fixture(scope="module")
def pipe():
    return model("bundled")


def test_there_are_records():
    assert len(FOLDERS) > 10


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(RESULTS)))
def test_a_record_holds_what_its_setting_says_and_its_table_says_what_it_holds(folder):
    said, setting, table, records = opened(folder)
    assert said["weights_sha256"] == weights_hash(model(said.get("model", "bundled")))
    assert said["prompts_sha256"] == short_hash(list(table["prompt"]))
    cells = design.cells(setting)
    assert len(records) == len(cells) * len(table)
    summary = pd.read_csv(folder / "summary.csv")
    plans = summary.get("guidance_plan", design.CONSTANT)
    summary = summary.assign(guidance_plan=plans).set_index(KEYS)
    assert len(summary) == len(cells)
    for cell in cells:
        part = records[np.logical_and.reduce([records[key] == getattr(cell, key) for key in KEYS])]
        assert part["index"].tolist() == list(range(len(table)))
        row = summary.loc[tuple(getattr(cell, key) for key in KEYS)]
        assert row["n"] == len(part)
        seconds = part["seconds"].drop_duplicates()
        # Early summaries were written before intervals were clustered, and with a KID of subsets.
        clustered = "guidance-plans" in folder.parts
        early = part.drop(columns=["prompt", "kid_share"], errors="ignore")
        figures = scoring.figures(part if clustered else early) | {
            "seconds": seconds.median(),
            "seconds_ci": metrics.mean_interval(seconds)[1],
        }
        assert {"clip", "right", "right_ci", "right_low", "right_high"} <= set(figures)
        assert ("distance" in figures) == bool(setting.reference_steps)
        for name, value in figures.items():
            assert row[name] == pytest.approx(value, rel=1e-9), name
        for name in ("clip", "distance"):
            if name in figures:
                texts = part["prompt"] if clustered else None
                assert (row[name], row[f"{name}_ci"]) == pytest.approx(
                    metrics.mean_interval(part[name], texts), rel=1e-9
                )
        hits = int(part["right_all"].sum())
        assert row["right"] == hits / len(part)
        size = effective_size(part["right_all"].to_numpy(float), part["prompt"])
        total = size if clustered else len(part)
        assert (row["right_low"], row["right_high"]) == pytest.approx(
            proportion_interval(hits / len(part) * total, total), rel=1e-9
        )
        for name in ("right_ci", "clip_ci", "seconds_ci"):
            assert row[name] > 0, f"{name} claims certainty"


def test_how_many_reported_prompts_were_tuned_on_is_what_is_said():
    reported, tuned = (list(load_prompts(name)["prompt"]) for name in ("bundled", "bundled-tune"))
    assert [sum(prompt in tuned for prompt in reported[:count]) for count in (64, 1000)] == [6, 126]
    assert sum(prompt in reported for prompt in tuned) == 84


def test_the_text_of_each_picture_is_known():
    records = read_records(RESULTS / "pictures" / "thousand")
    texts = records.drop_duplicates("index").set_index("index")["prompt"]
    assert texts.tolist() == load_prompts("bundled")["prompt"].tolist()
    assert texts.nunique() == 779


@pytest.mark.parametrize("folder", sorted(SEARCHED.iterdir()), ids=lambda folder: folder.name)
def test_a_record_of_recipes_holds_what_its_recipes_draw(folder):
    said, records = json.loads((folder / "provenance.json").read_text()), read_records(folder)
    kind = folder.name.partition("-")[0]
    pipe = model({"unet": "bundled", "flow": "bundled-flow"}[kind])
    table = load_prompts("bundled", said["prompts"])
    assert said["weights_sha256"] == weights_hash(pipe)
    assert said["prompts_sha256"] == short_hash(list(table["prompt"]))
    cells = records.groupby(["steps", "method"])
    assert set(cells.size()) == {len(table)}
    (count, method), part = next(iter(cells))
    home = RESULTS / "recipes" / folder.name
    home = home if (home / "tune.json").exists() else home / str(count)
    recipe = Recipe.load(home / "recipes" / method.replace(" ", "-"))
    assert (recipe.name, recipe.rows) == (part["recipe"].iloc[0], part["nfe"].iloc[0])
    few, options = table[:2], {"max_sequence_length": 1} if kind == "flow" else {}
    noise = [torch.Generator().manual_seed(seed) for seed in range(2)]
    with recipe.on(pipe) as call:
        drawn = pipe(list(few["prompt"]), generator=noise, output_type="pt", **options, **call)
    pictures = (255 * drawn.images).round().to(torch.uint8)
    seen = metrics.clip_cosine(pictures, list(few["prompt"]), "bundled")
    np.testing.assert_allclose(seen, part["clip"][:2], atol=0.01)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(RESULTS)))
def test_grids_follow_from_the_setting(folder):
    said, setting, _, _ = opened(folder)
    pipe = model(said.get("model", "bundled"))
    profiles = {scale: folder / f"profile-g{scale:g}.json" for scale in setting.guidance_scales}
    for cell in design.cells(setting):
        if design.needs(cell.method) in ("nothing", "profile"):
            needed = design.needs(cell.method) == "profile"
            profile = Profile.load(profiles[cell.guidance_scale]) if needed else None
            found, recorded = (
                finder.grid_for(pipe.scheduler, cell, setting, profile),
                said["grids"][cell.name],
            )
            if cell.method == "dmn":
                check_as_good(pipe.scheduler, found, recorded)
            else:
                assert found == recorded


def test_a_seed_draws_its_recorded_picture_again(pipe):
    """By CLIP's cosine, which the record has to many digits.

    Another machine rounds differently, so that a path may diverge; most do not.
    """
    folder = RESULTS / "guidance-7.5" / "steps-20"
    said, _, table, records = opened(folder)
    for method in ("ddim", "combined"):
        cell = design.Cell(method, 20, 7.5)
        pipe.scheduler = design.SOLVERS["ddim"][0].from_config(pipe.scheduler.config)
        prompts = list(table["prompt"][:8])
        drawn = draw(
            pipe, prompts, list(range(8)), guidance_scale=7.5, timesteps=said["grids"][cell.name]
        )
        recorded = records[records["method"] == method]["clip"].to_numpy()[:8]
        away = np.abs(metrics.clip_cosine(drawn.images, prompts).numpy() - recorded)
        assert np.median(away) < 1e-3, away


def test_the_hash_of_a_record_is_in_its_provenance():
    held = [
        (
            folder / "records.parquet",
            json.loads((folder / "provenance.json").read_text()).get("records_sha256"),
        )
        for folder in FOLDERS
    ]
    named = [(file, wanted) for file, wanted in held if wanted]
    assert len(named) >= 4
    for file, wanted in named:
        assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(wanted)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_a_laid_grid_takes_ddim_s_time_and_memory_at_full_size(model):
    """The paper adds 3 to 7 %.

    By the medians of a network pass and of the rest, as in the chapter on the clock.
    """
    big = pd.read_csv(RESULTS / "clock" / f"{model}.csv")
    drawn, cost = big[big["method"] != "calibration"], big[big["method"] == "calibration"].iloc[0]
    assert set(drawn["steps"]) == {20}
    middle = (
        drawn.assign(rest=drawn["seconds"] - drawn["network_seconds"])
        .groupby("method")[["pass_seconds", "rest", "seconds"]]
        .median()
    )
    image = 20 * middle["pass_seconds"] + middle["rest"]
    for method in ("noise", "gradient", "combined"):
        assert abs(image[method] / image["ddim"] - 1) < 0.01
    assert cost["seconds"] < 2 * middle["seconds"]["ddim"]
    most = drawn.groupby("method")["megabytes"].max()
    assert most.max() < 1.01 * most["ddim"]
