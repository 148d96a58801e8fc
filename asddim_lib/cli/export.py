"""`asddim export`."""

from __future__ import annotations

import json

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import say
from asddim_lib.errors import check, check_whole

FORMATS = ("diffusers", "comfyui", "a1111")


def export(
    steps: int | None = typer.Option(
        None, help="Number of sampling steps.", show_default="10, or those of a saved grid"
    ),
    model: str = typer.Option(
        "bundled",
        help="As for the other commands, or a folder that tune wrote. Only its scheduler is read.",
    ),
    allocation: str = opt.ALLOCATION,
    order: int | None = typer.Option(
        None,
        help="Order of the solver that a grid of a measured density is for: 1, 2 or 3.",
        show_default="1",
    ),
    profile: str = opt.PROFILE,
    mu: float | None = typer.Option(
        None, help="The shift that FLUX and others compute from a picture's size."
    ),
    form: str = typer.Option(
        "diffusers",
        "--format",
        help="diffusers (JSON), comfyui (for ManualSigmas) or a1111 (for Extra Schedulers' custom "
        "list).",
    ),
    listed: bool = typer.Option(
        False, "--list", help="Print every allocation, what it needs and what it does."
    ),
    as_json: bool = opt.JSON,
) -> None:
    """Prints a grid for another program: diffusers, ComfyUI or AUTOMATIC1111.

    Sigmas of a flow-matching model are printed before the scheduler's shift for
    diffusers, which applies it, and after the shift for the others.

    Example: asddim export --steps 10 --format comfyui
    """
    if listed:
        return _list(as_json)
    check(form in FORMATS, "format", form, f"use one of {', '.join(FORMATS)}")
    remedy = "give what the pipeline computes, such as 1.15"
    check(mu is None or -20 <= mu <= 20, "mu", mu, remedy)
    if steps is not None:
        check_whole("steps", steps, 1, 1000)

    from asddim_lib.configs import completed, with_fixed_shift
    from asddim_lib.evidence.profile import Profile
    from asddim_lib.grids.grid import sigmas, timesteps
    from asddim_lib.levels import Levels
    from asddim_lib.models.load import load_scheduler_config

    config = with_fixed_shift(completed(load_scheduler_config(model)), mu)
    steps = steps or len(config.get("grid") or range(10))
    levels = Levels.from_diffusers(config)
    measured = Profile.load(profile, schedule=levels) if profile else None
    name, after = allocation or None, form != "diffusers"
    values = sigmas(config, steps, allocation=name, order=order, profile=measured, shifted=after)
    values = [round(value, 6) for value in values]
    if after:
        values[-1] = 0.0  # their samplers end there
    if form == "comfyui":
        typer.echo(", ".join(map(str, values)))
    elif form == "a1111":
        typer.echo(json.dumps(values))
    elif levels.kind != "vp":
        typer.echo(json.dumps({"sigmas": values}))
    else:
        grid = timesteps(config, steps, allocation=name, order=order, profile=measured)
        typer.echo(json.dumps({"timesteps": grid, "sigmas": values}))
    return None


def _list(as_json: bool) -> None:
    from asddim_lib.grids.table import METHODS

    table = [
        {"name": one.name, "needs": one.needs, "summary": one.summary} for one in METHODS.values()
    ]
    head = {"name": "method", "needs": "needs", "summary": "summary"}
    lines = ["{name:24}{needs:10}{summary}".format(**row) for row in (head, *table)]
    say(table, "\n".join(lines), as_json)
