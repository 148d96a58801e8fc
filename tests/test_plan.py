"""What a run will cost: pictures, network evaluations, time, space and memory."""

import mmap
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from asddim_lib import calibrate
from experiments import memory, store
from experiments.cli import app
from experiments.cost import PictureCost, calibration, measure, plan
from experiments.pictures import draw
from experiments.setting import KAPPA_PROBES, Setting
from tests.runs import SETTING, TABLE, files
from tests.tiny import sd

PLANNED = Setting(
    methods=("ddim", "noise"),
    steps=(4, 10),
    guidance_scales=(1.0, 5.0),
    reference_steps=50,
    adjoint_probes=1,
    calibrate_on=2,
    calibrate_steps=4,
)


def test_a_plan_counts_what_a_run_evaluates(small):
    cost = PictureCost(seconds=0.5, rest=2.0, kilobytes=10.0, memory=None)
    table = plan(small, PLANNED, 100, cost).set_index(["guidance_scale", "steps"])
    counts = {4: 200, 10: 200, 50: 100}  # two methods, and one reference
    expected = {(scale, steps): count for scale in (1.0, 5.0) for steps, count in counts.items()}
    assert table["pictures"].to_dict() == expected
    assert table["evaluations"][5.0, 10] == 200 * 10 * 2
    assert table["evaluations"][1.0, 50] == 100 * 50
    assert table["hours"][5.0, 4] * 3600 == pytest.approx(200 * (8 * 0.5 + 2))
    assert table["hours_a_row"][5.0, 4] * 2 == pytest.approx(table["hours"][5.0, 4])
    assert table["gigabytes"].sum() == pytest.approx(1000 * 10 / 1e6)


def test_a_plan_counts_guidance_plans_where_there_is_guidance(small):
    cost = PictureCost(seconds=0.5, rest=2.0, kilobytes=10.0, memory=None)
    setting = replace(PLANNED, guidance_plans=("constant", "capped-1", "linear"))
    table = plan(small, setting, 100, cost).set_index(["guidance_scale", "steps"])
    expected = {(1.0, 4): 200, (1.0, 10): 200, (5.0, 4): 600, (5.0, 10): 600}
    expected |= {(1.0, 50): 100, (5.0, 50): 100}
    assert table["pictures"].to_dict() == expected


def test_a_plan_counts_what_calibrate_counts():
    pipe, prompts = sd()[0], list(TABLE["prompt"][:2])
    assert calibration(pipe, PLANNED) == 0  # neither method needs a profile
    how = {"num_steps": 4, "adjoint_probes": 1}
    spent = sum(calibrate(pipe, prompts, guidance_scale=g, **how).evaluations for g in (1.0, 5.0))
    assert calibration(pipe, replace(PLANNED, methods=("noise", "combined"))) == spent
    measured = replace(PLANNED, guidance_plans=("constant", "capped-measured"))
    how = {"num_steps": 4, "estimator": "path", "kappa_probes": KAPPA_PROBES}
    spent = calibrate(pipe, prompts, guidance_scale=5.0, **how).evaluations
    assert calibration(pipe, measured) == spent  # a scale of 1 has no plans


def test_a_cost_is_near_a_run_s(pipe, small, whole):
    """Within a factor of 5, since the speed of a shared machine changes."""
    cost = measure(pipe, TABLE, SETTING)
    assert 100 < cost.memory < 64_000
    begin = time.perf_counter()
    prompts = list(TABLE["prompt"][:2])
    draw(pipe, prompts, [0, 1], guidance_scale=2.0, num_inference_steps=20)
    seconds = (time.perf_counter() - begin) / 2
    assert 0.2 < (cost.seconds * 40 + cost.rest) / seconds < 5
    cost = measure(small, TABLE, SETTING)
    batch = store.load(files(whole)[0])
    size = sum(batch[key].nbytes for key in ("images", "latents"))
    assert cost.kilobytes == pytest.approx(size / 2e3)


def test_the_command_prints_the_plan_and_writes_nothing(preloaded, tmp_path):
    arguments = ["evaluate", "--out", str(tmp_path / "o"), "--count", "4", "--steps", "1,2"]
    done = CliRunner().invoke(app, [*arguments, "--plan"])
    assert done.exit_code == 0, done.exception
    assert "40 pictures, 120 network evaluations" in done.output
    pattern = r"measured on cpu, 4 pictures at once: [\d.e-]+ s per evaluation"
    assert re.search(pattern, done.output)
    assert not list(tmp_path.iterdir())


def test_where_the_system_does_not_say_memory_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nowhere")
    assert memory.Peak(torch.device("cpu")).megabytes() is None


def test_memory_that_is_returned_before_does_not_count():
    first = memory.Peak(torch.device("cpu"))
    # Unlike a tensor's, the memory of a mapping surely goes back to the system.
    mapping = mmap.mmap(-1, 256_000_000)
    np.frombuffer(mapping, np.uint8)[::1024] = 1  # it is taken when it is written to
    assert first.megabytes() > 256
    peak = memory.Peak(torch.device("cpu")).megabytes()
    mapping.close()
    assert memory.Peak(torch.device("cpu")).megabytes() < peak - 200
