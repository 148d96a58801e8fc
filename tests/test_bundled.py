"""The bundled model and data: pins, sizes, names, and what the model draws."""

import os
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asddim_lib import ASDDIMScheduler, calibrate, load_pipeline
from asddim_lib.models.prompts import check_prompts
from experiments.pictures import draw
from experiments.quick import quicken
from tests.refusals import refuses

ROOT = Path(__file__).parents[1]
PROMPTS = ["a red boot on a white ground", "two blue bags on a tan ground"]


def test_pins_agree():
    lock = {line for line in (ROOT / "requirements.lock").read_text().splitlines() if line}
    lines = (ROOT / "environment.yml").read_text().splitlines()
    environment = {line.strip()[2:] for line in lines if line.startswith("    - ")}
    assert lock == environment
    assert all("==" in pin for pin in lock)
    names = {pin.split("==")[0].lower().replace("_", "-") for pin in lock}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    apart = extras.pop("inception")  # has an environment of its own, which the Makefile pins
    assert all(f" {d.split('>')[0]}==" in (ROOT / "Makefile").read_text() for d in apart)
    wanted = [*project["dependencies"], *(d for extra in extras.values() for d in extra)]
    assert {d.replace("<", ">").split(">")[0].lower() for d in wanted} <= names


def test_the_text_encoder_has_the_names_of_stable_diffusion():
    """Otherwise transformers 4 keeps random weights and only warns."""
    names = set(load_file(ROOT / "data" / "model" / "text_encoder" / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"text_model"}


def test_data_is_small():
    assert sum(f.stat().st_size for f in (ROOT / "data").rglob("*") if f.is_file()) < 60e6


def test_uniform_draws_what_the_pipeline_draws(pipe):
    how = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    theirs = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(1), **how).images
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="uniform")
    ours = pipe(PROMPTS[0], generator=torch.Generator().manual_seed(1), **how).images
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("prompt", ["", "  ", "a red boot " * 20])
def test_wrong_prompts_are_refused(pipe, prompt):
    with refuses("prompt"):
        check_prompts(pipe, [prompt])


@pytest.mark.parametrize(
    "damaged",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "tokenizer",
    ],
)
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_missing_or_truncated_files_are_named(damaged, how, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "data" / "model", model, copy_function=os.symlink)
    place = model / damaged
    for file in list(place.iterdir()) if place.is_dir() else [place]:
        content = file.read_bytes()
        file.unlink()
        if how == "truncated":
            file.write_bytes(content[: len(content) // 2])
    with refuses("model") as caught:
        load_pipeline(model)
    assert "\n" not in str(caught.value)


def test_a_quick_pipeline_draws_and_measures_the_same(pipe):
    how = {"num_inference_steps": 5, "guidance_scale": 7.5}
    quick = quicken(load_pipeline())
    plain, fast = (draw(one, PROMPTS, [0, 1], **how) for one in (pipe, quick))
    assert fast.latents.dtype == torch.float32
    assert not torch.equal(plain.latents, fast.latents)
    error = (plain.images.double() - fast.images.double()) / 255
    assert error.square().mean() < 1e-4  # 40 dB
    g = [calibrate(one, PROMPTS, num_steps=2).g for one in (pipe, quick)]
    assert g[1] == pytest.approx(g[0], rel=0.03)
    assert quick.unet.config["in_channels"] == 4
    assert not hasattr(quick.unet, "nothing")
