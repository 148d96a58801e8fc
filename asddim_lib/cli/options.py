"""The options that commands share, one alias each, and how their values are read."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, TypeVar

import typer

from asddim_lib.errors import WrongUse, check

Number = TypeVar("Number", int, float)

#: The dtypes that networks run in.
DTYPES = ("auto", "float32", "float16", "bfloat16")
#: What --prompts takes.
PROMPTS = (
    "bundled, bundled-tune, coco, drawbench, or a file: MS-COCO captions or a list (.json), "
    "a table (.csv, .tsv, .jsonl, .parquet), or text with one prompt per line."
)

Model = Annotated[
    str,
    typer.Option(
        help="bundled, bundled-flow, sd15, sdxl, sd3, flux, pixart, qwen-image, wan, a folder "
        "(also one that `asddim tune` wrote), a single file or a Hugging Face hub id."
    ),
]
Variant = Annotated[str, typer.Option(help="Variant of the weights' files, such as fp16.")]
PipelineClass = Annotated[
    str, typer.Option(help="Class of a single file's pipeline, such as StableDiffusionPipeline.")
]
Call = Annotated[
    str,
    typer.Option(
        "--call",
        help='Other options of the pipeline\'s call: JSON such as \'{"negative_prompt": "blur"}\'.',
    ),
]
Pixels = Annotated[int | None, typer.Option(help="Pixels.", show_default="the pipeline's")]
EncoderName = Annotated[
    str,
    typer.Option(
        help="Image encoder, a folder or hub id: CLIP, SigLIP or DINOv2.",
        show_default="the bundled CLIP for a bundled model, else CLIP ViT-L/14",
    ),
]
CheckEncoder = Annotated[
    str, typer.Option(help="A second image encoder: a grid that loses by it is not returned.")
]
GoalName = Annotated[
    str,
    typer.Option(
        "--goal", help="Pictures are compared by their embedding (an image encoder's) or latents."
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="Classifier-free guidance scale; 0 or 1 turns guidance off.",
        show_default="the pipeline's; 3 for a bundled model",
    ),
]
Prompts = Annotated[str, typer.Option(help=PROMPTS, show_default="bundled-tune, a bundled model's")]
Count = Annotated[int, typer.Option(help="Number of prompts.")]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut prompts that are too long instead of refusing them.")
]
StepCount = Annotated[int, typer.Option(help="Number of sampling steps, 1 to 1000.")]
Allocation = Annotated[
    str,
    typer.Option(
        help="Grid, by a name of `asddim export --list`.",
        show_default="that of the model's scheduler",
    ),
]
Solver = Annotated[
    str,
    typer.Option(
        help="ddim, dpm++ (2M), unipc or euler.",
        show_default="the model's, or DDIM (Euler) where that takes no grid",
    ),
]
Profile = Annotated[str, typer.Option(help="Profile that `asddim calibrate` wrote.")]
Batch = Annotated[int, typer.Option(help="Number of pictures drawn at once.")]
Dtype = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}; auto is float16 on an accelerator, "
        "else float32."
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, …; auto is CUDA, else MPS, else the CPU.")
]
Seed = Annotated[int, typer.Option(help="Seed of the first picture's noise.")]
Savers = Annotated[
    str,
    typer.Option(help="Ways to save memory, comma-separated: vae-slicing, vae-tiling, offload."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def words(name: str, text: str) -> tuple[str, ...]:
    """The items of a comma-separated list. Raises WrongUse for an empty or repeated one."""
    items = tuple(item.strip() for item in text.split(","))
    check(all(items), name, repr(text), "give items separated by commas")
    check(len(set(items)) == len(items), name, repr(text), "give each value once")
    return items


def numbers(name: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """The numbers of a comma-separated list.

    Raises WrongUse for one that is repeated, infinite or no number of this kind.
    """
    remedy = f"give {'whole ' if kind is int else ''}numbers separated by commas"
    try:
        values = tuple(kind(item) for item in text.split(","))
    except ValueError as error:
        raise WrongUse(f"{name} is {text!r}; {remedy}") from error
    check(all(map(math.isfinite, values)), name, repr(text), remedy)
    check(len(set(values)) == len(values), name, repr(text), "give each value once")
    return values


def check_steps(steps: int, name: str = "steps") -> None:
    """Raises WrongUse for a number of steps out of range."""
    check(1 <= steps <= 1000, name, steps, "give a whole number, 1 to 1000")


def check_scale(guidance_scale: float | None) -> None:
    """Raises WrongUse for a guidance scale that is no number of at least 0."""
    good = guidance_scale is None or (math.isfinite(guidance_scale) and guidance_scale >= 0)
    remedy = "give a number of at least 0 (0 or 1 is no guidance)"
    check(good, "guidance_scale", guidance_scale, remedy)


def given(context: typer.Context, name: str) -> bool:
    """Whether the user gave an option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def instead_of_quick(context: typer.Context, *names: str) -> None:
    """Prints, in one line, which options of the user win over those of --quick."""
    kept = [f"{name} {context.params[name]}" for name in names if given(context, name)]
    if kept:
        typer.echo(f"asddim: --quick, but {', '.join(kept)} as given", err=True)


def called(text: str, width: int | None = None, height: int | None = None) -> dict[str, Any]:
    """The options of a pipeline's call. Raises WrongUse for anything but a JSON object of them."""
    try:
        options = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise WrongUse(f"call is {text!r}; give a JSON object ({error})") from error
    check(isinstance(options, dict), "call", text, "give a JSON object")
    for name in ("guidance_scale", "prompt", "num_inference_steps", "generator"):
        check(name not in options, "call", text, f"{name} is given by itself: leave it out here")
    for name, pixels in (("width", width), ("height", height)):
        if pixels is not None:
            check(pixels > 0, name, pixels, "give a number of pixels")
            options[name] = pixels
    return options


def torch_dtype(name: str, device: str = "cpu") -> Any:
    """The torch dtype of this name on a device. Raises WrongUse for one not in `DTYPES`."""
    check(name in DTYPES, "dtype", name, f"use one of {', '.join(DTYPES)}")
    import torch

    if name == "auto":
        return torch.float32 if str(device).startswith("cpu") else torch.float16
    return getattr(torch, name)


def load(
    model: str, device: str, dtype: str, save_memory: str, variant: str, pipeline_class: str
) -> Any:
    """The pipeline that these options name. Raises WrongUse as `load_pipeline` does."""
    savers = words("save_memory", save_memory) if save_memory else ()
    check(dtype in DTYPES, "dtype", dtype, f"use one of {', '.join(DTYPES)}")
    from asddim_lib.models import load as models

    place = models.best_device() if device == "auto" else device
    return models.load_pipeline(
        model,
        device=place,
        dtype=torch_dtype(dtype, place),
        save_memory=savers,
        pipeline_class=pipeline_class or None,
        variant=variant or None,
    )


def texts(prompts: str, model: str, count: int) -> list[str]:
    """The first `count` prompts of a set; by default bundled-tune, of a bundled model alone.

    Raises WrongUse, before the model is loaded, if another model is given none.
    """
    from asddim_lib.models.load import BUNDLED, base_model
    from asddim_lib.models.prompts import load_prompts

    bundled = base_model(model) in BUNDLED
    remedy = "give a file of your prompts, one per line, or a name such as drawbench"
    check(bool(prompts) or bundled, "prompts", "not given", remedy)
    return list(load_prompts(prompts or "bundled-tune", count)["prompt"])


def scale_of(pipe: Any, guidance_scale: float | None) -> float | None:
    """The guidance scale that was given, or the default of the pipeline."""
    from asddim_lib.pipeline.calls import default_scale

    return default_scale(pipe) if guidance_scale is None else guidance_scale
