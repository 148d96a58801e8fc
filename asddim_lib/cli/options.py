"""The options that commands share, and how their values are read."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, dataclass_transform, get_type_hints

import typer

from asddim_lib.errors import WrongUse, check, check_scale, check_whole

Kind = TypeVar("Kind")

#: The dtypes that networks run in.
DTYPES = ("auto", "float32", "float16", "bfloat16")
#: What --prompts takes.
SOURCES = (
    "bundled, bundled-tune, coco, drawbench, or a file: MS-COCO captions or a list (.json), "
    "a table (.csv, .tsv, .jsonl, .parquet), or text with one prompt per line."
)

ALLOCATION = typer.Option(
    "",
    help="Grid, by a name of `asddim export --list`.",
    show_default="that of the model's scheduler",
)
BATCH_SIZE = typer.Option(8, help="Number of pictures drawn at once.")
CALL = typer.Option(
    "", help='Other options of the pipeline\'s call: JSON such as \'{"negative_prompt": "blur"}\'.'
)
CHECK_ENCODER = typer.Option(
    "", help="A second image encoder: a grid that loses by it is not returned."
)
DEVICE = typer.Option(
    "auto", help="auto, cpu, cuda, cuda:1, mps, …; auto is CUDA, else MPS, else the CPU."
)
DTYPE = typer.Option(
    "auto",
    help=f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}; auto is float16 on an accelerator, "
    "else float32.",
)
ENCODER = typer.Option(
    "",
    help="Image encoder, a folder or hub id: CLIP, SigLIP or DINOv2.",
    show_default="the bundled CLIP for a bundled model, else CLIP ViT-L/14",
)
JSON = typer.Option(False, "--json", help="Print JSON instead of text.")
PROFILE = typer.Option("", help="Profile that `asddim calibrate` wrote.")
PROMPTS = typer.Option("", help=SOURCES, show_default="bundled-tune, a bundled model's")
SEED = typer.Option(0, help="Seed of the first picture's noise.")
STEPS = typer.Option(8, help="Number of sampling steps, 1 to 1000.")
TRUNCATE = typer.Option(
    False, "--truncate", help="Cut prompts that are too long instead of refusing them."
)


@dataclass_transform(frozen_default=True)
def options(kind: type[Kind]) -> type[Kind]:
    """A frozen dataclass of a class whose attributes are Typer's options, for `command`."""
    for name in kind.__annotations__:
        info = getattr(kind, name)
        setattr(kind, name, field(default=info.default, metadata={"info": info}))
    return dataclass(frozen=True)(kind)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A Typer command of a function that has classes of `options` among its parameters.

    Each field is an option of the command, under the class's docstring in the help. A parameter's
    default, an instance, has the defaults.
    """
    groups: dict[str, Any] = {}
    parameters = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind, keyword = parameter.annotation, parameter.replace(kind=parameter.KEYWORD_ONLY)
        if not is_dataclass(kind):
            parameters.append(keyword)
            continue
        groups[parameter.name], hints = kind, get_type_hints(kind)
        for one in fields(kind):
            info = copy(one.metadata["info"])
            info.default = getattr(parameter.default, one.name, one.default)
            info.rich_help_panel = kind.__doc__
            option = keyword.replace(name=one.name, default=info, annotation=hints[one.name])
            parameters.append(option)

    @functools.wraps(function)
    def grouped(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in fields(kind)})
        function(**given)

    grouped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    grouped.__annotations__ = {one.name: one.annotation for one in parameters}
    return grouped


@options
class ModelOptions:
    """Model and machine"""

    model: str = typer.Option(
        "bundled",
        help="bundled, bundled-flow, sd15, sdxl, sd3, flux, pixart, qwen-image, wan, a folder "
        "(also one that `asddim tune` wrote), a single file or a Hugging Face hub id.",
    )
    variant: str = typer.Option("", help="Variant of the weights' files, such as fp16.")
    pipeline_class: str = typer.Option(
        "", help="Class of a single file's pipeline, such as StableDiffusionPipeline."
    )
    device: str = DEVICE
    dtype: str = DTYPE
    save_memory: str = typer.Option(
        "", help="Ways to save memory, comma-separated: vae-slicing, vae-tiling, offload."
    )

    def load(self) -> Any:
        """The pipeline. Raises WrongUse as `load_pipeline` does."""
        savers = words("save_memory", self.save_memory) if self.save_memory else ()
        from asddim_lib.models import load

        device = load.best_device() if self.device == "auto" else self.device
        return load.load_pipeline(
            self.model,
            device=device,
            dtype=torch_dtype(self.dtype, device),
            save_memory=savers,
            pipeline_class=self.pipeline_class or None,
            variant=self.variant or None,
        )

    def texts(self, prompts: str, count: int) -> list[str]:
        """The first `count` prompts of a set; by default bundled-tune, of a bundled model alone.

        Raises WrongUse, before the model is loaded, if another model is given none.
        """
        from asddim_lib.models.load import BUNDLED, base_model
        from asddim_lib.models.prompts import load_prompts

        bundled = base_model(self.model) in BUNDLED
        remedy = "give a file of your prompts, one per line, or a name such as drawbench"
        check(bool(prompts) or bundled, "prompts", "not given", remedy)
        return list(load_prompts(prompts or "bundled-tune", count)["prompt"])


@options
class CallOptions:
    """Pictures"""

    guidance_scale: float | None = typer.Option(
        None,
        help="Classifier-free guidance scale; 0 or 1 turns guidance off.",
        show_default="the pipeline's; 3 for a bundled model",
    )
    width: int | None = typer.Option(None, help="Pixels.", show_default="the pipeline's")
    height: int | None = typer.Option(None, help="Pixels.", show_default="the pipeline's")
    call: str = CALL
    truncate: bool = TRUNCATE

    def options(self) -> dict[str, Any]:
        """The options of the pipeline's call. Raises WrongUse for a value that no call can take."""
        check_scale(self.guidance_scale)
        try:
            given = json.loads(self.call or "{}")
        except json.JSONDecodeError as error:
            raise WrongUse(f"call is {self.call!r}; give a JSON object ({error})") from error
        check(isinstance(given, dict), "call", self.call, "give a JSON object")
        for name in ("guidance_scale", "prompt", "num_inference_steps", "generator"):
            remedy = f"{name} is given by itself: leave it out here"
            check(name not in given, "call", self.call, remedy)
        size = {"width": self.width, "height": self.height}
        size = {name: pixels for name, pixels in size.items() if pixels is not None}
        for name, pixels in size.items():
            check_whole(name, pixels, 1)
        return given | size


def words(name: str, text: str) -> tuple[str, ...]:
    """The items of a comma-separated list. Raises WrongUse for an empty or repeated one."""
    items = tuple(item.strip() for item in text.split(","))
    check(all(items), name, repr(text), "give items separated by commas")
    check(len(set(items)) == len(items), name, repr(text), "give each value once")
    return items


def torch_dtype(name: str, device: str = "cpu") -> Any:
    """The torch dtype of this name on a device. Raises WrongUse for one not in `DTYPES`."""
    check(name in DTYPES, "dtype", name, f"use one of {', '.join(DTYPES)}")
    import torch

    if name == "auto":
        return torch.float32 if str(device).startswith("cpu") else torch.float16
    return getattr(torch, name)
