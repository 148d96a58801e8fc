"""The paper's clock (Tables 4–6) without its weights: Stable Diffusion 1.5 and SDXL at full size, built from their published configs.

Time does not depend on the values of weights, so random ones will do. Nor does it depend on the words, so the bundled tokenizer serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import diffusers
import pandas as pd
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from asddim_lib.bench.memory import Peak
from asddim_lib.errors import check
from asddim_lib.measure.calibrate import calibrate
from asddim_lib.measure.online import online
from asddim_lib.models.load import Pipeline, data_folder, device_of
from asddim_lib.schedulers.asddim import ASDDIMScheduler

_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}
_CLIP_G = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
#: What the hub's config.json of each part says.
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": {
        "pixels": 512,
        "unet": {
            "sample_size": 64,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "block_out_channels": (320, 640, 1280, 1280),
        },
        "vae": {**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
        "text": (_CLIP_L,),
    },
    "sdxl": {
        "pixels": 1024,
        "unet": {
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        "vae": {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        "text": (_CLIP_L, _CLIP_G),
    },
}
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
METHODS = ("ddim", "noise", "gradient", "combined", "online", "online-4")
PROMPT = "a red sneaker on a grey ground"


def random_pipeline(
    model: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Pipeline:
    """The pipeline of `sd15` or `sdxl` with random weights. Raises ValueError for another name."""
    check(model in CONFIGS, "model", model, f"use one of {', '.join(CONFIGS)}")
    config = CONFIGS[model]
    with torch.device(device):
        made: dict[str, Any] = {
            "unet": UNet2DConditionModel(**config["unet"]),
            "vae": AutoencoderKL(**config["vae"]),
        }
        for name, kind, text in zip(
            ("text_encoder", "text_encoder_2"),
            (CLIPTextModel, CLIPTextModelWithProjection),
            config["text"],
            strict=False,
        ):
            made[name] = kind(CLIPTextConfig(**text))
    parts = {name: part.to(dtype).eval() for name, part in made.items()}
    words = CLIPTokenizer.from_pretrained(
        data_folder() / "model" / "tokenizer", model_max_length=77
    )
    parts |= {"tokenizer": words, "scheduler": DDIMScheduler(**NOISE)}
    if model == "sd15":
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        pipe = StableDiffusionXLPipeline(**parts, tokenizer_2=words, add_watermarker=False)
    for name in ("unet", "vae"):
        parts[name].to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clock(
    model: str,
    *,
    pixels: int | None = None,
    steps: tuple[int, ...] = (20, 50, 100),
    methods: tuple[str, ...] = METHODS,
    repeats: int = 5,
    guidance_scale: float = 7.5,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[list], Iterable] = iter,
) -> pd.DataFrame:
    """`seconds_an_image` of the paper's network `model` at full size, with random weights; `pixels` a side, or as many as it was made for.

    Raises ValueError for an unknown model or method, and for pixels that its autoencoder does not divide.
    """
    check(
        pixels is None or (pixels >= 64 and pixels % 64 == 0),
        "pixels",
        pixels,
        "give a multiple of 64",
    )
    _check_turns(methods, repeats)  # before the networks are built, which takes a while
    pipe, side = random_pipeline(model, device, dtype), pixels or CONFIGS[model]["pixels"]
    what = {"prompt": PROMPT, "height": side, "width": side, "guidance_scale": guidance_scale}
    found = seconds_an_image(
        pipe, what, steps=steps, methods=methods, repeats=repeats, progress=progress
    )
    where = {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    return found.assign(model=model, pixels=side, dtype=str(dtype).removeprefix("torch."), **where)


def seconds_an_image(
    pipe: Pipeline,
    what: dict[str, Any],
    *,
    steps: tuple[int, ...] = (20, 50, 100),
    methods: tuple[str, ...] = METHODS,
    repeats: int = 5,
    progress: Callable[[list], Iterable] = iter,
) -> pd.DataFrame:
    """Seconds an image of every method, one image at a time: a row a method, step count and repeat, with its network evaluations and the
    most memory that was held (`megabytes`; see `Peak`).

    `what` is handed to the pipeline: its prompt, guidance_scale and so on. `ddim` is diffusers' own. Methods that need a profile share one:
    `calibrate` makes it from the path of one picture, which is the first row (method `calibration`). `online` measures g by a backward
    derivative at every step, as the paper's algorithm does, and `online-4` at every fourth. Methods take turns, another one first each time,
    so that a drift of the machine favours none; each is warmed up on two steps, and a picture counts as done when it lies in the CPU's memory.
    `network_seconds` are those of the network's forward passes, on a CPU; an accelerator runs on while Python does. `pass_seconds` is the
    median of one of them, which a busy neighbour on a shared machine hardly moves.
    Raises ValueError for an unknown method.
    """
    _check_turns(methods, repeats)
    own, rows, profile, begun_at = pipe.scheduler, [], None, 0.0
    passes: list[float] = []
    guided = what.get("guidance_scale", 7.5) > 1

    def start(*_: Any) -> None:
        nonlocal begun_at
        begun_at = time.perf_counter()

    def stop(*_: Any) -> None:
        passes.append(time.perf_counter() - begun_at)

    def timed(draw: Callable[[], Any]) -> dict[str, Any]:
        passes.clear()
        peak, begun = Peak(device_of(pipe)), time.perf_counter()
        draw()
        seconds = time.perf_counter() - begun
        return {
            "seconds": seconds,
            "network_seconds": sum(passes),
            "pass_seconds": median(passes),
            "megabytes": peak.megabytes(),
        }

    def draw(count: int, repeat: int) -> None:
        pipe(
            **what,
            num_inference_steps=count,
            output_type="np",
            generator=torch.Generator().manual_seed(repeat),
        )

    def measure() -> None:
        nonlocal profile
        profile = calibrate(
            pipe,
            [what["prompt"]],
            estimator="path",
            **{key: value for key, value in what.items() if key != "prompt"},
        )

    handles = [pipe.unet.register_forward_pre_hook(start), pipe.unet.register_forward_hook(stop)]
    try:
        draw(2, 0)
        if not {"ddim", "noise"}.issuperset(methods):
            cost = timed(measure)
            assert profile is not None
            assert profile.local_error is not None
            rows.append(
                {
                    "steps": len(profile.local_error["timesteps"]),
                    "method": "calibration",
                    "repeat": 0,
                    **cost,
                    "nfe": profile.evaluations,
                }
            )
        turns = [
            (k, r, methods[(place + r) % len(methods)])
            for k in steps
            for r in range(-1, repeats)
            for place in range(len(methods))
        ]
        for count, repeat, method in progress(turns):
            if method != "ddim":
                kind = "combined" if method.startswith("online") else method
                held = profile.to_dict() if profile and kind != "noise" else None
                pipe.scheduler = ASDDIMScheduler.from_config(
                    own.config, allocation=kind, profile=held
                )
            watched = (
                online(pipe, every=4 if method == "online-4" else 1)
                if method.startswith("online")
                else nullcontext()
            )
            with watched as record:
                cost = timed(partial(draw, min(count, 2) if repeat < 0 else count, repeat))
            pipe.scheduler = own
            if repeat >= 0:
                nfe = record.nfe if record else count * (2 if guided else 1)
                rows.append(
                    {"steps": count, "method": method, "repeat": repeat, **cost, "nfe": nfe}
                )
    finally:
        pipe.scheduler = own
        for handle in handles:
            handle.remove()
    return pd.DataFrame(rows)


def _check_turns(methods: tuple[str, ...], repeats: int) -> None:
    check(repeats >= 1, "repeats", repeats, "give at least 1")
    for method in methods:
        check(method in METHODS, "method", method, f"use some of {', '.join(METHODS)}")
