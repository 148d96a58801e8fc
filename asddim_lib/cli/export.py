"""`asddim export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import Allocation, ModelConfig, Mu, Profile, StepCount

FORMATS = ("diffusers", "comfyui", "a1111")
Exponent = Annotated[
    float | None,
    typer.Option("--p", help="Exponent p of Eq 5.", show_default="the scheduler's own, or 0.5"),
]
Lambda = Annotated[
    float | None,
    typer.Option("--lam", help="λ of Eq 9.", show_default="the scheduler's own, or 1.0"),
]
Order = Annotated[
    int | None,
    typer.Option(
        help="Order of the solver that a grid of a measured density is for: 1, 2 or 3.",
        show_default="1",
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="diffusers (JSON), comfyui (for ManualSigmas) or "
        "a1111 (for Extra Schedulers' custom list).",
    ),
]


def export(
    steps: StepCount = 10,
    model: ModelConfig = "bundled",
    allocation: Allocation = "",
    p: Exponent = None,
    lam: Lambda = None,
    order: Order = None,
    profile: Profile = None,
    mu: Mu = None,
    form: Format = "diffusers",
) -> None:
    """Prints a grid for another program: diffusers, ComfyUI or AUTOMATIC1111.

    Without an allocation it is the grid that the model's own scheduler lays:
    the one that it holds, or that of its own allocation.

    Sigmas of a flow-matching model: for diffusers, as they are before the
    scheduler's own shift; for the others, as the solver really uses them.

    Example: asddim export --steps 10 --format comfyui
    """
    from asddim_lib.errors import check
    from asddim_lib.grids.grid import sigmas
    from asddim_lib.levels import completed, with_fixed_shift
    from asddim_lib.models.load import load_scheduler_config

    check(form in FORMATS, "format", form, "use diffusers, comfyui or a1111")
    config = with_fixed_shift(completed(load_scheduler_config(model)), mu)
    how: dict[str, Any] = {"allocation": allocation or None, "p": p, "lam": lam, "order": order}
    how["profile"] = _read(profile, config)
    if form == "diffusers":
        typer.echo(json.dumps(_for_diffusers(config, steps, how)))
        return
    levels = _rounded(sigmas(config, steps, shifted=True, **how))
    typer.echo(", ".join(map(str, levels)) if form == "comfyui" else json.dumps(levels))


def _read(profile: Path | None, config: dict[str, Any]) -> Any:
    from asddim_lib.evidence.profile import Profile
    from asddim_lib.levels import noise_schedule

    if profile is None:
        return None
    return Profile.load(profile, schedule=noise_schedule(config))


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
