"""`python -m experiments clock`."""

from __future__ import annotations

from pathlib import Path

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_file, rows, say
from experiments.cli.options import numbers


def clock(
    model: str = typer.Option("sd15", help="sd15 or sdxl: full size, with random weights."),
    out: Path = typer.Option(
        Path("clock.csv"), help="File for the times (CSV, one row per image)."
    ),
    steps: str = typer.Option("20,50,100", help="Numbers of sampling steps, comma-separated."),
    methods: str = typer.Option(
        "ddim,noise,gradient,combined,online",
        help="Comma-separated: ddim (diffusers' own), noise, gradient, combined, online, online-4.",
    ),
    repeats: int = typer.Option(5, help="Number of images of each method and step count."),
    pixels: int | None = typer.Option(
        None, help="Pixels per side; by default as many as the model was made for."
    ),
    guidance_scale: float = typer.Option(
        7.5, help="Classifier-free guidance scale; 0 or 1 turns guidance off."
    ),
    dtype: str = typer.Option("bfloat16", help=opt.DTYPE.help),
    device: str = typer.Option("cpu", help=opt.DEVICE.help),
    as_json: bool = opt.JSON,
) -> None:
    """Times the methods on the paper's networks (Tables 4-6); needs no weights.

    Example: python -m experiments clock --model sd15 --steps 20 --device cuda
    """
    check_file(str(out))
    counts, names = numbers("steps", steps, int), opt.words("methods", methods)
    from tqdm import tqdm

    from asddim_lib.cache import write_whole
    from experiments.clock import clock as measure

    times = measure(
        model,
        steps=counts,
        methods=names,
        repeats=repeats,
        pixels=pixels,
        guidance_scale=guidance_scale,
        dtype=opt.torch_dtype(dtype),
        device=device,
        progress=lambda waiting: tqdm(waiting, unit="image"),
    )
    write_whole(out, lambda part: times.to_csv(part, index=False))
    figures = {"nfe": "first", "seconds": ["median", "min", "max"], "megabytes": "max"}
    shown = times.groupby(["steps", "method"], sort=False)[list(figures)].agg(figures)
    text = shown.to_string(float_format=lambda value: f"{value:.3f}")
    say({"times": str(out), "rows": rows(times)}, text, as_json)
