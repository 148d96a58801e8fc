"""Where pipelines come from: the bundled model, the paper's two, any folder or hub id."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asddim_lib.errors import check

#: Any diffusers pipeline: what one has depends on its class, so a type checker knows nothing of it.
Pipeline = Any

#: The paper's models: where the hub has them, and which revision.
HUB = {
    "sd15": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
    "sdxl": (
        "stabilityai/stable-diffusion-xl-base-1.0",
        "462165984030d82259a11f4367a4eed129e94a7b",
    ),
}

#: What can be had for less memory: how a pipeline is told, for a device. Tiles of one picture are decoded apart, and can show where they meet.
SAVERS: dict[str, Callable[[Pipeline, str], None]] = {
    "vae-slicing": lambda pipe, device: pipe.vae.enable_slicing(),
    "vae-tiling": lambda pipe, device: pipe.vae.enable_tiling(),
    "offload": lambda pipe, device: pipe.enable_model_cpu_offload(device=device),
}


def data_folder() -> Path:
    """The folder of the bundled model, prompts and reference features: in the installed package, or in the checkout."""
    installed = Path(__file__).parents[1] / "data"
    return installed if installed.exists() else Path(__file__).parents[2] / "data"


def load_scheduler_config(model: str | os.PathLike = "bundled") -> dict[str, Any]:
    """The scheduler config of `model`, as in `load_pipeline`, without its weights. Raises ValueError when there is none."""
    from diffusers import DDIMScheduler

    source, revision = _source(model)
    try:
        return dict(DDIMScheduler.load_config(source, subfolder="scheduler", revision=revision))
    except Exception as error:  # as in load_pipeline
        raise ValueError(
            f"model is {str(model)!r}, which has no scheduler config that could be read; give bundled, a folder or a hub id"
        ) from error


def load_pipeline(
    model: str | os.PathLike = "bundled",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    save_memory: Sequence[str] = (),
    **options: Any,
) -> Pipeline:
    """The diffusers pipeline of `model`: bundled, sd15, sdxl, a folder or a hub id, as `dtype` on `device`.

    `save_memory` holds any of vae-slicing (pictures are decoded one by one), vae-tiling (and each in tiles) and offload (each part lies on the
    device only while it runs, which needs an accelerator). Other options go to diffusers' `from_pretrained`. sd15 and sdxl come in a fixed
    revision. Convolutions are laid out channels last, which CPUs and tensor cores run faster.
    Raises ValueError with one line that says what to do when the weights are missing or damaged, or a switch is unknown.
    """
    from diffusers import DiffusionPipeline

    for switch in save_memory:
        check(switch in SAVERS, "save_memory", switch, f"use some of {', '.join(SAVERS)}")
    check(
        "offload" not in save_memory or device != "cpu",
        "save_memory",
        "offload on a CPU",
        "leave it out: all lies there anyway",
    )
    bundled, (source, revision) = str(model) == "bundled", _source(model)
    local = Path(source).exists()
    check(
        local or not bundled,
        "model",
        f"'bundled' (looked in {source})",
        "install asddim-lib again, or check the data folder out",
    )
    extra: dict[str, Any] = (
        {"safety_checker": None, "requires_safety_checker": False} if str(model) == "sd15" else {}
    )
    try:
        pipe = DiffusionPipeline.from_pretrained(
            source, dtype=dtype, use_safetensors=True, **{"revision": revision, **extra, **options}
        )
    except Exception as error:  # safetensors, JSON, hub and OS errors share no base, and all mean the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = (
            "its files are damaged; fetch the folder again"
            if local
            else f"fetch it once with `hf download {source}{f' --revision {revision}' if revision else ''}`"
        )
        raise ValueError(
            f"model is {str(model)!r}, which could not be loaded ({reason}); {remedy}"
        ) from error
    # transformers makes an empty tokenizer of an empty folder, and says nothing.
    words, known = (
        getattr(pipe, "tokenizer", None),
        getattr(getattr(pipe, "text_encoder", None), "config", None),
    )
    if words is not None and known is not None:
        whole = 2 * len(words) > known.vocab_size
        check(
            whole,
            "model",
            f"{str(model)!r}, whose tokenizer knows {len(words)} of {known.vocab_size} tokens",
            "its files are damaged; fetch the folder again",
        )
    for name in ("unet", "vae"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    # A profile and a record name their model by this, never by a path of one machine.
    pipe.register_to_config(
        _name_or_path=str(model),
        _revision=options.get("revision", revision),
        _save_memory=list(save_memory),
    )
    pipe = pipe if "offload" in save_memory else pipe.to(device)
    for switch in save_memory:
        SAVERS[switch](pipe, device)
    return pipe


def _source(model: str | os.PathLike) -> tuple[str, str | None]:
    """The folder or hub id of a model, and the revision where it is fixed."""
    return (
        (str(data_folder() / "model"), None)
        if str(model) == "bundled"
        else HUB.get(str(model), (str(model), None))
    )


def device_of(pipe: Pipeline) -> torch.device:
    """Where a pipeline computes, though its parts may wait elsewhere."""
    return pipe._execution_device


def network(pipe: Pipeline) -> Any:
    """What predicts: a pipeline's UNet, or its transformer."""
    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer


class QuickNetwork(nn.Module):
    """A pipeline's network that computes in bfloat16 and takes and gives float32; what else is asked of it, it passes on."""

    def __init__(self, network: nn.Module, compiled: bool = False) -> None:
        super().__init__()
        self.network = nn.Module.to(network, torch.bfloat16)
        self._call = torch.compile(self.network) if compiled else self.network

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(
        self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **rest: Any
    ) -> Any:
        found = self._call(sample.bfloat16(), timestep, encoder_hidden_states.bfloat16(), **rest)
        return (
            (found[0].float(),)
            if isinstance(found, tuple)
            else type(found)(sample=found.sample.float())
        )


def quicken(pipe: Pipeline, *, compiled: bool = False) -> Pipeline:
    """The pipeline with its UNet in bfloat16, and all else, the samples above all, still in float32: rounding does not add up over steps.

    That pays on GPUs, and on CPUs with AVX-512-BF16 or AMX (`lscpu` says so). `compiled` also compiles it, which needs a C++ compiler on a CPU
    and takes about a minute; it pays from some hundred pictures on. Changes the pipeline in place, and gives it back.
    """
    pipe.unet = QuickNetwork(pipe.unet, compiled)
    return pipe


def weights_hash(pipe: Pipeline) -> str:
    """A short name of all the pipeline's weights: equal for equal values, whatever their dtype or device."""
    digest = hashlib.sha256()
    for name in sorted(pipe.components):
        module = pipe.components[name]
        if isinstance(module, nn.Module):
            for key, value in sorted(module.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]
