"""The paper's networks have their published size; the clock runs on small ones like them."""

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from asddim_lib.errors import WrongUse
from experiments import clock as fullsize
from experiments.cli import app

#: Millions of parameters of the UNet, the VAE and the text encoders. Podell et al. 2023, Table 1,
#: rounds the UNets to 860 and 2,600. Their text encoders are CLIP ViT-L, and for SDXL also OpenCLIP
#: ViT-bigG: 123 and 695 for the text part, as the authors of CLIP and OpenCLIP count them.
SIZES = {"sd15": (859.52, 83.65, 123.06), "sdxl": (2567.46, 83.65, 123.06, 694.66)}


@pytest.mark.parametrize("model", fullsize.CONFIGS)
def test_networks_have_the_published_size(model):
    with torch.device("meta"):
        pipe = fullsize.random_pipeline(model, device="meta")
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    parts = [pipe.components[name] for name in names if pipe.components.get(name) is not None]
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in parts]
    assert tuple(round(size, 2) for size in millions) == SIZES[model]


@pytest.fixture
def small(monkeypatch):
    vae = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "sample_size": 64}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "projection_dim": 16}
    unet = {"sample_size": 8, "norm_num_groups": 4, "attention_head_dim": 2}
    unet |= {"transformer_layers_per_block": 1}
    for model, config in fullsize.CONFIGS.items():
        texts, wide = len(config["text"]), config["unet"]["block_out_channels"]
        own = {
            "block_out_channels": (8, 16, 16, 16)[: len(wide)],
            "cross_attention_dim": 16 * texts,
        }
        if model == "sdxl":
            own["projection_class_embeddings_input_dim"] = 6 * 256 + 16
        tiny = {
            "pixels": 64,
            "unet": {**config["unet"], **unet, **own},
            "vae": {**config["vae"], **vae, "scaling_factor": 0.18215},
            "text": [{**part, **text} for part in config["text"]],
        }
        monkeypatch.setitem(fullsize.CONFIGS, model, tiny)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_the_clock_counts_what_it_times(small, tmp_path, model):
    command = f"clock --model {model} --steps 2,5 --repeats 2".split()
    command += ["--methods", ",".join(fullsize.METHODS), "--out", str(tmp_path / "c.csv")]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    times = pd.read_csv(tmp_path / "c.csv")
    assert len(times) == 1 + 2 * 2 * len(fullsize.METHODS)
    assert (times["seconds"] > times["network_seconds"]).all()
    assert times["megabytes"].between(100, 64_000).all()
    nfe = times.groupby(["steps", "method"])["nfe"].first()
    for steps in (2, 5):
        for method in ("ddim", "noise", "gradient", "combined"):
            assert nfe[steps, method] == 2 * steps
        # A probe, three evaluations, at every step except the last, after which no grid is laid.
        assert nfe[steps, "online"] == 2 * (steps + 3 * (steps - 1))
    assert nfe[5, "online-4"] == 2 * (5 + 3)
    assert nfe[33, "calibration"] == 2 * 33  # one image's path of 32 steps, and timestep 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"model": "sd3"}, "model is sd3"),
        ({"model": "sd15", "methods": ("euler",)}, "method is euler"),
        ({"model": "sd15", "repeats": 0}, "repeats is 0"),
        ({"model": "sd15", "pixels": 100}, "pixels is 100"),
    ],
)
def test_a_wrong_argument_is_named(how, message):
    with pytest.raises(WrongUse, match=message):
        fullsize.clock(**how)
