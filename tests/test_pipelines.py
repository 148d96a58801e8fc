"""Real pipeline classes of diffusers, tiny and with random weights, run unchanged with the scheduler, and through the whole experiment."""

import json
import os
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from typer.testing import CliRunner

from asddim_lib import ASDDIMScheduler, calibrate
from asddim_lib.cli import app as cli
from asddim_lib.experiment.evaluate import read_records
from asddim_lib.metrics.features import inception, reference
from asddim_lib.models.load import HUB, data_folder, load_pipeline

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
ALLOCATIONS = [{"allocation": "uniform"}, {"allocation": "noise"}, {"allocation": "ays-sd15"}]
PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unet(**changes):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(
        **{
            "sample_size": 32,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            **blocks,
            **changes,
        }
    ).eval()


def text(kind=CLIPTextModel, **changes):
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        **changes,
    )
    return kind(config).eval()


def parts(**changes):
    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    words = CLIPTokenizer.from_pretrained(data_folder() / "model" / "tokenizer")
    return {
        "vae": vae.eval(),
        "unet": unet(),
        "text_encoder": text(),
        "tokenizer": words,
        "scheduler": DDIMScheduler(**SD),
        **changes,
    }


PLAIN = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd():
    return StableDiffusionPipeline(**parts(), **PLAIN), {}


def sdxl():
    wide = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 16,
        "cross_attention_dim": 32,
    }
    more = {
        "text_encoder_2": text(CLIPTextModelWithProjection, projection_dim=16),
        "tokenizer_2": parts()["tokenizer"],
        "unet": unet(**wide),
    }
    return StableDiffusionXLPipeline(**parts(**more), add_watermarker=False), {
        "height": 64,
        "width": 64,
    }


def sd3():
    torch.manual_seed(4)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
    )
    made = parts()
    vae = AutoencoderKL(
        **{
            **made["vae"].config,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "shift_factor": 0.06,
        }
    )
    towers = [text(CLIPTextModelWithProjection, projection_dim=32) for _ in range(2)]
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -2.0) for letter in "▁" + string.ascii_letters),
    ]
    last = T5EncoderModel(
        T5Config(d_model=32, d_ff=32, d_kv=8, num_heads=2, num_layers=1, vocab_size=len(letters))
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=towers[0],
        tokenizer=made["tokenizer"],
        text_encoder_2=towers[1],
        tokenizer_2=made["tokenizer"],
        text_encoder_3=last,
        tokenizer_3=T5TokenizerFast(vocab=letters, extra_ids=0),
    ), {"height": 64, "width": 64}


def sdxl_base():
    pipe, how = sdxl()
    return pipe, {**how, "denoising_end": 0.7}


def img2img():
    return StableDiffusionImg2ImgPipeline(**parts(), **PLAIN), {"image": PICTURE, "strength": 0.6}


def inpaint():
    return StableDiffusionInpaintPipeline(**parts(unet=unet(in_channels=9)), **PLAIN), {
        "image": PICTURE,
        "mask_image": (PICTURE[:, :1] > 0.5).float(),
        "height": 64,
        "width": 64,
    }


def controlnet():
    made = parts()
    torch.manual_seed(3)
    guide = ControlNetModel.from_unet(made["unet"], conditioning_embedding_out_channels=(8, 16))
    return StableDiffusionControlNetPipeline(**made, controlnet=guide.eval(), **PLAIN), {
        "image": torch.rand(1, 3, 64, 64)
    }


@pytest.mark.parametrize("build", [sd, sdxl, sdxl_base, img2img, inpaint, controlnet])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_pipelines_run_unchanged(build, dtype, guidance_scale):
    pipe, how = build()
    pipe.to(dtype=dtype).set_progress_bar_config(disable=True)
    original, found = pipe.scheduler, []
    for scheduler in (
        original,
        *(ASDDIMScheduler.from_config(original.config, **allocation) for allocation in ALLOCATIONS),
    ):
        pipe.scheduler = scheduler
        made = pipe(
            "a red boot",
            num_inference_steps=6,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **how,
        ).images
        assert made.isfinite().all()
        found.append(made)
    assert torch.equal(found[0], found[1])  # uniform is diffusers' own
    assert not torch.equal(found[1], found[2])  # and the others are not


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_profile_is_measured_on_any_of_them(build, guidance_scale):
    pipe, how = build()
    pipe.set_progress_bar_config(disable=True)
    profile = calibrate(
        pipe,
        ["a red boot", "a blue bag"],
        guidance_scale=guidance_scale,
        num_steps=4,
        adjoint_probes=1,
    )
    for allocation in ("combined", "fitted", "equidistributed", "dual-weighted"):
        pipe.scheduler = ASDDIMScheduler.from_config(
            pipe.scheduler.config, allocation=allocation, profile=profile.to_dict()
        )
        pipe(
            "a red boot",
            num_inference_steps=3,
            guidance_scale=guidance_scale,
            output_type="latent",
            **how,
        )
        assert pipe.scheduler.timesteps[0] == 999


def test_custom_timesteps_go_through_the_pipeline():
    pipe, how = sd()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="noise")
    grid = [999, 700, 300, 40]
    seen = []
    pipe.unet.register_forward_pre_hook(lambda network, args: seen.append(int(args[1])))
    pipe("a red boot", timesteps=grid, guidance_scale=1.0, output_type="latent", **how)
    assert seen == grid


def test_saved_with_its_pipeline_and_loaded_again(tmp_path):
    pipe, _ = sd()
    pipe.scheduler = ASDDIMScheduler.from_config(
        pipe.scheduler.config, allocation="combined", lam=2.0, profile=None
    )
    pipe.save_pretrained(tmp_path)
    again = ASDDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert again.config["lam"] == 2.0
    assert np.array_equal(again.alphas_cumprod, pipe.scheduler.alphas_cumprod)


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
    done = CliRunner().invoke(
        cli.app,
        [
            "evaluate",
            "--model",
            str(tmp_path / "model"),
            "--prompts",
            str(tmp_path / "prompts.txt"),
            "--count",
            "3",
            "--batch-size",
            "2",
            "--steps",
            "2,4",
            "--methods",
            methods,
            "--solvers",
            solver,
            "--reference-steps",
            "8",
            "--clip",
            "bundled",
            "--out",
            str(tmp_path / "out"),
        ],
    )
    assert done.exit_code == 0, (done.output, done.exception)
    records, summary = read_records(tmp_path / "out"), pd.read_csv(tmp_path / "out" / "summary.csv")
    assert len(records) == 3 * 2 * len(methods.split(","))
    assert not records["failed"].any()
    assert {"clip", "distance", "seconds"} <= set(summary)
    assert (summary["distance"] > 0).all()
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    first = said["grids"][f"noise-{solver}-g7.5-k4"][0]
    assert first == (1.0 if build is sd3 else 999)


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
    monkeypatch.setattr(
        inception,
        "_network",
        lambda weights, device: lambda images: images[:, :, ::32, ::32].float().flatten(1),
    )
    monkeypatch.setattr(reference, "CACHE", tmp_path / "cache")
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
    done = CliRunner().invoke(cli.app, ["mlperf", *arguments])
    assert done.exit_code == 1
    assert "accepted 23.01 to 23.95: WRONG" in done.output
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert said["grids"]["ddim-euler-g8-k20"] == list(range(951, 0, -50)), (
        "Euler's own, evenly spaced and one late"
    )
    assert said["setting"]["negative_prompt"].startswith("normal quality")
    monkeypatch.setattr(cli, "ACCEPTED", {"FID": (0, 1e9), "CLIP": (-100, 100)})
    assert CliRunner().invoke(cli.app, ["mlperf", *arguments]).exit_code == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--solvers", "ddim"], "solver is ddim; a flow-matching model has euler alone"),
        (["--methods", "combined"], "method is combined; it is measured on a UNet"),
        (["--methods", "gits"], "method is gits"),
        (["--methods", "chosen"], "method is chosen"),
    ],
)
def test_what_a_flow_matching_model_cannot_do_is_named(changed, message, tmp_path):
    sd3()[0].save_pretrained(tmp_path / "model")
    arguments = [
        "evaluate",
        "--model",
        str(tmp_path / "model"),
        "--count",
        "1",
        "--steps",
        "2",
        "--methods",
        "noise",
        "--solvers",
        "euler",
        "--out",
        str(tmp_path / "out"),
    ]
    assert message in str(CliRunner().invoke(cli.app, [*arguments, *changed]).exception)


def test_a_pipeline_without_a_unet_has_no_profile():
    with pytest.raises(
        ValueError, match="pipe is StableDiffusion3Pipeline; give one whose network is a UNet"
    ):
        calibrate(sd3()[0], ["a red boot"])


# the hub, as its cache lies on disk


@pytest.fixture
def cached(tmp_path):
    """Stable Diffusion 1.5 and SDXL, tiny, where the hub's client keeps what it fetched of the revisions that are fixed."""
    for name, build in (("sd15", sd), ("sdxl", sdxl)):
        source, revision = HUB[name]
        folder = tmp_path / f"models--{source.replace('/', '--')}"
        build()[0].save_pretrained(folder / "snapshots" / revision)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("f" * 40)  # main has gone on
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"), [("sd15", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)]
)
def test_the_paper_s_models_come_from_the_hub_s_cache(cached, name, kind):
    pipe = load_pipeline(name, cache_dir=cached, local_files_only=True)
    assert type(pipe) is kind
    assert pipe(
        "a red boot", num_inference_steps=2, height=64, width=64, output_type="np"
    ).images.shape == (1, 64, 64, 3)


def test_the_command_line_finds_them_without_a_network(cached):
    offline = {
        **os.environ,
        "HF_HUB_CACHE": str(cached),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    drawn = cached / "boot.png"

    def run():
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "asddim_lib.cli",
                "generate",
                "a red boot",
                str(drawn),
                "--model",
                "sd15",
                "--steps",
                "2",
            ],
            env=offline,
            capture_output=True,
            text=True,
            check=False,
        )

    assert run().returncode == 0
    assert drawn.exists()
    source, revision = HUB["sd15"]
    (cached / f"models--{source.replace('/', '--')}").rename(cached / "elsewhere")
    done = run()
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        f"; fetch it once with `hf download {source} --revision {revision}`"
    )
