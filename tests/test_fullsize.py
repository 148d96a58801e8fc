"""The paper's networks: as large as published; and the clock on small ones of the same make."""

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from asddim_lib.bench import clock as fullsize
from asddim_lib.cli import app

#: Millions of parameters: of the UNets (Podell et al. 2023, Table 1, rounds them to 860 and 2.6 thousand), the VAE, and the text encoders
#: (same table: CLIP ViT-L; CLIP ViT-L and OpenCLIP ViT-bigG, 123 and 695 million as their authors count the text's part).
SIZES = {"sd15": (859.52, 83.65, 123.06), "sdxl": (2567.46, 83.65, 123.06, 694.66)}


@pytest.mark.parametrize("model", fullsize.CONFIGS)
def test_networks_have_the_published_size(model):
    with torch.device("meta"):
        pipe = fullsize.random_pipeline(model, device="meta")
    parts = [
        pipe.components[name]
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
        if pipe.components.get(name) is not None
    ]
    assert (
        tuple(round(sum(p.numel() for p in part.parameters()) / 1e6, 2) for part in parts)
        == SIZES[model]
    )


@pytest.fixture
def small(monkeypatch):
    vae = {
        **fullsize.CONFIGS["sd15"]["vae"],
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    for model, config in fullsize.CONFIGS.items():
        unet = {
            **config["unet"],
            "sample_size": 8,
            "norm_num_groups": 4,
            "block_out_channels": (8, 16, 16, 16)[: len(config["unet"]["block_out_channels"])],
        }
        text = [
            {
                **one,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "projection_dim": 16,
            }
            for one in config["text"]
        ]
        unet |= {
            "attention_head_dim": 2,
            "transformer_layers_per_block": 1,
            "cross_attention_dim": 16 * len(text),
        }
        unet |= {"projection_class_embeddings_input_dim": 6 * 256 + 16} if model == "sdxl" else {}
        monkeypatch.setitem(
            fullsize.CONFIGS, model, {"pixels": 64, "unet": unet, "vae": vae, "text": text}
        )


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_the_clock_counts_what_it_times(small, tmp_path, model):
    found = CliRunner().invoke(
        app,
        [
            "clock",
            "--model",
            model,
            "--steps",
            "2,5",
            "--repeats",
            "2",
            "--methods",
            ",".join(fullsize.METHODS),
            "--out",
            str(tmp_path / "c.csv"),
        ],
    )
    assert found.exit_code == 0, found.output
    times = pd.read_csv(tmp_path / "c.csv")
    assert len(times) == 1 + 2 * 2 * len(fullsize.METHODS)
    assert (times["seconds"] > times["network_seconds"]).all()
    assert times["megabytes"].between(100, 64_000).all()
    nfe = times.groupby(["steps", "method"])["nfe"].first()
    for steps in (2, 5):
        assert {nfe[steps, method] for method in ("ddim", "noise", "gradient", "combined")} == {
            2 * steps
        }
        assert nfe[steps, "online"] == 2 * (
            steps + 3 * (steps - 1)
        )  # a probe at every step but the last, whose grid is laid
    assert nfe[5, "online-4"] == 2 * (5 + 3)
    assert nfe[33, "calibration"] == 2 * 33  # a picture's path of 32 steps, and timestep 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"model": "sd3"}, "model is sd3"),
        ({"model": "sd15", "methods": ("euler",)}, "method is euler"),
        ({"model": "sd15", "repeats": 0}, "repeats is 0"),
        ({"model": "sd15", "pixels": 100}, "pixels is 100"),
    ],
)
def test_what_the_clock_does_not_know_is_named(how, message):
    with pytest.raises(ValueError, match=message):
        fullsize.clock(**how)
