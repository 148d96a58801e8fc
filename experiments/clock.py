"""The paper's clock (Tables 4–6): Stable Diffusion 1.5 and SDXL at full size, without weights.

The networks are built from their published configs. Time does not depend on the values of weights
or on the words of a prompt, so the weights are random, and the tokenizer is the bundled one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
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

from asddim_lib.calibration import calibrate
from asddim_lib.errors import check
from asddim_lib.evidence.profile import Profile
from asddim_lib.models.load import Pipeline, data_folder, device_of
from asddim_lib.schedulers.ddim import ASDDIMScheduler
from experiments.memory import Peak
from experiments.online import online

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
#: The config of each part, as in the hub's config.json files.
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
    """The pipeline of `sd15` or `sdxl` with random weights. Raises WrongUse for another name."""
    check(model in CONFIGS, "model", model, f"use one of {', '.join(CONFIGS)}")
    config = CONFIGS[model]
    encoders = (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection))
    with torch.device(device):
        modules: dict[str, Any] = {
            "unet": UNet2DConditionModel(**config["unet"]),
            "vae": AutoencoderKL(**config["vae"]),
        }
        for (name, kind), text in zip(encoders, config["text"], strict=False):
            modules[name] = kind(CLIPTextConfig(**text))
    parts = {name: module.to(dtype).eval() for name, module in modules.items()}
    folder = data_folder() / "model" / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=77)
    parts |= {"tokenizer": tokenizer, "scheduler": DDIMScheduler(**NOISE)}
    if model == "sd15":
        absent = {"safety_checker": None, "feature_extractor": None}
        pipe = StableDiffusionPipeline(**parts, **absent, requires_safety_checker=False)
    else:
        pipe = StableDiffusionXLPipeline(**parts, tokenizer_2=tokenizer, add_watermarker=False)
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
    """`seconds_an_image` of the paper's network `model` at full size, with random weights.

    `pixels` is the side of a picture, by default the model's own. Raises WrongUse for an unknown
    model or method, and for pixels that its autoencoder does not divide.
    """
    divides = pixels is None or (pixels >= 64 and pixels % 64 == 0)
    check(divides, "pixels", pixels, "give a multiple of 64")
    _check_turns(methods, repeats)  # before the networks are built, which takes a while
    pipe, side = random_pipeline(model, device, dtype), pixels or CONFIGS[model]["pixels"]
    what = {"prompt": PROMPT, "height": side, "width": side, "guidance_scale": guidance_scale}
    times = seconds_an_image(
        pipe, what, steps=steps, methods=methods, repeats=repeats, progress=progress
    )
    return times.assign(
        model=model,
        pixels=side,
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
    )


def seconds_an_image(
    pipe: Pipeline,
    what: dict[str, Any],
    *,
    steps: tuple[int, ...] = (20, 50, 100),
    methods: tuple[str, ...] = METHODS,
    repeats: int = 5,
    progress: Callable[[list], Iterable] = iter,
) -> pd.DataFrame:
    """Seconds per image of every method, one image at a time.

    One row per method, step count and repeat, with the network evaluations (`nfe`) and the peak
    memory (`megabytes`; see `Peak`). `what` goes to the pipeline: its prompt, guidance_scale and
    so on. `ddim` is that of diffusers. `online` measures g by a backward pass at every step, as
    the paper's algorithm does, and `online-4` at every fourth. Methods that need a profile share
    one, which `calibrate` measures on the path of one image: the first row, method `calibration`.

    Methods take turns, each time starting with another one, so that a drift of the machine favours
    none. Each is warmed up on two steps, and an image is done when it is in the CPU's memory.
    `network_seconds` is the time within the UNet, and `pass_seconds` the median of its passes,
    which other work on a shared machine hardly changes. Raises WrongUse for an unknown method.
    """
    _check_turns(methods, repeats)
    own, stopwatch, rows = pipe.scheduler, _Stopwatch(pipe), []
    profile = None
    try:
        _draw(pipe, what, 2, 0)
        if not {"ddim", "noise"}.issuperset(methods):
            cost, profile = stopwatch.time(lambda: _calibrate(pipe, what))
            count, nfe = len(profile.local_error["timesteps"]), profile.evaluations
            rows.append({"steps": count, "method": "calibration", "repeat": 0, **cost, "nfe": nfe})
        for count, repeat, method in progress(_turns(steps, methods, repeats)):
            row = _turn(pipe, what, stopwatch, profile, count, repeat, method)
            pipe.scheduler = own
            if repeat >= 0:
                rows.append(row)
    finally:
        pipe.scheduler = own
        stopwatch.remove()
    return pd.DataFrame(rows)


class _Stopwatch:
    """Times a call, and the passes of a pipeline's UNet within it."""

    def __init__(self, pipe: Pipeline) -> None:
        self._device, self._start = device_of(pipe), 0.0
        self._passes: list[float] = []
        unet = pipe.unet
        before, after = unet.register_forward_pre_hook, unet.register_forward_hook
        self._handles = [before(self._begin), after(self._end)]

    def _begin(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self._passes.append(time.perf_counter() - self._start)

    def time(self, call: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
        """The columns of a row, and what the call returns."""
        self._passes.clear()
        peak, start = Peak(self._device), time.perf_counter()
        result = call()
        cost = {
            "seconds": time.perf_counter() - start,
            "network_seconds": sum(self._passes),
            "pass_seconds": median(self._passes),
            "megabytes": peak.megabytes(),
        }
        return cost, result

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _turns(
    steps: tuple[int, ...], methods: tuple[str, ...], repeats: int
) -> list[tuple[int, int, str]]:
    """Step count, repeat and method of each image; repeat −1 is the warm-up."""
    return [
        (count, repeat, methods[(place + repeat) % len(methods)])
        for count in steps
        for repeat in range(-1, repeats)
        for place in range(len(methods))
    ]


def _turn(
    pipe: Pipeline,
    what: dict[str, Any],
    stopwatch: _Stopwatch,
    profile: Profile | None,
    count: int,
    repeat: int,
    method: str,
) -> dict[str, Any]:
    """Draws one image by a method: its row."""
    is_online = method.startswith("online")
    if method != "ddim":
        kind = "combined" if is_online else method
        evidence = profile.to_dict() if profile and kind != "noise" else None
        pipe.scheduler = ASDDIMScheduler.from_config(
            pipe.scheduler.config, allocation=kind, profile=evidence
        )
    every = 4 if method == "online-4" else 1
    with online(pipe, every=every) if is_online else nullcontext() as record:
        shown = min(count, 2) if repeat < 0 else count
        cost, _ = stopwatch.time(lambda: _draw(pipe, what, shown, repeat))
    guided = what.get("guidance_scale", 7.5) > 1
    nfe = record.nfe if record else count * (2 if guided else 1)
    return {"steps": count, "method": method, "repeat": repeat, **cost, "nfe": nfe}


def _draw(pipe: Pipeline, what: dict[str, Any], count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pipe(**what, num_inference_steps=count, output_type="np", generator=generator)


def _calibrate(pipe: Pipeline, what: dict[str, Any]) -> Profile:
    options = {key: value for key, value in what.items() if key != "prompt"}
    return calibrate(pipe, [what["prompt"]], estimator="path", **options)


def _check_turns(methods: tuple[str, ...], repeats: int) -> None:
    check(repeats >= 1, "repeats", repeats, "give at least 1")
    for method in methods:
        check(method in METHODS, "method", method, f"use some of {', '.join(METHODS)}")
