"""Trains the bundled models: `python -m training clip|vae|judge|unet|clip-2|flow`.

Then `assemble` and `report`.
Each part goes on where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from asddim_lib.errors import WrongUse
from training import assembly, clip, flow, judge, report, unet, vae

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
Runs = Annotated[Path, typer.Option(help="Where checkpoints, logs and finished parts are kept.")]
Bf16 = Annotated[
    bool, typer.Option(help="Train under bfloat16 autocast: faster where the processor has it.")
]
Start = Annotated[
    Path | None,
    typer.Option(help="Folder of finished weights to train on, such as data/model/unet."),
]
RUNS = Path.home() / ".cache" / "asddim-runs"
DATA = Path(__file__).parents[1] / "data"


@app.callback()
def threads(threads: Annotated[int, typer.Option(help="Processor threads to use.")] = 2) -> None:
    torch.set_num_threads(threads)


@app.command("clip")
def train_clip(
    runs: Runs = RUNS, steps: int = 900, batch: int = 192, lr: float = 1.5e-3, seed: int = 1
) -> None:
    """Tokenizer and both CLIP towers, by contrast with near misses in every batch."""
    clip.train(**locals(), out=runs / "parts", name="clip")  # its parameters are these options


@app.command("clip-2")
def train_second_clip(
    runs: Runs = RUNS, steps: int = 600, batch: int = 128, lr: float = 1.5e-3, seed: int = 11
) -> None:
    """The second CLIP, whose text tower the flow-matching transformer has beside the first."""
    clip.train(**locals(), out=runs / "parts", name="clip_2")


@app.command("vae")
def train_vae(
    runs: Runs = RUNS,
    steps: int = 3200,
    batch: int = 16,
    lr: float = 2e-3,
    seed: int = 2,
    bf16: Bf16 = True,
    start: Start = None,
) -> None:
    """The autoencoder; with --start, its decoder only."""
    vae.train(**locals(), out=runs / "parts")


@app.command("judge")
def train_judge(
    runs: Runs = RUNS,
    steps: int = 2000,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 3,
    start: Start = None,
) -> None:
    """The judge, which no generator ever sees."""
    judge.train(**locals(), out=runs / "parts")


@app.command("unet")
def train_unet(
    runs: Runs = RUNS,
    steps: int = 4000,
    batch: int = 64,
    lr: float = 8e-4,
    seed: int = 4,
    pictures: int = 60_032,
    bf16: Bf16 = True,
    start: Start = None,
) -> None:
    """The UNet, on the latents of the finished autoencoder.

    A larger --steps goes on from a finished run.
    """
    unet.train(**locals(), out=runs / "parts")


@app.command("flow")
def train_flow(
    runs: Runs = RUNS,
    steps: int = 12_000,
    batch: int = 32,
    lr: float = 8e-4,
    seed: int = 5,
    pictures: int = 60_032,
    bf16: Bf16 = True,
    start: Start = None,
) -> None:
    """The flow-matching transformer, on the latents of the finished autoencoder."""
    flow.train(**locals(), out=runs / "parts")


@app.command("unpack")
def unpack(runs: Runs = RUNS, data: Path = DATA) -> None:
    """Puts the shipped autoencoder, tokenizer and text tower under --runs, to train from."""
    assembly.unpack(data, runs)


@app.command("assemble")
def assemble(runs: Runs = RUNS, data: Path = DATA) -> None:
    """Puts the parts into Stable Diffusion's folder format.

    Adds the prompts, the reference features and the records of the runs.
    """
    assembly.assemble(runs, data)


@app.command("assemble-flow")
def assemble_flow(runs: Runs = RUNS, data: Path = DATA) -> None:
    """Puts the flow-matching model into Stable Diffusion 3's folder format."""
    assembly.assemble_flow(runs, data)


@app.command("report")
def make_report(
    data: Path = DATA, prompts: int = 200, steps: int = 50, guidance_scale: float = 3.0
) -> None:
    """Measures the shipped parts on unseen photographs and prompts.

    Writes data/quality.json and data/samples.png.
    """
    report.report(data, prompts=prompts, steps=steps, guidance_scale=guidance_scale)


@app.command("report-flow")
def make_flow_report(
    data: Path = DATA, prompts: int = 200, steps: int = 50, guidance_scale: float = 3.0
) -> None:
    """Measures the shipped flow-matching model on unseen prompts.

    Writes data/quality_flow.json and data/samples_flow.png.
    """
    report.report_flow(data, prompts=prompts, steps=steps, guidance_scale=guidance_scale)


if __name__ == "__main__":
    try:
        app()
    except WrongUse as error:
        print(error, file=sys.stderr)
        sys.exit(2)
