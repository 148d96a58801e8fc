"""`python -m experiments mlperf`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import Batch, Count, Device, Dtype, Json, Model
from asddim_lib.cli.output import say
from experiments.cli.experiment import Experiment, report_failures
from experiments.cli.options import Folder

#: What MLPerf Inference accepts of SDXL: FID, and CLIP score in percent.
ACCEPTED = {"FID": (23.01, 23.95), "CLIP": (31.69, 31.81)}
#: The benchmark's protocol.
PROTOCOL: dict[str, Any] = {
    "methods": "ddim",
    "solvers": "euler",
    "steps": "20",
    "guidance_scales": "8",
    "prepare": "plain",
    "negative_prompt": "normal quality, low quality, worst quality, low res, blurry, nsfw, nude",
}

Captions = Annotated[str, typer.Option(help="The benchmark's captions, captions_source.tsv.")]
Latents = Annotated[
    str, typer.Option(help="The noise that all its pictures start from, latents.pt.")
]
Real = Annotated[
    str, typer.Option(help="Folder of the real pictures that its FID is from, MS-COCO's val2014.")
]
Scorer = Annotated[str, typer.Option(help="CLIP that scores the pictures: a folder or a hub id.")]
Checkpoint = Annotated[
    str,
    typer.Option(help="Inception's checkpoint; torch-fidelity fetches it if no file is given."),
]


def mlperf(
    prompts: Captions,
    latents: Latents,
    reference: Real,
    out: Folder = Path("results/mlperf"),
    model: Model = "sdxl",
    count: Count = 5000,
    clip: Scorer = "openai/clip-vit-base-patch32",
    inception: Checkpoint = "",
    batch_size: Batch = 8,
    device: Device = "cuda",
    dtype: Dtype = "float16",
    as_json: Json = False,
) -> None:
    """Draws and judges SDXL as MLPerf Inference does: a known answer for the whole chain.

    Exit code 1 if a figure lies outside the range that the benchmark's rules accept.

    Example: python -m experiments mlperf --prompts captions_source.tsv --latents latents.pt …
    """
    summary = Experiment(**locals(), **PROTOCOL).run()
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
