"""What the experiments' commands share: their options, and how they run and print."""

from __future__ import annotations

from typing import Any, TypeVar

import typer

from asddim_lib.cli import options as opt
from asddim_lib.errors import WrongUse, check

Number = TypeVar("Number", int, float)

#: The defaults of a machine for records: their figures are of float32.
CPU = opt.ModelOptions(device="cpu", dtype="float32")
#: What --clip takes.
CLIP = "CLIP that scores pictures of your own prompts: a folder or a hub id."
FOLDER = "Folder for pictures, records and tables."
CHECKPOINT = typer.Option(
    "", help="Inception's checkpoint; torch-fidelity fetches it if no file is given."
)
PLAN = typer.Option(
    False, "--plan", help="Measure a few network evaluations; print the run's cost."
)


@opt.options
class PictureOptions:
    """Pictures"""

    prompts: str = typer.Option("bundled", help=opt.SOURCES)
    count: int = typer.Option(
        1000, help="Number of prompts; FID needs more than the judge's 192 features."
    )
    solvers: str = typer.Option(
        "ddim", help="Comma-separated: ddim, dpm++ (2M), unipc, euler (also for flow matching)."
    )
    steps: str = typer.Option("20,50,100", help="Numbers of sampling steps, comma-separated.")
    guidance_scales: str = typer.Option(
        "7.5",
        "--guidance-scale",
        help="Classifier-free guidance scales, comma-separated; 0 or 1 turns guidance off.",
    )
    reference_steps: int = typer.Option(
        0,
        help="Steps of a fine reference (DDIM, or Euler for flow matching) that each picture's "
        "distance is measured from; 0 for none.",
    )
    tuning_prompts: str = typer.Option(
        "bundled-tune", help="Prompts that grids and profiles are tuned on: a set as in --prompts."
    )
    clip: str | None = typer.Option(None, help=CLIP)
    batch_size: int = typer.Option(50, help="Number of pictures drawn at once.")
    truncate: bool = opt.TRUNCATE
    call: str = opt.CALL

    def setting(self, methods: str) -> Any:
        """The `Setting`. Raises WrongUse for a value that it refuses, or one given twice."""
        from experiments.setting import Setting

        return Setting(
            methods=opt.words("methods", methods),
            solvers=opt.words("solvers", self.solvers),
            steps=numbers("steps", self.steps, int),
            guidance_scales=numbers("guidance_scale", self.guidance_scales, float),
            reference_steps=self.reference_steps,
            tuning_prompts=self.tuning_prompts,
            batch_size=self.batch_size,
            truncate=self.truncate,
            call=self.call,
        )


@opt.options
class RealOptions:
    """Real pictures"""

    reference: str = typer.Option(
        "", help="Folder of real pictures, for FID and KID with Inception's features."
    )
    dinov2: str = typer.Option(
        "", help="Also with DINOv2's features: facebook/dinov2-large, or a folder."
    )
    inception: str = CHECKPOINT
    prepare: str = typer.Option(
        "paper",
        help="What Inception sees: paper (side 256, centre crop) or plain (torchmetrics' default).",
    )

    def encoders(self, device: str) -> list[Any]:
        """The encoders that compare pictures with real ones; none without a `reference`.

        Raises WrongUse for encoders without real pictures, and for a folder without any.
        """
        from asddim_lib.metrics.encoders import load_inception
        from asddim_lib.metrics.real import picture_files
        from experiments.dinov2 import load_dinov2

        if not self.reference:
            alone = bool(self.inception or self.dinov2)
            check(not alone, "reference", self.reference, "give a folder of real pictures, too")
            return []
        picture_files(self.reference)
        found = [load_inception(self.inception, self.prepare, device)]
        return [*found, load_dinov2(self.dinov2, device)] if self.dinov2 else found


def numbers(name: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """The numbers of a comma-separated list.

    Raises WrongUse for one that is repeated or no number of this kind.
    """
    remedy = f"give {'whole ' if kind is int else ''}numbers separated by commas"
    try:
        values = tuple(kind(item) for item in text.split(","))
    except ValueError as error:
        raise WrongUse(f"{name} is {text!r}; {remedy}") from error
    check(len(set(values)) == len(values), name, repr(text), "give each value once")
    return values


def text_of(table: Any, digits: int) -> str:
    """A data frame as text, its numbers with so many significant digits."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.{digits}g}")
