"""`python -m experiments clock`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asddim_lib.cli.options import Device, Dtype, Json, numbers, torch_dtype, words
from asddim_lib.cli.output import check_file, rows, say
from experiments.cli.options import Scale, Steps

Network = Annotated[
    str, typer.Option("--model", help="sd15 or sdxl: full size, with random weights.")
]
Out = Annotated[Path, typer.Option(help="File for the times (CSV, one row per image).")]
Methods = Annotated[
    str,
    typer.Option(
        help="Comma-separated: ddim (diffusers' own), noise, gradient, combined, online, online-4."
    ),
]
Repeats = Annotated[int, typer.Option(help="Number of images of each method and step count.")]
Pixels = Annotated[
    int | None, typer.Option(help="Pixels per side; by default as many as the model was made for.")
]


def clock(
    model: Network = "sd15",
    out: Out = Path("clock.csv"),
    steps: Steps = "20,50,100",
    methods: Methods = "ddim,noise,gradient,combined,online",
    repeats: Repeats = 5,
    pixels: Pixels = None,
    guidance_scale: Scale = 7.5,
    dtype: Dtype = "bfloat16",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Times the methods on the paper's networks (Tables 4-6); needs no weights.

    Example: python -m experiments clock --model sd15 --steps 20 --device cuda
    """
    check_file(str(out))
    counts, names = numbers("steps", steps, int), words("methods", methods)
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
        dtype=torch_dtype(dtype),
        device=device,
        progress=lambda waiting: tqdm(waiting, unit="image"),
    )
    write_whole(out, lambda part: times.to_csv(part, index=False))
    figures = {"nfe": "first", "seconds": ["median", "min", "max"], "megabytes": "max"}
    shown = times.groupby(["steps", "method"], sort=False)[list(figures)].agg(figures)
    text = shown.to_string(float_format=lambda value: f"{value:.3f}")
    say({"times": str(out), "rows": rows(times)}, text, as_json)
