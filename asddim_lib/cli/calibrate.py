"""`asddim calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import (
    Call,
    Count,
    Device,
    Dtype,
    Json,
    Model,
    PipelineClass,
    Prompts,
    Scale,
    Seed,
    Truncate,
    Variant,
    called,
    loading,
    refuse_given,
    torch_dtype,
)
from asddim_lib.cli.output import check_file, say

Out = Annotated[Path, typer.Argument(help="File for the profile (JSON).")]
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
EncoderName = Annotated[
    str,
    typer.Option(
        help="A folder or hub id: CLIP, SigLIP or DINOv2.",
        show_default="the bundled CLIP for a bundled model, else CLIP ViT-L/14",
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="One prompt, 32 timesteps, estimator path: cheaper than two pictures of 20 steps.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder of finished batches, which are reused.", show_default="~/.cache/asddim"
    ),
]


def calibrate(
    context: typer.Context,
    out: Out,
    model: Model = "bundled",
    prompts: Prompts = "bundled-tune",
    count: Count = 8,
    guidance_scale: Scale = 7.5,
    num_steps: PathSteps = 32,
    estimator: Estimator = "vjp",
    adjoint_probes: Probes = 0,
    feature_probes: FeatureProbes = 0,
    encoder: EncoderName = "",
    quick: Quick = False,
    call: Call = "",
    truncate: Truncate = False,
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    cache: Cache = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measures how sensitive the model is, g(t), and each step's error, along its own path.

    Example: asddim calibrate profile.json --guidance-scale 7.5
    """
    from tqdm import tqdm

    from asddim_lib.cache import CACHE
    from asddim_lib.calibration import calibrate as measure
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.models.prompts import load_prompts
    from asddim_lib.pipeline.run import Run

    check_file(out)
    if quick:
        count, num_steps, estimator = _quick(context)
    kind, options = torch_dtype(dtype), _options(call, measure)
    texts = list(load_prompts(prompts, count)["prompt"])
    pipe = load_pipeline(model, device=device, dtype=kind, **loading(variant, pipeline_class))
    how: dict[str, Any] = {"guidance_scale": guidance_scale, "num_steps": num_steps, "seed": seed}
    how |= {"estimator": estimator, "norm": "spectral" if estimator == "power" else "frobenius"}
    how |= {"adjoint_probes": adjoint_probes, "feature_probes": feature_probes}
    how |= {"encoder": encoder or None, "truncate": truncate, "cache": cache or CACHE}
    how |= {"progress": lambda batches: tqdm(batches, unit="batch"), **options}
    profile = measure(pipe, texts, **how)
    profile.save(out)
    schedule = Run(pipe, texts[:1], None, guidance_scale, options=options, truncate=True).schedule
    _show(out, profile, schedule, as_json)


def _quick(context: typer.Context) -> tuple[int, int, str]:
    """A quick measurement's prompts, steps and estimator. Refuses those that the user gave."""
    remedy = "--quick has 1 prompt, 32 timesteps, estimator path and no sweeps: leave one out"
    sweeps = ("adjoint_probes", "feature_probes", "encoder")
    refuse_given(context, ("count", "num_steps", "estimator", *sweeps), remedy)
    return 1, 32, "path"


def _options(call: str, measure: Any) -> dict[str, Any]:
    """The options of the pipeline's call. Refuses what `calibrate` would take for its own."""
    from inspect import signature

    from asddim_lib.errors import check

    options = called(call)
    own = ", ".join(name for name in signature(measure).parameters if name in options)
    check(not own, "call", call, f"{own} is no option of a pipeline's call: leave it out")
    return options


def _show(out: Path, profile: Any, schedule: Any, as_json: bool) -> None:
    """Prints what was measured, and which allocation the profile serves best."""
    names = {"seen": "feature-weighted", "carried": "dual-weighted", "made": "equidistributed"}
    kind = next(kind for kind in names if kind in (profile.local_error or {}))
    best = names[kind]
    p, lam, excess = profile.fit(schedule, kind=kind)
    value = {"profile": str(out), "evaluations": profile.evaluations, "prompts": profile.samples}
    value |= {"timesteps": len(profile.timesteps), "allocation": best}
    count = f"{profile.samples} prompt{'s' if profile.samples > 1 else ''}"
    text = (
        f"{out}: {profile.evaluations} network evaluations, {count}, "
        f"{len(profile.timesteps)} timesteps\n"
        f"use --allocation {best}; the paper's combined, at its best p {p:.2f} and "
        f"lambda {lam:.2f}, is expected to err {excess:.2f} times as much"
    )
    say(value | {"p": p, "lam": lam, "excess": excess}, text, as_json)
