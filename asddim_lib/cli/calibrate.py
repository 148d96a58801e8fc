"""`asddim calibrate`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from asddim_lib.cli.options import (
    Call,
    Count,
    Device,
    Dtype,
    EncoderName,
    Height,
    Json,
    Model,
    PipelineClass,
    Prompts,
    Savers,
    Scale,
    Seed,
    Truncate,
    Variant,
    Width,
    called,
    check_scale,
    check_steps,
    given,
    instead_of_quick,
    load,
    scale_of,
    texts,
)
from asddim_lib.cli.output import check_file, say
from asddim_lib.errors import WrongUse, check

#: The allocation that each kind of measured error serves, the most telling kind first.
ALLOCATIONS = {
    "feature": "feature-weighted",
    "adjoint": "dual-weighted",
    "local": "equidistributed",
}
#: Below this guidance the book found the last two kinds of use, on the bundled model.
MODERATE = 5

Out = Annotated[str, typer.Argument(help="File for the profile (JSON).")]
PathSteps = Annotated[int, typer.Option(help="Number of timesteps along the measured path.")]
Estimator = Annotated[
    str,
    typer.Option(help="vjp, jvp, difference, path (costs nothing), or power (the spectral norm)."),
]
Probes = Annotated[
    int,
    typer.Option(
        help="Adjoint sweeps back along the path, which dual-weighted grids need; "
        "each costs three evaluations per timestep."
    ),
]
FeatureProbes = Annotated[
    int,
    typer.Option(
        help="Sweeps of what an image encoder sees of each error, which feature-weighted grids "
        "need; each costs as much."
    ),
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="One prompt and the estimator path: less than two pictures."),
]


def calibrate(
    context: typer.Context,
    out: Out,
    model: Model = "bundled",
    prompts: Prompts = "",
    count: Count = 8,
    guidance_scale: Scale = None,
    num_steps: PathSteps = 32,
    estimator: Estimator = "vjp",
    adjoint_probes: Probes = 0,
    feature_probes: FeatureProbes = 0,
    encoder: EncoderName = "",
    quick: Quick = False,
    seed: Seed = 0,
    width: Width = None,
    height: Height = None,
    call: Call = "",
    truncate: Truncate = False,
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    save_memory: Savers = "",
    as_json: Json = False,
) -> None:
    """Measures how sensitive the model is, g(t), and each step's error, along its own path.

    Finished batches are kept in the user's cache, so that measuring again costs nothing.

    Example: asddim calibrate profile.json --adjoint-probes 1
    """
    file, options = check_file(out), called(call, width, height)
    if quick:
        count = count if given(context, "count") else 1
        estimator = estimator if given(context, "estimator") else "path"
        instead_of_quick(context, "count", "estimator")
    check_steps(num_steps, "num_steps")
    check_scale(guidance_scale)
    sentences = texts(prompts, model, count)

    from tqdm import tqdm

    from asddim_lib.calibration import calibrate as measure
    from asddim_lib.pipeline.run import Run

    reserved = [name for name in ("seed", "norm", "probes", "cache", "progress") if name in options]
    check(not reserved, "call", call, f"{', '.join(reserved)} is no option of a pipeline's call")
    pipe = load(model, device, dtype, save_memory, variant, pipeline_class)
    scale = scale_of(pipe, guidance_scale)
    profile = measure(
        pipe,
        sentences,
        guidance_scale=scale,
        num_steps=num_steps,
        norm="spectral" if estimator == "power" else "frobenius",
        estimator=estimator,
        adjoint_probes=adjoint_probes,
        feature_probes=feature_probes,
        encoder=encoder or None,
        seed=seed,
        truncate=truncate,
        cache=_cache(),
        progress=lambda batches: tqdm(batches, desc="measuring", unit="batch"),
        **options,
    )
    profile.save(file)
    run = Run(pipe, sentences[:1], None, scale, options=options, truncate=True)
    _show(out, profile, run, as_json)


def _cache() -> Any:
    """The user's cache; none, said in one line, where it cannot be written."""
    from asddim_lib.cache import cache_folder, check_writable

    try:
        check_writable("cache", folder := cache_folder())
    except WrongUse as error:
        typer.echo(f"asddim: measured without a cache: {error}", err=True)
        return None
    return folder


def _show(out: str, profile: Any, run: Any, as_json: bool) -> None:
    """Prints what was measured, for which allocation, and what is known of its pictures."""
    kind = next(kind for kind in ALLOCATIONS if kind in (profile.local_error or {}))
    allocation = ALLOCATIONS[kind]
    p, lam, excess = profile.fit(run.schedule, kind=kind)
    value = {"profile": out, "evaluations": profile.evaluations, "prompts": profile.samples}
    value |= {"timesteps": len(profile.timesteps), "guidance_scale": profile.guidance_scale}
    value |= {"allocation": allocation, "p": p, "lam": lam, "excess": excess, "mu": run.mu}
    lines = [
        f"{out}: {profile.evaluations} network evaluations, prompts {profile.samples}, "
        f"timesteps {len(profile.timesteps)}, guidance {profile.guidance_scale:g}",
        f"for --allocation {allocation}; the paper's combined, at its best p {p:.2f} and "
        f"lambda {lam:.2f}, is expected to err {excess:.2f} times as much",
    ]
    if run.mu is not None:
        lines.append(f"mu {run.mu:.4g}, which depends on --width and --height")
    known = profile.model == "bundled" and profile.guidance_scale < MODERATE and kind != "local"
    value["advice"] = allocation if known else None
    if known:
        lines.append(f"advice: use it; at guidance below {MODERATE} its pictures won on this model")
    else:
        lines.append("no advice: a smaller error is no better picture; verify with asddim tune")
    say(value, "\n".join(lines), as_json)
