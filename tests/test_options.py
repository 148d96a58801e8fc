"""Options of an experiment: prompts of one's own, shared latents, saved memory; and its record."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from asddim_lib import load_pipeline
from asddim_lib.metrics import clip_cosine
from experiments import evaluate as experiment
from experiments.cli import app
from experiments.cli.experiment import bar
from experiments.evaluate import evaluate
from experiments.pictures import draw
from experiments.records import read_records
from experiments.setting import Cell, batches
from experiments.shards import Shard
from experiments.store import load_latents
from tests.refusals import refuses
from tests.runs import SETTING, TABLE, contents


@pytest.fixture
def own_prompts(tmp_path):
    """A command that draws prompts from a table with categories."""
    rows = [f"{p},{c}\n" for p, c in zip(TABLE["prompt"], "aabbb", strict=True)]
    (tmp_path / "own.csv").write_text("Prompts,Category\n" + "".join(rows))
    command = "evaluate --count 5 --steps 2 --methods ddim --guidance-scale 2 --reference-steps 4"
    files = ["--prompts", str(tmp_path / "own.csv"), "--out", str(tmp_path / "o")]
    return [*command.split(), *files]


def test_own_prompts_are_scored_by_the_clip_that_is_named(preloaded, own_prompts, tmp_path):
    for clip in ([], ["--clip", "bundled"]):
        done = CliRunner().invoke(app, [*own_prompts, *clip])
        assert done.exit_code == 0, done.exception
    summary = pd.read_csv(tmp_path / "o" / "summary.csv")
    assert {"clip", "distance"} <= set(summary)
    assert not {"fid", "kid", "right"} & set(summary)
    assert list(read_records(tmp_path / "o")["category"]) == list("aabbb")
    provenance = json.loads((tmp_path / "o" / "provenance.json").read_text())
    assert (provenance["clip"], provenance["prompts_from"]) == ("bundled", "own.csv")


def test_a_clip_that_cannot_be_loaded_is_refused_before_any_picture(
    preloaded, own_prompts, tmp_path
):
    done = CliRunner().invoke(app, [*own_prompts, "--clip", "/nowhere"])
    assert "clip is '/nowhere', which could not be loaded" in str(done.exception)
    assert not (tmp_path / "o").exists()


def test_prompts_that_are_cut_to_be_drawn_are_cut_to_be_scored(small, tmp_path):
    table = pd.DataFrame({"prompt": ["a red boot " * 20, "a blue bag"]})
    setting = replace(SETTING, methods=("ddim",), steps=(1,), truncate=True)
    evaluate(small, table, setting, tmp_path, clip="bundled")
    (stored,) = contents(tmp_path)[0].values()
    expected = clip_cosine(stored["images"], list(table["prompt"]), truncate=True)
    assert list(read_records(tmp_path)["clip"]) == expected.tolist()
    with refuses("prompt"):
        evaluate(small, table, replace(setting, truncate=False), tmp_path / "whole", clip="bundled")
    assert not (tmp_path / "whole").exists(), "nothing was drawn"


def test_latents_and_a_negative_prompt_are_for_all_pictures(pipe, tmp_path):
    table = TABLE.iloc[[0, 0, 0]].reset_index(drop=True)
    setting, file = replace(SETTING, methods=("noise",), steps=(2,)), str(tmp_path / "latents.pt")
    torch.save(torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)), file)
    options = {
        "own": {},
        "same": {"latents": file},
        "both": {"latents": file, "negative_prompt": "blue"},
    }
    latents = {}
    for name, how in options.items():
        evaluate(pipe, table, replace(setting, **how), tmp_path / name)
        parts = contents(tmp_path / name)[0].values()
        latents[name] = torch.cat([part["latents"] for part in parts])
    spread = {name: (values - values[0]).abs().max() for name, values in latents.items()}
    assert spread["own"] > 1
    assert max(spread["same"], spread["both"]) < 1e-4
    assert (latents["same"] - latents["both"]).abs().max() > 0.1
    message = "pictures of another latents, negative_prompt; name another folder"
    with pytest.raises(ValueError, match=message):
        evaluate(pipe, table, setting, tmp_path / "both")


def test_a_file_without_latents_is_named(tmp_path):
    torch.save({"latents": 1}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_text("no")
    messages = {
        "a.pt": "give a tensor of 1 × c × h × w",
        "b.pt": "could not be read",
        "c.pt": "No such file",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message):
            load_latents(str(tmp_path / name))


def test_the_bar_goes_by_evaluations_and_counts_images(capsys):
    waiting = [b for steps in (1, 9) for b in batches(Cell("ddim", steps, 2.0), 4, SETTING)]
    assert list(bar(waiting, Shard(), lambda cell: cell.steps)) == waiting
    text = capsys.readouterr().err
    assert "8/8 images" in text
    assert "100%" in text


@pytest.fixture(scope="module")
def sliced():
    return load_pipeline(save_memory=("vae-slicing", "vae-tiling"))


def test_memory_is_saved_by_the_switches_of_diffusers(pipe, sliced):
    """Pictures of 64 pixels are one tile; decoded one by one, they round differently."""
    assert sliced.vae.use_slicing
    assert sliced.vae.use_tiling
    how = {"num_inference_steps": 2, "guidance_scale": 2.0}
    plain, less = (
        draw(one, list(TABLE["prompt"][:3]), [0, 1, 2], **how).images.short()
        for one in (pipe, sliced)
    )
    assert (plain - less).abs().max() <= 1


def test_a_record_says_how_memory_was_saved(pipe, sliced, tmp_path):
    setting = replace(SETTING, methods=("ddim",), steps=(1,))
    evaluate(sliced, TABLE, setting, tmp_path)
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["save_memory"] == ["vae-slicing", "vae-tiling"]
    with refuses("out"):
        evaluate(pipe, TABLE, setting, tmp_path)


def test_offloading_moves_nothing_beforehand(monkeypatch, bundled):
    calls = []
    monkeypatch.setattr(
        type(bundled),
        "enable_model_cpu_offload",
        lambda self, device: calls.append((device, self.device.type)),
    )
    monkeypatch.setattr("asddim_lib.models.load.check_device", lambda device: None)
    load_pipeline(device="cuda:1", save_memory=("offload",))
    assert calls == [("cuda:1", "cpu")]


def test_a_commit_or_else_a_version_is_named(tmp_path, monkeypatch):
    inside = (Path(experiment.__file__).parents[1] / ".git").exists()
    assert re.fullmatch(r"[0-9a-f]{7,40}\+?" if inside else r"\d+\.\d+\S*", experiment.commit())
    monkeypatch.setattr(experiment, "__file__", str(tmp_path / "lib" / "x" / "evaluate.py"))
    assert re.fullmatch(r"\d+\.\d+\S*", experiment.commit())
