"""`asddim export`."""

from __future__ import annotations

import json
from typing import Any

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
        "list). With a guidance plan: a module in Python, a workflow, or the list and a line for "
        "the script CFG Scheduling.",
    ),
    guidance_plan: str = typer.Option(
        "",
        help="A plan to write with the grid: capped, capped-measured (with --profile), "
        "interval-sdxl or another plan's name, or a folder with one.",
        show_default="none",
    ),
    guidance_scale: float | None = typer.Option(
        None,
        help="The guidance scale that the plan starts from.",
        show_default="7.5, or that of a tuned folder",
    ),
    solver: str = typer.Option(
        "",
        help="The solver whose steps a plan's cap is for: euler (also DDIM), dpm++ (2M), unipc, "
        "heun or ancestral.",
        show_default="that of the model's scheduler",
    ),
    listed: bool = typer.Option(
        False, "--list", help="Print every allocation, what it needs and what it does."
    ),
    as_json: bool = opt.JSON,
) -> None:
    """Prints a grid, or a guidance plan, for diffusers, ComfyUI or AUTOMATIC1111.

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
    for option, given in (("guidance_scale", guidance_scale), ("solver", solver or None)):
        check(bool(guidance_plan) or given is None, option, given, "give a guidance_plan, too")

    from asddim_lib.configs import completed, with_fixed_shift
    from asddim_lib.evidence.profile import Profile
    from asddim_lib.grids.grid import sigmas, timesteps
    from asddim_lib.grids.table import method_of
    from asddim_lib.guidance import elsewhere
    from asddim_lib.guidance.plan import check_scale, saved_or_named
    from asddim_lib.levels import Levels
    from asddim_lib.models.load import load_scheduler_config, tuned_setting

    config = with_fixed_shift(completed(load_scheduler_config(model)), mu)
    steps = steps or len(config.get("grid") or range(10))
    levels = Levels.from_diffusers(config)
    measured = Profile.load(profile, schedule=levels) if profile else None
    # The plan capped-measured may be all that the profile is for.
    unused = "measured" in guidance_plan and not (
        allocation and method_of(allocation).needs == "profile"
    )
    chosen: dict[str, Any] = {"allocation": allocation or None, "order": order}
    chosen["profile"] = None if unused else measured
    # Without an allocation a pipeline's scheduler sets the grid by itself.
    itself = bool(guidance_plan) and not allocation and "allocation" not in config
    others = form != "diffusers"
    values = sigmas(config, steps, shifted=others or itself, **chosen)
    values = [round(value, 6) for value in values]
    if others:
        values[-1] = 0.0  # their samplers end there
    grid: dict[str, Any] = {"num_inference_steps": steps} if itself else {}
    if levels.kind == "vp":
        grid["timesteps"] = timesteps(config, steps, **chosen)
    grid["sigmas"] = values
    text = json.dumps(values if others else grid)
    if guidance_plan:
        scale = tuned_setting(model).get("guidance_scale", 7.5)
        scale = scale if guidance_scale is None else guidance_scale
        check_scale("guidance_scale", scale)
        used = values if others or itself else sigmas(config, steps, shifted=True, **chosen)
        plan = saved_or_named(guidance_plan, "", measured)
        assert plan is not None
        text = elsewhere.written(form, plan, config, used, scale, solver or None, grid)
    elif form == "comfyui":
        text = elsewhere.listed(values)
    typer.echo(text)
    return None


def _list(as_json: bool) -> None:
    from asddim_lib.grids.table import METHODS

    table = [
        {"name": one.name, "needs": one.needs, "summary": one.summary} for one in METHODS.values()
    ]
    head = {"name": "method", "needs": "needs", "summary": "summary"}
    lines = ["{name:24}{needs:10}{summary}".format(**row) for row in (head, *table)]
    say(table, "\n".join(lines), as_json)
