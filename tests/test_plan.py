"""What a run will cost, and what else its commands say."""

import json
import logging
import mmap
import os
import re
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from asddim_lib import calibrate, cli, load_pipeline
from asddim_lib.cli.output import bar
from asddim_lib.experiment import evaluate as experiment
from asddim_lib.experiment import memory
from asddim_lib.experiment import setting as design
from asddim_lib.experiment import store as pictures
from asddim_lib.experiment.cost import Cost, calibration, measure, plan
from asddim_lib.experiment.shards import Shard
from asddim_lib.files import sweep
from asddim_lib.measure.run import draw
from asddim_lib.models import load as models
from tests.runs import SETTING, TABLE, held


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """A run without a fault, and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, experiment.evaluate(pipe, TABLE, SETTING, folder)


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING, "asddim_lib")


def test_a_plan_counts_what_a_run_evaluates(pipe):
    setting = design.Setting(
        methods=("ddim", "noise"),
        steps=(4, 10),
        guidance_scales=(1.0, 5.0),
        reference_steps=50,
        adjoint_probes=2,
        calibrate_on=2,
        calibrate_steps=6,
    )
    found = plan(setting, 100, Cost(seconds=0.5, rest=2.0, kilobytes=10.0, memory=None)).set_index(
        ["guidance_scale", "steps"]
    )
    assert found["pictures"].to_dict() == {
        (g, k): 200 if k < 50 else 100 for g in (1.0, 5.0) for k in (4, 10, 50)
    }
    assert found["evaluations"][5.0, 10] == 200 * 10 * 2
    assert found["evaluations"][1.0, 50] == 100 * 50
    assert found["hours"][5.0, 4] * 3600 == pytest.approx(200 * (8 * 0.5 + 2))
    assert found["hours_a_row"][5.0, 4] * 2 == pytest.approx(found["hours"][5.0, 4])
    assert found["gigabytes"].sum() == pytest.approx(1000 * 10 / 1e6)
    assert calibration(setting) == 0, "no method needs a profile"
    setting, how = (
        replace(setting, methods=("noise", "combined")),
        {"num_steps": 6, "adjoint_probes": 2},
    )
    assert calibration(setting) == sum(
        calibrate(pipe, list(TABLE["prompt"][:2]), guidance_scale=scale, **how).evaluations
        for scale in (1.0, 5.0)
    )


def test_a_plan_measures_this_device_and_touches_nothing_else(pipe, whole, tmp_path, monkeypatch):
    cost = measure(pipe, TABLE, SETTING)
    begun = time.perf_counter()
    draw(pipe, list(TABLE["prompt"][:2]), [0, 1], guidance_scale=2.0, num_inference_steps=20)
    took = (time.perf_counter() - begun) / 2
    assert 0.2 < (cost.seconds * 40 + cost.rest) / took < 5  # a shared machine's speed changes
    batch = pictures.load(next((whole[0] / "images").glob("[!.]*000000.safetensors")))
    assert cost.kilobytes == pytest.approx(
        sum(batch[key].nbytes for key in ("images", "latents")) / 2e3
    )
    assert 100 < cost.memory < 64_000
    monkeypatch.setattr(models, "load_pipeline", lambda *args, **kwargs: pipe)
    done = CliRunner().invoke(
        cli.app,
        ["evaluate", "--out", str(tmp_path / "o"), "--count", "4", "--steps", "1,2", "--plan"],
    )
    assert done.exit_code == 0, done.output
    assert "40 pictures, 120 network evaluations" in done.output
    assert re.search(r"measured on cpu, 4 pictures at once: [\d.e-]+ s per evaluation", done.output)
    assert not list(tmp_path.iterdir())


def test_prompts_of_one_s_own_are_scored_by_the_clip_that_is_named(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_pipeline", lambda *args, **kwargs: pipe)
    (tmp_path / "own.csv").write_text(
        "Prompts,Category\n"
        + "".join(f"{text},{kind}\n" for text, kind in zip(TABLE["prompt"], "aabbb", strict=True))
    )
    arguments = [
        "evaluate",
        "--prompts",
        str(tmp_path / "own.csv"),
        "--count",
        "5",
        "--steps",
        "2",
        "--methods",
        "ddim",
        "--guidance-scale",
        "2",
        "--reference-steps",
        "4",
    ]
    for clip in ([], ["--clip", "bundled"]):
        done = CliRunner().invoke(cli.app, [*arguments, "--out", str(tmp_path / "o"), *clip])
        assert done.exit_code == 0, done.output
    summary, records = (
        pd.read_csv(tmp_path / "o" / "summary.csv"),
        experiment.read_records(tmp_path / "o"),
    )
    assert {"clip", "distance"} <= set(summary)
    assert not {"fid", "kid", "right"} & set(summary)
    assert list(records["category"]) == list("aabbb")
    said = json.loads((tmp_path / "o" / "provenance.json").read_text())
    assert (said["clip"], said["prompts_from"]) == ("bundled", "own.csv")
    done = CliRunner().invoke(
        cli.app, [*arguments, "--out", str(tmp_path / "o"), "--clip", "/nowhere"]
    )
    assert "clip is '/nowhere', which could not be loaded" in str(done.exception)


def test_the_same_latents_and_a_negative_prompt_are_for_all_pictures(pipe, tmp_path):
    same = TABLE.iloc[[0, 0, 0]].reset_index(drop=True)
    setting = replace(SETTING, methods=("noise",), steps=(2,))
    torch.save(
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)),
        tmp_path / "latents.pt",
    )
    drawn = {}
    for name, how in {
        "own": {},
        "same": {"latents": str(tmp_path / "latents.pt")},
        "both": {"latents": str(tmp_path / "latents.pt"), "negative_prompt": "blue"},
    }.items():
        experiment.evaluate(pipe, same, replace(setting, **how), tmp_path / name)
        drawn[name] = torch.cat([parts["latents"] for parts in held(tmp_path / name)[0].values()])
    spread = {name: (latents - latents[0]).abs().max() for name, latents in drawn.items()}
    assert spread["own"] > 1
    assert max(spread["same"], spread["both"]) < 1e-4
    assert (drawn["same"] - drawn["both"]).abs().max() > 0.1
    with pytest.raises(
        ValueError, match="pictures of another latents, negative_prompt; name another folder"
    ):
        experiment.evaluate(pipe, same, setting, tmp_path / "both")


def test_latents_that_are_none_are_named(tmp_path):
    torch.save({"latents": 1}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_text("no")
    for name, message in {
        "a.pt": "give a tensor of 1 × c × h × w",
        "b.pt": "could not be read",
        "c.pt": "No such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            pictures.load_latents(str(tmp_path / name))
    measured = replace(SETTING, methods=("combined",), negative_prompt="blue")
    assert measured.options == {"negative_prompt": "blue"}  # profiles are measured with it, too


def test_the_bar_goes_by_evaluations_and_counts_images(capsys):
    cells = [design.Cell("ddim", steps, 2.0) for steps in (1, 9)]
    waiting = [batch for cell in cells for batch in design.batches(cell, 4, SETTING)]
    assert list(bar(waiting, Shard())) == waiting
    shown = capsys.readouterr().err
    assert "8/8 images" in shown
    assert "images/s" in shown
    assert "100%" in shown


def test_only_what_was_left_long_ago_is_swept(tmp_path):
    for name in (".part-old", ".part-new", "whole"):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / ".part-old", (time.time() - 7200,) * 2)
    sweep(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [".part-new", "whole"]


def test_memory_is_saved_by_diffusers_switches(pipe, tmp_path, monkeypatch):
    sliced = load_pipeline(save_memory=("vae-slicing", "vae-tiling"))
    assert sliced.vae.use_slicing
    assert sliced.vae.use_tiling
    plain, less = (
        draw(
            one, list(TABLE["prompt"][:3]), [0, 1, 2], num_inference_steps=2, guidance_scale=2.0
        ).images.short()
        for one in (pipe, sliced)
    )
    assert (plain - less).abs().max() <= 1, (
        "pictures of 64 pixels are one tile; decoded one by one, they round otherwise"
    )
    experiment.evaluate(sliced, TABLE, SETTING, tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text())["save_memory"] == [
        "vae-slicing",
        "vae-tiling",
    ]
    with pytest.raises(ValueError, match=r"pictures of another .*save_memory"):
        experiment.evaluate(pipe, TABLE, SETTING, tmp_path)
    for switches, message in (
        (("fewer",), "save_memory is fewer; use some of vae-slicing"),
        (("offload",), "save_memory is offload on a CPU; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pipeline(save_memory=switches)
    told = []
    monkeypatch.setattr(
        type(pipe),
        "enable_model_cpu_offload",
        lambda self, device: told.append((device, self.device.type)),
    )
    load_pipeline(device="cuda:1", save_memory=("offload",))
    assert told == [("cuda:1", "cpu")], "nothing was moved there beforehand"


def test_a_commit_is_named(tmp_path, monkeypatch):
    found = experiment.commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{7,40}\+?", found)
    monkeypatch.setattr(experiment, "__file__", str(tmp_path / "lib" / "experiment.py"))
    assert re.fullmatch(r"\d+\.\d+\S*", experiment.commit()), "an installed library has a version"


def test_where_the_system_does_not_say_memory_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nowhere")
    assert memory.Peak(torch.device("cpu")).megabytes() is None
    monkeypatch.undo()
    before = memory.Peak(torch.device("cpu"))
    held = mmap.mmap(
        -1, 256_000_000
    )  # unlike a tensor's, its memory goes back to the system for certain
    np.frombuffer(held, np.uint8)[::1024] = 1  # and is taken only when it is written to
    assert before.megabytes() > 256
    now = memory.Peak(torch.device("cpu")).megabytes()
    held.close()
    assert memory.Peak(torch.device("cpu")).megabytes() < now - 200, (
        "what was held before it was made does not count"
    )
