"""The options that commands share, one alias each, and how their values are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from asddim_lib.errors import WrongUse, check

Number = TypeVar("Number", int, float)

#: The dtypes that networks run in.
DTYPES = ("float32", "float16", "bfloat16")

_MODEL = (
    "bundled, bundled-flow, sd15, sdxl, sd3, flux, pixart, qwen-image, wan, a folder, "
    "a single file or a Hugging Face hub id"
)
_GUIDANCE = "Classifier-free guidance scale; 0 or 1 turns guidance off"
_PROMPTS = (
    "bundled, bundled-tune, coco, drawbench, or a file: MS-COCO captions (.json), a table "
    "(.csv, .tsv, .jsonl, .parquet), or text with one prompt per line."
)

Model = Annotated[str, typer.Option(help=f"{_MODEL}.")]
ModelConfig = Annotated[
    str, typer.Option("--model", help=f"{_MODEL}. Only its scheduler config is read.")
]
Variant = Annotated[str, typer.Option(help="Variant of the weights' files, such as fp16.")]
PipelineClass = Annotated[
    str,
    typer.Option(help="Class of a single file's pipeline, such as StableDiffusionPipeline."),
]
Call = Annotated[
    str,
    typer.Option(
        "--call",
        help="Further options of the pipeline's call, a JSON object such as "
        '{"height": 512, "width": 512}.',
    ),
]
EncoderName = Annotated[
    str,
    typer.Option(
        help="A folder or hub id: CLIP, SigLIP or DINOv2.",
        show_default="the bundled CLIP for a bundled model, else CLIP ViT-L/14",
    ),
]
CheckEncoder = Annotated[
    str,
    typer.Option(
        help="Another encoder, which may object: a grid that loses by it is not handed out."
    ),
]
Mu = Annotated[
    float | None,
    typer.Option(help="The shift that a pipeline reckons from a picture's size, where it does."),
]
Scale = Annotated[float, typer.Option(help=f"{_GUIDANCE}.")]
Scales = Annotated[str, typer.Option("--guidance-scale", help=f"{_GUIDANCE}; comma-separated.")]
Prompts = Annotated[str, typer.Option(help=_PROMPTS)]
Tuning = Annotated[
    str,
    typer.Option(help="Prompts that grids and profiles are tuned on: a set as in --prompts."),
]
Count = Annotated[int, typer.Option(help="Number of prompts.")]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut prompts that are too long instead of refusing them.")
]
StepCount = Annotated[int, typer.Option(help="Number of sampling steps, 1 to 1000.")]
Steps = Annotated[str, typer.Option(help="Numbers of sampling steps, comma-separated.")]
Allocation = Annotated[
    str,
    typer.Option(
        help="Where the steps go, also instead of a held grid: {allocations}.",
        show_default="the model's own scheduler's grid or allocation",
    ),
]
Solver = Annotated[str, typer.Option(help="ddim, dpm++ (2M), unipc or euler.")]
Solvers = Annotated[
    str,
    typer.Option(help="Comma-separated: ddim, dpm++ (2M), unipc, euler (also for flow matching)."),
]
Profile = Annotated[Path | None, typer.Option(help="Profile that `asddim calibrate` wrote.")]
Override = Annotated[
    str,
    typer.Option(
        help="What may differ from what the profile was made for, comma-separated: "
        "model, schedule, guidance_scale."
    ),
]
Exponent = Annotated[float, typer.Option("--p", help="Exponent p of Eq 5.")]
Lambda = Annotated[float, typer.Option("--lam", help="λ of Eq 9.")]
Reading = Annotated[
    str, typer.Option(help="How Eqs 10-12 are understood: intent, density or literal.")
]
Reference = Annotated[
    int,
    typer.Option(
        help="Steps of a fine reference (DDIM, or Euler for flow matching) that each picture's "
        "distance is measured from; 0 for none."
    ),
]
Batch = Annotated[int, typer.Option(help="Number of pictures drawn at once.")]
Dtype = Annotated[str, typer.Option(help=f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …")]
Seed = Annotated[int, typer.Option(help="Seed of the first picture's noise.")]
Clip = Annotated[
    str | None,
    typer.Option(help="CLIP that scores pictures of your own prompts: a folder or a hub id."),
]
Savers = Annotated[
    str,
    typer.Option(help="Ways to save memory, comma-separated: vae-slicing, vae-tiling, offload."),
]
Folder = Annotated[Path, typer.Option(help="Folder for pictures, records and tables.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class Command(TyperCommand):
    """A command whose help fills in the lists of `LISTS`, which only `--help` needs to import."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for parameter in self.params:
            text = getattr(parameter, "help", None)
            for name, names in LISTS.items():
                if text and name in text:
                    text = text.replace(name, ", ".join(names()))
                    parameter.help = text  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def _allocations() -> tuple[str, ...]:
    from asddim_lib.grids.table import ALLOCATIONS

    return ALLOCATIONS


def _methods() -> tuple[str, ...]:
    from asddim_lib.grids.table import METHODS

    return tuple(METHODS)


#: What stands in a help text for a list from the library's table of methods.
LISTS: dict[str, Callable[[], tuple[str, ...]]] = {
    "{allocations}": _allocations,
    "{methods}": _methods,
}


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
    whole = "whole " if kind is int else ""
    remedy = f"give {whole}numbers separated by commas"
    try:
        values = tuple(kind(item) for item in text.split(","))
    except ValueError as error:
        raise WrongUse(f"{name} is {text!r}; {remedy}") from error
    check(all(map(math.isfinite, values)), name, repr(text), remedy)
    check(len(set(values)) == len(values), name, repr(text), "give each value once")
    return values


def refuse_given(context: typer.Context, names: tuple[str, ...], remedy: str) -> None:
    """Raises WrongUse for an option that the user gave, where a switch takes another value."""
    for name in names:
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        check(not given, name, context.params[name], remedy)


def overridden(text: str, profile: Path | None) -> tuple[str, ...]:
    """What a profile may be made for beside what it is used for.

    Raises WrongUse where there is none.
    """
    remedy = "there is no profile: leave it out, or give one"
    check(not text or profile is not None, "override", text, remedy)
    return words("override", text) if text else ()


def loading(variant: str, pipeline_class: str) -> dict[str, str]:
    """What `load_pipeline` is given of these options."""
    given = {"variant": variant, "pipeline_class": pipeline_class}
    return {name: value for name, value in given.items() if value}


def called(text: str) -> dict[str, Any]:
    """The options of a pipeline's call. Raises WrongUse for what is no JSON object."""
    from experiments.setting import Setting

    return Setting(call=text).options


def torch_dtype(name: str) -> Any:
    """The torch dtype of this name. Raises WrongUse for one that is not in `DTYPES`."""
    check(name in DTYPES, "dtype", name, f"use one of {', '.join(DTYPES)}")
    import torch

    return getattr(torch, name)
