"""`python -m experiments mlperf`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import say
from experiments.cli.experiment import report_failures, run
from experiments.cli.options import CHECKPOINT, FOLDER, PictureOptions, RealOptions

#: What MLPerf Inference accepts of SDXL: FID, and CLIP score in percent.
ACCEPTED = {"FID": (23.01, 23.95), "CLIP": (31.69, 31.81)}
SDXL = opt.ModelOptions("sdxl", device="cuda", dtype="float16")
NEGATIVE_PROMPT = "normal quality, low quality, worst quality, low res, blurry, nsfw, nude"


@opt.command
def mlperf(
    model: opt.ModelOptions = SDXL,
    prompts: str = typer.Option(..., help="The benchmark's captions, captions_source.tsv."),
    latents: str = typer.Option(
        ..., help="The noise that all its pictures start from, latents.pt."
    ),
    reference: str = typer.Option(
        ..., help="Folder of the real pictures that its FID is from, MS-COCO's val2014."
    ),
    out: Path = typer.Option(Path("results/mlperf"), help=FOLDER),
    count: int = typer.Option(5000, help="Number of prompts."),
    clip: str = typer.Option(
        "openai/clip-vit-base-patch32",
        help="CLIP that scores the pictures: a folder or a hub id.",
    ),
    inception: str = CHECKPOINT,
    batch_size: int = opt.BATCH_SIZE,
    as_json: bool = opt.JSON,
) -> None:
    """Draws and judges SDXL as MLPerf Inference does: a known answer for the whole chain.

    Exit code 1 if a figure lies outside the range that the benchmark's rules accept.

    Example: python -m experiments mlperf --prompts captions_source.tsv --latents latents.pt …
    """
    pictures = PictureOptions(
        prompts=prompts,
        count=count,
        solvers="euler",
        steps="20",
        guidance_scales="8",
        clip=clip,
        batch_size=batch_size,
    )
    setting = replace(pictures.setting("ddim"), negative_prompt=NEGATIVE_PROMPT, latents=latents)
    real = RealOptions(reference=reference, inception=inception, prepare="plain")
    summary = run(model, pictures, real, setting, out, as_json)
    right = _verdict(summary, as_json)
    report_failures(summary)
    raise typer.Exit(int(not right))


def _verdict(summary: Any, as_json: bool) -> bool:
    """Prints each figure beside its range; whether all lie within."""
    figures = {"FID": float(summary["inception_fid"][0]), "CLIP": 100 * float(summary["clip"][0])}
    right = {name: low <= figures[name] <= high for name, (low, high) in ACCEPTED.items()}
    lines = [
        f"{name} {figures[name]:.2f}, accepted {low} to {high}: "
        f"{'right' if right[name] else 'WRONG'}"
        for name, (low, high) in ACCEPTED.items()
    ]
    say({"figures": figures, "accepted": ACCEPTED, "right": right}, "\n".join(lines), as_json)
    return all(right.values())
