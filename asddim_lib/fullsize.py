"""The paper's clock (Tables 4–6) without its weights: Stable Diffusion 1.5 and SDXL at full size, built from their published configs.

Time does not depend on the values of weights, so random ones will do. Text is not encoded: the network is given random embeddings of the
text's shape, which takes from every method the same few milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.models import Pipeline
from asddim_lib.noise import NoiseSchedule
from asddim_lib.online import online
from asddim_lib.scheduler import ASDDIMScheduler
from asddim_lib.sensitivity import SensitivityProfile, fingerprint

_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
#: What the hub's unet/config.json and vae/config.json say of each.
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {
        "pixels": 512,
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)},
        "vae": {**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
    },
    "sdxl": {
        "pixels": 1024,
        "unet": {
            "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
    },
}  # fmt: skip
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
METHODS = ("ddim", "noise", "gradient", "combined", "online", "online-4")


def random_pipeline(model: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Pipeline:
    """The pipeline of `sd15` or `sdxl` with random weights and no text encoder: it takes embeddings. Raises ValueError for another name."""
    check(model in CONFIGS, "model", model, f"use one of {', '.join(CONFIGS)}")
    config = CONFIGS[model]
    with torch.device(device):
        unet, vae = UNet2DConditionModel(**config["unet"]).to(dtype).eval(), AutoencoderKL(**config["vae"]).to(dtype).eval()
    parts = {"vae": vae, "unet": unet, "scheduler": DDIMScheduler(**NOISE), "text_encoder": None, "tokenizer": None}
    if model == "sd15":
        pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    else:
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(model: str, count: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random text embeddings, given and without, as the pipeline takes them."""
    generator, width = torch.Generator().manual_seed(0), CONFIGS[model]["unet"]["cross_attention_dim"]
    shapes: dict[str, tuple[int, ...]] = {"prompt_embeds": (count, 77, width), "negative_prompt_embeds": (count, 77, width)}
    if model == "sdxl":
        shapes |= {"pooled_prompt_embeds": (count, 1280), "negative_pooled_prompt_embeds": (count, 1280)}
    return {name: torch.randn(shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}


def clock(
    model: str, *, steps: tuple[int, ...] = (20, 50, 100), methods: tuple[str, ...] = METHODS, repeats: int = 5, guidance_scale: float = 7.5, device: str = "cpu",
    dtype: torch.dtype = torch.float32, progress: Callable[[list], Iterable] = iter,
) -> pd.DataFrame:  # fmt: skip
    """`seconds_an_image` of the paper's network `model` at full size, with random weights. Raises ValueError for an unknown model or method."""
    pipe, size = random_pipeline(model, device, dtype), dict.fromkeys(("height", "width"), CONFIGS[model]["pixels"])
    what = {**embeddings(model, 1, device, dtype), **size, "guidance_scale": guidance_scale}
    return seconds_an_image(pipe, what, steps=steps, methods=methods, repeats=repeats, progress=progress).assign(model=model)


def seconds_an_image(
    pipe: Pipeline, what: dict[str, Any], *, steps: tuple[int, ...] = (20, 50, 100), methods: tuple[str, ...] = METHODS, repeats: int = 5,
    progress: Callable[[list], Iterable] = iter,
) -> pd.DataFrame:  # fmt: skip
    """Seconds an image of every method, one image at a time: a row a method, step count and repeat, with its network evaluations.

    `what` is handed to the pipeline: a prompt or embeddings, guidance_scale and so on. `ddim` is diffusers' own. The calibrated methods'
    profile is a made-up one, since only the grid hangs on it; `online` measures g by a backward derivative at every step, as the paper's
    algorithm does, and `online-4` at every fourth. Methods take turns, each count is warmed up first, and a picture counts as done when it lies
    in the CPU's memory. `network_seconds` are those of the network's forward passes, on a CPU; an accelerator runs on while Python does.
    Raises ValueError for an unknown method.
    """
    check(repeats >= 1, "repeats", repeats, "give at least 1")
    for method in methods:
        check(method in METHODS, "method", method, f"use some of {', '.join(METHODS)}")
    own, rows, spent = pipe.scheduler, [], [0.0]
    guided, begun_at = what.get("guidance_scale", 7.5) > 1, [0.0]

    def start(*_: Any) -> None:
        begun_at[0] = time.perf_counter()

    def stop(*_: Any) -> None:
        spent[0] += time.perf_counter() - begun_at[0]

    handles = [pipe.unet.register_forward_pre_hook(start), pipe.unet.register_forward_hook(stop)]
    try:
        for count, repeat, method in progress([(k, r, m) for k in steps for r in range(-1, repeats) for m in methods]):
            if method != "ddim":
                kind = "combined" if method.startswith("online") else method
                pipe.scheduler = ASDDIMScheduler.from_config(own.config, allocation=kind, profile=_made_up(pipe) if kind in ("gradient", "combined") else None)
            watched = online(pipe, every=4 if method == "online-4" else 1) if method.startswith("online") else nullcontext()
            with watched as record:
                begun, spent[0] = time.perf_counter(), 0.0
                pipe(**what, num_inference_steps=count, output_type="np", generator=torch.Generator().manual_seed(repeat))
                seconds = time.perf_counter() - begun
            pipe.scheduler = own
            if repeat >= 0:
                nfe = record.nfe if record else count * (2 if guided else 1)
                rows.append({"steps": count, "method": method, "repeat": repeat, "seconds": seconds, "network_seconds": spent[0], "nfe": nfe})
    finally:
        pipe.scheduler = own
        for handle in handles:
            handle.remove()
    return pd.DataFrame(rows)


def _made_up(pipe: Pipeline) -> dict[str, Any]:
    schedule = NoiseSchedule.from_config(pipe.scheduler)
    return SensitivityProfile([950, 500, 50], [1.0, 1.5, 4.0], [0.1] * 3, "frobenius", "vjp", 1, 1, 0, 7.5, "made up", fingerprint(schedule), 0).to_dict()
