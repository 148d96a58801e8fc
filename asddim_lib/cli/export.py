"""`asddim export`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import Allocation, Json, Profile, check_steps
from asddim_lib.cli.output import say
from asddim_lib.errors import check

FORMATS = ("diffusers", "comfyui", "a1111")

ModelConfig = Annotated[
    str,
    typer.Option(
        "--model",
        help="As for the other commands, or a folder that tune wrote. Only its scheduler is read.",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Number of sampling steps.", show_default="10, or those of a saved grid"),
]
Order = Annotated[
    int | None,
    typer.Option(
        help="Order of the solver that a grid of a measured density is for: 1, 2 or 3.",
        show_default="1",
    ),
]
Mu = Annotated[
    float | None,
    typer.Option(help="The shift that FLUX and others compute from a picture's size."),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="diffusers (JSON), comfyui (for ManualSigmas) or "
        "a1111 (for Extra Schedulers' custom list).",
    ),
]
Listed = Annotated[
    bool, typer.Option("--list", help="Print every allocation, what it needs and what it does.")
]


def export(
    steps: Steps = None,
    model: ModelConfig = "bundled",
    allocation: Allocation = "",
    order: Order = None,
    profile: Profile = "",
    mu: Mu = None,
    form: Format = "diffusers",
    listed: Listed = False,
    as_json: Json = False,
) -> None:
    """Prints a grid for another program: diffusers, ComfyUI or AUTOMATIC1111.

    Without an allocation it is the grid of the model's own scheduler.

    Sigmas of a flow-matching model: for diffusers, as they are before the
    scheduler's own shift; for the others, as the solver uses them.

    Example: asddim export --steps 10 --format comfyui
    """
    if listed:
        return _list(as_json)
    check(form in FORMATS, "format", form, "use diffusers, comfyui or a1111")
    remedy = "give what the pipeline computes, such as 1.15"
    check(mu is None or -20 <= mu <= 20, "mu", mu, remedy)
    if steps is not None:
        check_steps(steps)

    from asddim_lib.grids.grid import sigmas
    from asddim_lib.levels import completed, with_fixed_shift
    from asddim_lib.models.load import load_scheduler_config

    config = with_fixed_shift(completed(load_scheduler_config(model)), mu)
    if steps is None:
        steps = len(config.get("grid") or range(10))
    how: dict[str, Any] = {"allocation": allocation or None, "order": order}
    how["profile"] = _read(profile, config)
    if form == "diffusers":
        typer.echo(json.dumps(_for_diffusers(config, steps, how)))
        return None
    levels = _rounded(sigmas(config, steps, shifted=True, **how))
    typer.echo(", ".join(map(str, levels)) if form == "comfyui" else json.dumps(levels))
    return None


def _list(as_json: bool) -> None:
    from asddim_lib.grids.table import METHODS

    table = [(method.name, method.needs, method.summary) for method in METHODS.values()]
    head = ("method", "needs", "summary")
    name, needs, _ = (max(map(len, column)) for column in zip(head, *table, strict=True))
    lines = [f"{row[0]:{name}}  {row[1]:{needs}}  {row[2]}" for row in (head, *table)]
    keys = ("name", "needs", "summary")
    say([dict(zip(keys, row, strict=True)) for row in table], "\n".join(lines), as_json)


def _read(profile: str, config: dict[str, Any]) -> Any:
    from asddim_lib.evidence.profile import Profile
    from asddim_lib.levels import Levels

    return Profile.load(profile, schedule=Levels.from_diffusers(config)) if profile else None


def _for_diffusers(config: dict[str, Any], steps: int, how: dict[str, Any]) -> dict[str, Any]:
    """What `set_timesteps` takes: sigmas, and timesteps where those are whole numbers."""
    from asddim_lib.grids.grid import sigmas, timesteps
    from asddim_lib.levels import Levels

    levels = {"sigmas": _rounded(sigmas(config, steps, **how))}
    if Levels.from_diffusers(config).kind != "vp":
        return levels
    return {"timesteps": timesteps(config, steps, **how), **levels}


def _rounded(levels: list[float]) -> list[float]:
    return [round(level, 6) for level in levels]
