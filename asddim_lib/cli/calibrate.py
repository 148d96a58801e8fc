"""`asddim calibrate`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer

from asddim_lib.cache import cache_folder, check_writable
from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_file, say
from asddim_lib.errors import WrongUse, check, check_whole

#: Below this guidance scale the pictures of all densities but `local` won, on the bundled model.
MODERATE = 5


@opt.command
def calibrate(
    model: opt.ModelOptions,
    pictures: opt.CallOptions,
    out: str = typer.Argument(help="File for the profile (JSON)."),
    prompts: str = opt.PROMPTS,
    count: int | None = typer.Option(
        None, help="Number of prompts.", show_default="8, or 1 with --quick"
    ),
    num_steps: int = typer.Option(32, help="Number of timesteps along the measured path."),
    estimator: str = typer.Option(
        "",
        help="vjp, jvp, difference, path (costs nothing), or power (the spectral norm).",
        show_default="vjp, or path with --quick",
    ),
    adjoint_probes: int = typer.Option(
        0,
        help="Adjoint sweeps back along the path, which dual-weighted grids need. Each costs three "
        "evaluations per timestep.",
    ),
    feature_probes: int = typer.Option(
        0,
        help="Sweeps back from an image encoder, which feature-weighted grids need. Each costs "
        "three evaluations per timestep.",
    ),
    kappa_probes: int = typer.Option(
        0,
        help="Products with the network's derivative, about 6, by which the guidance plan "
        "capped-measured knows how long a step may be. Each costs two evaluations per timestep.",
    ),
    steps: int = typer.Option(
        8, help="Number of sampling steps whose stability is printed, with --kappa-probes."
    ),
    encoder: str = opt.ENCODER,
    quick: bool = typer.Option(
        False,
        "--quick",
        help="One prompt and the estimator path; it costs less than two pictures.",
    ),
    seed: int = opt.SEED,
    as_json: bool = opt.JSON,
) -> None:
    """Measures the model's sensitivity g(t) and each step's error along its path.

    The cache in your home keeps finished batches, so that measuring again costs
    nothing.

    Example: asddim calibrate profile.json --adjoint-probes 1
    """
    file, options = check_file(out), pictures.options()
    count = (1 if quick else 8) if count is None else count
    estimator = estimator or ("path" if quick else "vjp")
    norm = "spectral" if estimator == "power" else "frobenius"
    check_whole("num_steps", num_steps, 2, 1000)
    texts = model.texts(prompts, count)

    from asddim_lib import calibration
    from asddim_lib.models.load import check_seeds
    from asddim_lib.pipeline.run import Run

    ours = [name for name in options if name in inspect.signature(calibration.calibrate).parameters]
    remedy = f"{', '.join(ours)} is no option of a pipeline's call"
    check(not ours, "call", pictures.call, remedy)
    check_whole("steps", steps, 1, 1000)
    counts = adjoint_probes, feature_probes, kappa_probes
    calibration.Measurement(num_steps, norm, estimator, 1, *counts)
    calibration.check_encoder(encoder or None, feature_probes)
    check_seeds([seed])
    pipe = model.load()
    profile = calibration.calibrate(
        pipe,
        texts,
        guidance_scale=pictures.guidance_scale,
        num_steps=num_steps,
        norm=norm,
        estimator=estimator,
        adjoint_probes=adjoint_probes,
        feature_probes=feature_probes,
        kappa_probes=kappa_probes,
        encoder=encoder or None,
        seed=seed,
        truncate=pictures.truncate,
        cache=_cache(),
        **options,
    )
    profile.save(file)
    run = Run(pipe, texts[:1], None, pictures.guidance_scale, options=options, truncate=True)
    _show(out, profile, run, steps, as_json)


def _cache() -> Path | None:
    """The user's cache; none, after one line on stderr, if it cannot be written."""
    try:
        check_writable("cache", folder := cache_folder())
    except WrongUse as error:
        typer.echo(f"asddim: measured without a cache: {error}", err=True)
        return None
    return folder


def _stability(profile: Any, run: Any, steps: int) -> dict[str, Any]:
    """The scale of each of the scheduler's K steps, and the largest one that is stable."""
    import numpy as np

    from asddim_lib.grids.grid import sigmas
    from asddim_lib.guidance.plan import GuidancePlan
    from asddim_lib.guidance.steps import law_of
    from asddim_lib.levels import sigma_of

    solver, scale = law_of(run.pipe.scheduler), profile.kappa["scale"]
    if solver is None or scale <= 1:
        return {}
    grid = sigmas(run.pipe.scheduler, steps, mu=run.mu, shifted=True)
    levels = sigma_of(np.minimum(grid, 1.0)) if run.schedule.kind == "flow" else grid
    bears = GuidancePlan.capped(2.0, profile=profile).at(levels, scale, solver)
    return {"solver": solver, "scale": scale, "bears": [round(one, 2) for one in bears]}


def _said(stability: dict[str, Any]) -> str:
    """One line for people."""
    bears, scale = stability["bears"], stability["scale"]
    unstable = [k for k, one in enumerate(bears, 1) if one < scale]
    where = f"at guidance {scale:g}, {stability['solver']}, {len(bears)} steps"
    if not unstable:
        return f"{where}: all are stable"
    listed = ", ".join(f"{k} (up to {bears[k - 1]:g})" for k in unstable)
    return f"{where}: unstable are {listed}; draw with --guidance-plan capped-measured"


def _show(out: str, profile: Any, run: Any, steps: int, as_json: bool) -> None:
    """Prints what was measured, for which allocation, and what is known of its pictures."""
    from asddim_lib.tuning.proposals import DENSITIES

    kind = next(kind for kind in DENSITIES if kind in (profile.local_error or {}))
    allocation, scale = DENSITIES[kind], profile.guidance_scale
    p, lam, excess = profile.fit(run.schedule, kind=kind)
    known = profile.model == "bundled" and scale < MODERATE and kind != "local"
    value = {
        "profile": out,
        "evaluations": profile.evaluations,
        "prompts": profile.samples,
        "timesteps": len(profile.timesteps),
        "guidance_scale": scale,
        "options": profile.options,
        "dtype": profile.dtype,
        "allocation": allocation,
        "p": p,
        "lam": lam,
        "excess": excess,
        "mu": run.mu,
        "advice": allocation if known else None,
    }
    lines = [
        f"{out}: {profile.evaluations} network evaluations, timesteps {len(profile.timesteps)}, "
        f"of {profile.described()}",
        f"for --allocation {allocation}. The paper's combined grid, at its best p {p:.2f} and "
        f"lambda {lam:.2f}, is expected to err {excess:.2f} times as much",
    ]
    stability = _stability(profile, run, steps) if profile.kappa else {}
    if stability:
        value["stability"] = stability
        lines.append(_said(stability))
    if run.mu is not None:
        lines.append(f"mu {run.mu:.4g}, which depends on --width and --height")
    if known:
        lines.append(f"advice: use it; at guidance below {MODERATE} its pictures won on this model")
    else:
        lines.append("no advice: a smaller error is no better picture; verify with asddim tune")
    say(value, "\n".join(lines), as_json)
