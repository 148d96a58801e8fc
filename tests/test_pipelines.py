"""Real pipeline classes of diffusers, tiny and with random weights, run unchanged with the scheduler."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from asddim_lib import ASDDIMScheduler, calibrate
from asddim_lib.models import data_folder

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
ALLOCATIONS = [{"allocation": "uniform"}, {"allocation": "noise"}, {"allocation": "ays-sd15"}]
PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unet(**changes):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    return UNet2DConditionModel(**{
        "sample_size": 32, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 2,
        **blocks, **changes,
    }).eval()  # fmt: skip


def text(kind=CLIPTextModel, **changes):
    torch.manual_seed(1)
    config = CLIPTextConfig(vocab_size=1000, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=77, **changes)
    return kind(config).eval()


def parts(**changes):
    torch.manual_seed(2)
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    words = CLIPTokenizer.from_pretrained(data_folder() / "model" / "tokenizer")
    return {"vae": vae.eval(), "unet": unet(), "text_encoder": text(), "tokenizer": words, "scheduler": DDIMScheduler(**SD), **changes}


PLAIN = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd():
    return StableDiffusionPipeline(**parts(), **PLAIN), {}


def sdxl():
    wide = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 8 * 6 + 16, "cross_attention_dim": 32}
    more = {"text_encoder_2": text(CLIPTextModelWithProjection, projection_dim=16), "tokenizer_2": parts()["tokenizer"], "unet": unet(**wide)}
    return StableDiffusionXLPipeline(**parts(**more), add_watermarker=False), {"height": 64, "width": 64}


def sdxl_base():
    pipe, how = sdxl()
    return pipe, {**how, "denoising_end": 0.7}


def img2img():
    return StableDiffusionImg2ImgPipeline(**parts(), **PLAIN), {"image": PICTURE, "strength": 0.6}


def inpaint():
    return StableDiffusionInpaintPipeline(**parts(unet=unet(in_channels=9)), **PLAIN), {
        "image": PICTURE, "mask_image": (PICTURE[:, :1] > 0.5).float(), "height": 64, "width": 64,
    }  # fmt: skip


def controlnet():
    made = parts()
    torch.manual_seed(3)
    guide = ControlNetModel.from_unet(made["unet"], conditioning_embedding_out_channels=(8, 16))
    return StableDiffusionControlNetPipeline(**made, controlnet=guide.eval(), **PLAIN), {"image": torch.rand(1, 3, 64, 64)}


@pytest.mark.parametrize("build", [sd, sdxl, sdxl_base, img2img, inpaint, controlnet])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_pipelines_run_unchanged(build, dtype, guidance_scale):
    pipe, how = build()
    pipe.to(dtype=dtype).set_progress_bar_config(disable=True)
    original, found = pipe.scheduler, []
    for scheduler in (original, *(ASDDIMScheduler.from_config(original.config, **allocation) for allocation in ALLOCATIONS)):
        pipe.scheduler = scheduler
        made = pipe("a red boot", num_inference_steps=6, guidance_scale=guidance_scale, generator=torch.Generator().manual_seed(0), output_type="latent", **how).images
        assert made.isfinite().all()
        found.append(made)
    assert torch.equal(found[0], found[1])  # uniform is diffusers' own
    assert not torch.equal(found[1], found[2])  # and the others are not


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_profile_is_measured_on_any_of_them(build, guidance_scale):
    pipe, how = build()
    pipe.set_progress_bar_config(disable=True)
    profile = calibrate(pipe, ["a red boot", "a blue bag"], guidance_scale=guidance_scale, num_steps=4, adjoint_probes=1)
    for allocation in ("combined", "fitted", "equidistributed", "dual-weighted"):
        pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation=allocation, profile=profile.to_dict())
        pipe("a red boot", num_inference_steps=3, guidance_scale=guidance_scale, output_type="latent", **how)
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
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="combined", lam=2.0, profile=None)
    pipe.save_pretrained(tmp_path)
    again = ASDDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert again.config["lam"] == 2.0
    assert np.array_equal(again.alphas_cumprod, pipe.scheduler.alphas_cumprod)
