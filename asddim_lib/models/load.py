"""Pipelines: the bundled model, the paper's two, any folder, file or hub id."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asddim_lib.cache import DamagedFile, sealed
from asddim_lib.errors import WrongUse, check, check_whole

#: Any diffusers pipeline. Its attributes depend on its class, so a type checker cannot know them.
Pipeline = Any

#: Models by a short name: the hub's id, with a fixed revision of the paper's two.
HUB = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5@451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0@462165984030d82259a11f4367a4eed129e94a7b",
    "sd3": "stabilityai/stable-diffusion-3.5-medium",
    "flux": "black-forest-labs/FLUX.1-dev",
    "pixart": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    "qwen-image": "Qwen/Qwen-Image",
    "wan": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
}
#: The models that come along, and their folders under the data.
BUNDLED = {"bundled": "model", "bundled-flow": "flow"}

#: Ways to save memory, each applied to a pipeline for a device. Tiles of a picture are decoded
#: separately, and their seams can show.
SAVERS: dict[str, Callable[[Pipeline, str], None]] = {
    "vae-slicing": lambda pipe, device: pipe.vae.enable_slicing(),
    "vae-tiling": lambda pipe, device: pipe.vae.enable_tiling(),
    "offload": lambda pipe, device: pipe.enable_model_cpu_offload(device=device),
}

_SINGLE_FILE = (".safetensors", ".ckpt")


def data_folder() -> Path:
    """The folder of the bundled models, prompts and reference features.

    It is that of the package `asddim_data`, or else of the checkout that this module is in. Raises
    WrongUse if there is neither.
    """
    package = importlib.util.find_spec("asddim_data")
    places = list(package.submodule_search_locations or []) if package else []
    for folder in [*(Path(place) for place in places), Path(__file__).parents[2] / "data"]:
        if (folder / "prompts.csv").is_file():
            return folder
    remedy = "run `pip install ./data` in a clone of this project"
    raise WrongUse(f"data is not installed (bundled models, prompts and features); {remedy}")


def best_device() -> str:
    """CUDA where there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def tuned_setting(model: str | os.PathLike) -> dict[str, Any]:
    """What the grid of a folder that `tune` wrote is for: model, steps, guidance_scale, …

    Empty for any other model. Raises WrongUse for a damaged folder.
    """
    file = Path(model) / "tune.json"
    if not file.is_file() or (Path(model) / "model_index.json").is_file():
        return {}
    try:
        return dict(sealed(file)["setting"])
    except (DamagedFile, KeyError, TypeError) as error:
        damaged = f"model is {str(model)!r}, whose tune.json is damaged"
        raise WrongUse(f"{damaged}; run the same asddim tune again") from error


def base_model(model: str | os.PathLike) -> str:
    """The model that a tuned folder is for; any other model's name as given."""
    return str(tuned_setting(model).get("model", model))


@contextmanager
def loading(argument: str, source: str, remedy: str) -> Iterator[None]:
    """Raises WrongUse, with the remedy, where what loads a source fails but for lack of memory."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors, JSON, hub and OS errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "install what it names" if isinstance(error, ImportError) else remedy
        raise WrongUse(
            f"{argument} is {source!r}, which could not be loaded ({reason}); {remedy}"
        ) from error


def load_scheduler_config(model: str | os.PathLike = "bundled") -> dict[str, Any]:
    """The scheduler config of `model`, named as for `load_pipeline`, without its weights.

    Raises WrongUse when there is none.
    """
    from diffusers import DDIMScheduler

    source, revision = _source(model)
    remedy = "give bundled, bundled-flow, a folder or a hub id with a scheduler's config"
    with loading("model", str(model), remedy):
        return dict(DDIMScheduler.load_config(source, subfolder="scheduler", revision=revision))


def load_pipeline(
    model: str | os.PathLike = "bundled",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    save_memory: Sequence[str] = (),
    pipeline_class: str | type | None = None,
    variant: str | None = None,
    **options: Any,
) -> Pipeline:
    """Loads the diffusers pipeline of `model`, as `dtype` on `device`.

    - `model`: bundled, bundled-flow, a name of `HUB` (sd15, sdxl, sd3, flux, pixart, qwen-image,
      wan), a folder, a hub id, or a single .safetensors or .ckpt file. sd15 and sdxl have a fixed
      revision. A folder that `tune` wrote gives the model that was tuned, with its new scheduler.
    - `pipeline_class`: the class of a single file's pipeline, or its name in diffusers.
    - `save_memory`: any of vae-slicing (pictures are decoded one by one), vae-tiling (each in
      tiles) and offload (each part is on the device only while it runs).
    - `variant` and `options`: as of diffusers' `from_pretrained` or `from_single_file`.

    Convolutions are stored channels last, which is faster on CPUs and tensor cores. Raises WrongUse
    if the weights are missing or damaged, a single file has no class, the device is not there, or a
    way to save memory is unknown.
    """
    for switch in save_memory:
        check(switch in SAVERS, "save_memory", switch, f"use some of {', '.join(SAVERS)}")
    needless = "offload" in save_memory and device == "cpu"
    check(not needless, "save_memory", "offload on a CPU", "leave it out: all parts are there")
    check_device(device)
    tuned, model = model, base_model(model)
    options = {**({"variant": variant} if variant else {}), **options}
    pipe = _load(model, dtype, pipeline_class, options)
    _check_tokenizer(pipe, model)
    for part in (getattr(pipe, name, None) for name in ("unet", "vae")):
        if part is not None:
            part.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    # Profiles and records name their model by this, never by a path on one machine.
    pipe.register_to_config(
        _name_or_path=model,
        _revision=options.get("revision", _source(model)[1]),
        _save_memory=list(save_memory),
    )
    pipe = pipe if "offload" in save_memory else pipe.to(device)
    for switch in save_memory:
        SAVERS[switch](pipe, device)
    if str(tuned) != model:
        pipe.scheduler = saved_scheduler(tuned)
    return pipe


def _source(model: str | os.PathLike) -> tuple[str, str | None]:
    """The folder, file or hub id of a model, and its revision where that is fixed."""
    if str(model) in BUNDLED:
        return str(data_folder() / BUNDLED[str(model)]), None
    if str(model) not in HUB:
        return str(model), None
    source, _, revision = HUB[str(model)].partition("@")
    return source, revision or None


def saved_scheduler(folder: str | os.PathLike, argument: str = "model") -> Any:
    """The scheduler saved in a folder or in its `scheduler`: one of ours, or of diffusers.

    Raises WrongUse, which names the argument, where there is none, or another's.
    """
    import diffusers

    from asddim_lib import schedulers

    direct = (Path(folder) / "scheduler_config.json").is_file()
    with loading(argument, str(folder), "give a folder that a scheduler was saved to"):
        inner = None if direct else "scheduler"
        config = diffusers.DDIMScheduler.load_config(folder, subfolder=inner)
        name = config["_class_name"]
    kind: Any = getattr(schedulers, name, None) or getattr(diffusers, name, None)
    remedy = f"its scheduler, {name}, is not diffusers': load the model itself, which has it"
    check(kind is not None, argument, repr(str(folder)), remedy)
    return kind.from_config(config)


def _load(name: str, dtype: torch.dtype, pipeline_class: Any, options: dict[str, Any]) -> Pipeline:
    """The pipeline of a name, as diffusers loads it."""
    import diffusers

    source, revision = _source(name)
    local = Path(source).exists() or name in BUNDLED
    defaults: dict[str, Any] = {"dtype": dtype}
    if source.endswith(_SINGLE_FILE) and not Path(source).is_dir():
        method = "from_single_file"
        remedy = "name its class, such as pipeline_class='StableDiffusionPipeline', or save it as "
        remedy += "a folder: pipe.save_pretrained(…)"
        check(pipeline_class is not None, "model", f"{source!r}, a single file", remedy)
        remedy = f"give the pipeline_class it was saved from, or fetch {source} again"
    else:
        method = "from_pretrained"
        defaults |= {"use_safetensors": True, "revision": revision, **_left_out(Path(source))}
        if name == "sd15":
            defaults |= {"safety_checker": None, "requires_safety_checker": False}
        fetch = f"hf download {source}" + (f" --revision {revision}" if revision else "")
        damaged = "its files are damaged; fetch the folder again"
        remedy = damaged if local else f"fetch it once with `{fetch}`"
    kind = pipeline_class or "DiffusionPipeline"
    kind = getattr(diffusers, kind, None) if isinstance(kind, str) else kind
    known = "give the name of a pipeline in diffusers, such as StableDiffusionPipeline"
    check(hasattr(kind, "from_pretrained"), "pipeline_class", pipeline_class, known)
    with loading("model", name, remedy):
        return getattr(kind, method)(source, **{**defaults, **options})


def _left_out(folder: Path) -> dict[str, None]:
    """The parts that a folder says it lacks, such as Stable Diffusion 3's T5.

    Without None for each of them diffusers raises.
    """
    try:
        parts = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # diffusers says what is wrong with it
        return {}
    return {name: None for name, part in parts.items() if part == [None, None]}


def _check_tokenizer(pipe: Pipeline, model: str) -> None:
    """Raises WrongUse for the empty tokenizer that transformers makes of an empty folder."""
    tokenizer = getattr(pipe, "tokenizer", None)
    config = getattr(getattr(pipe, "text_encoder", None), "config", None)
    if tokenizer is None or config is None:
        return
    value = f"{model!r}, whose tokenizer has {len(tokenizer)} of {config.vocab_size} tokens"
    remedy = "its files are damaged; fetch the folder again"
    check(2 * len(tokenizer) > config.vocab_size, "model", value, remedy)


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Seeds as Python's ints. Raises WrongUse for one that torch's generators do not take."""
    for seed in seeds:
        check_whole("seed", seed, -(2**63), 2**64 - 1)
    return tuple(map(int, seeds))


def check_device(device: str | torch.device) -> None:
    """Raises WrongUse for a device that torch does not know, or that this machine lacks."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:  # as torch's builds differ
        reason = str(error).splitlines()[0]
        raise WrongUse(
            f"device is {str(device)!r}, which cannot be used here ({reason}); "
            "use cpu, cuda, cuda:1 or mps, whichever this machine has"
        ) from error


def device_of(pipe: Pipeline) -> torch.device:
    """The device where a pipeline computes, even if its parts are offloaded."""
    return pipe._execution_device


def network(pipe: Pipeline) -> Any:
    """The network that predicts the noise: a pipeline's UNet or its transformer."""
    return networks(pipe)[0]


def networks(pipe: Pipeline) -> list[Any]:
    """All networks that predict the noise: mostly one.

    Wan 2.2 has another for low noise, and Ideogram 4 another for predictions without the prompt.
    """
    names = ("unet", "transformer", "transformer_2", "unconditional_transformer")
    parts = (getattr(pipe, name, None) for name in names)
    found = [part for part in parts if part is not None]
    check(bool(found), "pipe", type(pipe).__name__, "give a pipeline with a UNet or a transformer")
    return found
