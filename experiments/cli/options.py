"""Options that only the experiments' commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asddim_lib.cli.options import PROMPTS

Scale = Annotated[
    float, typer.Option(help="Classifier-free guidance scale; 0 or 1 turns guidance off.")
]
Scales = Annotated[
    str,
    typer.Option(
        "--guidance-scale",
        help="Classifier-free guidance scales, comma-separated; 0 or 1 turns guidance off.",
    ),
]
Tuning = Annotated[
    str, typer.Option(help="Prompts that grids and profiles are tuned on: a set as in --prompts.")
]
Steps = Annotated[str, typer.Option(help="Numbers of sampling steps, comma-separated.")]
Solvers = Annotated[
    str,
    typer.Option(help="Comma-separated: ddim, dpm++ (2M), unipc, euler (also for flow matching)."),
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
Prompts = Annotated[str, typer.Option(help=PROMPTS)]
Clip = Annotated[
    str | None,
    typer.Option(help="CLIP that scores pictures of your own prompts: a folder or a hub id."),
]
Folder = Annotated[Path, typer.Option(help="Folder for pictures, records and tables.")]
