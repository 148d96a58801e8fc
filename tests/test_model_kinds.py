"""The whole command, on a model of each kind, offline; and models in the hub's cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from typer.testing import CliRunner

from asddim_lib import calibrate
from asddim_lib.levels import noise_schedule
from asddim_lib.metrics import encoders, real
from asddim_lib.models.load import HUB, load_pipeline
from experiments.cli import app
from experiments.records import read_records
from tests.refusals import refuses
from tests.tiny import sd, sd3, sdxl

# the whole command, from a file of prompts to tables, offline


@pytest.mark.parametrize(
    ("build", "solver", "methods"),
    [
        (sd, "ddim", "ddim,noise,combined"),
        (sdxl, "euler", "ddim,noise"),
        (sd3, "euler", "ddim-trailing,noise,karras"),
    ],
)
def test_the_experiment_runs_on_a_model_of_each_kind(build, solver, methods, tmp_path):
    pipe, _ = build()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red boot\ntwo blue bags\na pink shirt\n")
    command = f"evaluate --count 3 --batch-size 2 --steps 2,4 --methods {methods}"
    command += f" --solvers {solver} --reference-steps 8 --clip bundled"
    places = ["--model", "model", "--prompts", "prompts.txt", "--out", "out"]
    places[1::2] = [str(tmp_path / name) for name in places[1::2]]
    done = CliRunner().invoke(app, [*command.split(), *places])
    assert done.exit_code == 0, (done.output, done.exception)
    records, summary = read_records(tmp_path / "out"), pd.read_csv(tmp_path / "out" / "summary.csv")
    assert len(records) == 3 * 2 * len(methods.split(","))
    assert not records["failed"].any()
    assert {"clip", "distance", "seconds"} <= set(summary)
    assert (summary["distance"] > 0).all()
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert said["grids"][f"noise-{solver}-g7.5-k4"][0] == 999


def test_mlperf_s_protocol_is_run_and_judged_by_its_rules(tmp_path, monkeypatch):
    sdxl()[0].save_pretrained(tmp_path / "model")
    (tmp_path / "captions.tsv").write_text("id\tcaption\n1\ta red boot\n2\ttwo blue bags\n")
    torch.save(
        torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)),
        tmp_path / "latents.pt",
    )
    (tmp_path / "real").mkdir()
    for k in range(4):
        Image.effect_noise((64, 64), 20 + k).save(tmp_path / "real" / f"{k}.png")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1, stride=32), torch.nn.Flatten())
    stand_in = encoders.Encoder("inception", network, lambda pictures: pictures / 255)
    monkeypatch.setattr(encoders, "load_inception", lambda *_: stand_in)
    monkeypatch.setattr(real, "cache_folder", lambda: tmp_path / "cache")
    options = {
        "prompts": "captions.tsv",
        "latents": "latents.pt",
        "reference": "real",
        "out": "out",
        "model": "model",
    }
    arguments = [
        part for name, value in options.items() for part in (f"--{name}", str(tmp_path / value))
    ]
    arguments += ["--count", "2", "--clip", "bundled", "--device", "cpu", "--dtype", "float32"]
    done = CliRunner().invoke(app, ["mlperf", *arguments])
    assert done.exit_code == 1
    assert "accepted 23.01 to 23.95: WRONG" in done.output
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert said["grids"]["ddim-euler-g8-k20"] == list(range(951, 0, -50)), (
        "Euler's own, evenly spaced and one late"
    )
    assert said["setting"]["negative_prompt"].startswith("normal quality")
    module = sys.modules["experiments.cli.mlperf"]  # the package has the command by that name
    monkeypatch.setattr(module, "ACCEPTED", {"FID": (0, 1e9), "CLIP": (-100, 100)})
    assert CliRunner().invoke(app, ["mlperf", *arguments]).exit_code == 0


@pytest.fixture(scope="module")
def flow_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    sd3()[0].save_pretrained(folder)
    return str(folder)


def test_a_solver_that_a_flow_model_lacks_is_named(flow_model, tmp_path):
    command = "evaluate --count 2 --steps 2 --methods noise --solvers ddim"
    places = ["--model", flow_model, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command.split(), *places])
    line = "solver is ddim; for a flow-matching model use some of euler, unipc"
    assert line in str(done.exception)


def test_a_flow_matching_pipeline_has_a_profile_of_its_own_shift():
    pipe = sd3()[0]
    profile = calibrate(pipe, ["a red boot"], num_steps=4, guidance_scale=3.0)
    profile.check_schedule(noise_schedule(pipe.scheduler))
    other = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=2.0)
    with refuses("profile"):
        profile.check_schedule(noise_schedule(other))
    assert profile.g[0] == pytest.approx(profile.g[1], rel=0.5), "at pure noise ε is the sample"


# the hub, as its cache lies on disk


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """Stable Diffusion 1.5 and SDXL, tiny, where the hub's client keeps fetched revisions."""
    cache = tmp_path_factory.mktemp("hub")
    for name, build in (("sd15", sd), ("sdxl", sdxl)):
        source, revision = HUB[name].split("@")
        folder = cache / f"models--{source.replace('/', '--')}"
        build()[0].save_pretrained(folder / "snapshots" / revision)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("f" * 40)  # main has moved on
    return cache


@pytest.mark.parametrize(
    ("name", "kind"), [("sd15", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)]
)
def test_the_paper_s_models_come_from_the_hub_s_cache(cached, name, kind):
    pipe = load_pipeline(name, cache_dir=cached, local_files_only=True)
    assert type(pipe) is kind
    how = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    assert pipe("a red boot", **how).images.shape == (1, 64, 64, 3)


def test_the_command_line_finds_a_cached_model_without_a_network(cached, tmp_path):
    """The hub's client reads these variables when it is imported: hence a process."""
    root = str(Path(__file__).parents[1])
    hub = {"HF_HUB_CACHE": str(cached), "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    command = [sys.executable, "-m", "asddim_lib.cli", "generate", "a red boot"]
    command += [str(tmp_path / "boot.png"), "--model", "sd15", "--steps", "2"]
    done = subprocess.run(command, env={**os.environ, **hub}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "boot.png").size == (64, 64)


def test_a_model_that_is_not_cached_is_refused_with_the_command_that_fetches_it(tmp_path):
    source, revision = HUB["sd15"].split("@")
    with refuses("model") as error:
        load_pipeline("sd15", cache_dir=tmp_path, local_files_only=True)
    assert source in str(error.value)
    assert revision in str(error.value)
