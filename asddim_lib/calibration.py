"""Measures a pipeline along its own sampling path: a profile of its sensitivity, or the path."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from asddim_lib.cache import check_writable, kept
from asddim_lib.digest import of_values
from asddim_lib.errors import check, check_whole
from asddim_lib.evidence.path import ORDERS, Trajectory, mean_shares, squares
from asddim_lib.evidence.profile import KINDS, Profile
from asddim_lib.grids.rules import uniform
from asddim_lib.levels import fingerprint
from asddim_lib.metrics.encoders import Encoder, encoder_for
from asddim_lib.models.load import Pipeline, check_seeds, network
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.calls import check_options
from asddim_lib.pipeline.decoding import feature_directions
from asddim_lib.pipeline.manifest import of_pipeline
from asddim_lib.pipeline.recording import check_steps, record_path
from asddim_lib.pipeline.replay import REMEDY, Replay, check_replay
from asddim_lib.pipeline.run import Run, out_of_memory
from asddim_lib.schedulers.solvers import own_scheduler
from asddim_lib.sensitivity import COST, gradient_norm

log = logging.getLogger(__name__)

#: Passes the first numbers of batches on, and may show how far they are.
Progress = Callable[[range], Iterable[int]]


def calibrate(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    guidance_scale: float | None = None,
    num_steps: int = 32,
    norm: str = "frobenius",
    estimator: str | None = None,
    probes: int = 1,
    adjoint_probes: int = 0,
    feature_probes: int = 0,
    encoder: str | Encoder | None = None,
    batch_size: int = 8,
    seed: int = 0,
    truncate: bool = False,
    cache: str | os.PathLike | None = None,
    progress: bool | Progress = True,
    shift_steps: int | None = None,
    **options: Any,
) -> Profile:
    """Measures g(t) (Eq 8) of the guided prediction, and the error of DDIM's steps.

    The pipeline runs over `num_steps` evenly spaced timesteps. `norm`, `estimator` and `probes` are
    `gradient_norm`'s; the estimator `path` costs nothing and takes ‖Δε‖ / ‖Δx‖ between neighbouring
    timesteps. `adjoint_probes` sweeps also measure how much of each error reaches the picture, and
    `feature_probes` sweeps how much of it an image `encoder` sees there (`encoder_for`).
    Prompt i starts from the noise of seed `seed` + i; g is the mean over prompts. Prompts, batches,
    `truncate` and `options` (height, negative_prompt, …) are as in `Run`. Without a
    `guidance_scale` the pipeline's default counts (`calls.default_scale`). `progress` shows a bar.
    `shift_steps` is how many steps the grids will have, where a shift depends on it (FLUX.2).
    With a `cache` folder each batch is kept under a name made of all that it depends on, so that
    measuring again costs nothing and a stopped run goes on. The pipeline comes back as it was.
    Raises WrongUse for wrong prompts or numbers, an encoder of no use, a pipeline whose guidance
    cannot be replayed (where the estimator needs it), or a network output that is not finite.
    """
    check_options(pipe, options, signature(calibrate).parameters)
    check_probes(probes, adjoint_probes, feature_probes, encoder)
    estimator = _estimator(pipe, norm, estimator, adjoint_probes + feature_probes)
    if cache is not None:
        check_writable("cache", Path(cache))
    prompts, seed = listed(prompts), check_seeds([seed])[0]
    seeds = range(seed, seed + len(prompts))
    given = pipe, prompts, seeds, guidance_scale, batch_size, options, truncate
    run = Run(*given, shift_steps=shift_steps)
    check_steps(run, num_steps)
    sees = encoder_for(pipe, encoder) if feature_probes else None
    plan = Plan(num_steps, norm, estimator, probes, adjoint_probes, feature_probes, sees)
    identity = of_values(of_pipeline(pipe), *plan.identity) if cache is not None else ""
    parts = []
    for start in _shown(progress)(range(0, len(run.prompts), batch_size)):
        part = run.part(slice(start, start + batch_size))
        name = f"{of_values(identity, part.inputs)}.safetensors" if cache is not None else ""
        file = None if cache is None else Path(cache) / name
        parts.append(kept(file, partial(_within_memory, part, plan)))
    return _profile(run, _joined(parts), plan, seed)


@dataclass(frozen=True)
class Plan:
    """What is measured: `calibrate`'s arguments, checked."""

    num_steps: int
    norm: str
    estimator: str
    probes: int
    adjoint_probes: int
    feature_probes: int
    encoder: Encoder | None

    @property
    def identity(self) -> tuple[dict[str, Any], str]:
        """What a batch's result depends on besides its run: the numbers, and the encoder."""
        left = {"encoder"} if self.feature_probes else {"encoder", "feature_probes"}
        numbers = {name: value for name, value in vars(self).items() if name not in left}
        return numbers, self.encoder.identity if self.encoder else ""


def check_probes(
    probes: int, adjoint_probes: int, feature_probes: int, encoder: str | Encoder | None
) -> None:
    """Raises WrongUse for numbers of probes out of range, and for an encoder that no probe uses."""
    check_whole("probes", probes, 1)
    check_whole("adjoint_probes", adjoint_probes, 0)
    check_whole("feature_probes", feature_probes, 0)
    remedy = "without feature_probes it sees nothing: leave it out, or give feature_probes"
    needed = bool(feature_probes) or not encoder
    check(needed, "encoder", getattr(encoder, "name", encoder), remedy)


def _estimator(pipe: Pipeline, norm: str, estimator: str | None, sweeps: int) -> str:
    """The estimator, checked."""
    check(norm in COST, "norm", norm, f"use one of {', '.join(COST)}")
    method = estimator or next(iter(COST[norm]))
    known = (*COST[norm], *(["path"] if norm == "frobenius" else []))
    remedy = f"for the {norm} norm use one of {', '.join(known)}"
    check(method in known, "estimator", method, remedy)
    if sweeps:
        check_replay(pipe, "adjoint")
    if method != "path":
        check_replay(pipe, method)
    return method


def _shown(progress: bool | Progress) -> Progress:
    """A progress bar over batches, the caller's, or none."""
    if callable(progress):
        return progress
    return partial(tqdm, unit="batch", leave=False, disable=not progress)


def evaluations(
    num_steps: int,
    estimator: str = "vjp",
    *,
    norm: str = "frobenius",
    probes: int = 1,
    adjoint_probes: int = 0,
    feature_probes: int = 0,
) -> int:
    """Network evaluations of `calibrate` for one prompt and one row of guidance.

    The path has `num_steps` + 1 points. A derivative counts as two evaluations, so a sweep costs
    three a point. Feature probes draw the path once more.
    """
    points, sweeps = num_steps + 1, adjoint_probes + feature_probes
    derivative = 0 if estimator == "path" else probes * COST[norm][estimator] * num_steps
    return points * (1 + 3 * sweeps) + derivative + (points if feature_probes else 0)


def _profile(run: Run, parts: dict[str, Tensor], plan: Plan, seed: int) -> Profile:
    """The mean over prompts."""
    grid, g, count = parts["timesteps"].tolist(), parts["g"].double(), len(run.prompts)
    error = (g.std(1) / count**0.5).tolist() if count > 1 else [None] * len(g)
    local: dict[str, Any] = {"timesteps": grid}
    for kind in KINDS:
        orders = [order for order in ORDERS if f"{kind}/{order}" in parts]
        shares = {str(o): mean_shares(parts[f"{kind}/{o}"], o).tolist() for o in orders}
        local |= {kind: shares} if shares else {}
    local |= {"encoder": plan.encoder.name} if plan.encoder else {}
    each = evaluations(
        len(grid) - 1,
        plan.estimator,
        norm=plan.norm,
        probes=plan.probes,
        adjoint_probes=plan.adjoint_probes,
        feature_probes=plan.feature_probes,
    )
    return Profile(
        timesteps=grid[: len(g)],
        g=g.mean(1).tolist(),
        stderr=error,
        norm=plan.norm,
        estimator=plan.estimator,
        probes=plan.probes,
        samples=count,
        seed=seed,
        guidance_scale=float(run.guidance_scale or 0.0),
        model=str(getattr(run.pipe, "name_or_path", "")),
        schedule=fingerprint(run.schedule),
        evaluations=each * run.evaluations_per_step,
        local_error=local,
    )


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The batches' parts as one."""
    first = parts[0]
    joined = {n: torch.cat([part[n] for part in parts], -1) for n in first if n != "timesteps"}
    return {"timesteps": first["timesteps"], **joined}


def _within_memory(run: Run, plan: Plan) -> dict[str, Tensor]:
    """A batch's part; where memory runs out, of half as many prompts at a time, with a warning.

    Raises WrongUse where it does not suffice for the derivatives of one.
    """
    try:
        return _measured(run, plan)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
    count = len(run.prompts)
    remedy = f"the device has no memory for one prompt's derivatives ({reason}); {REMEDY}"
    check(count > 1, "batch_size", 1, remedy)
    text = "no memory to measure %d prompts at once (%s); measuring %d at once"
    log.warning(text, count, reason, count // 2)
    smaller = replace(run, batch_size=count // 2)
    return _joined([_within_memory(smaller.part(batch), plan) for batch in smaller.batches()])


def _measured(run: Run, plan: Plan) -> dict[str, Tensor]:
    """A batch's part of a profile.

    `g` is timesteps × n. By order, each stretch has its squared errors: `local` (× n), `adjoint`
    and `feature` (× probes n).
    """
    schedule, rows = run.schedule, []
    regular = set(uniform("trailing", len(schedule), plan.num_steps))
    generator = run.generators(slice(0, 1))[0]

    def measure(eps: Replay, x: Tensor, t: Tensor) -> None:
        if int(t) in regular:
            g, _ = gradient_norm(
                eps,
                x,
                t,
                norm=plan.norm,
                estimator=plan.estimator,
                probes=plan.probes,
                generator=generator,
            )
            rows.append(g.cpu())

    along = plan.estimator == "path"
    seen = _seen(run, plan) if plan.encoder else None
    path = run.path(plan.num_steps, plan.adjoint_probes, None if along else measure, seen)
    _check_finite(path, run)
    if along:
        changed, moved = (v.double().diff(dim=0).norm(dim=2) for v in (path.noises, path.samples))
        rows = list(changed / moved)
    parts = {"timesteps": torch.tensor(path.timesteps, device="cpu"), "g": torch.stack(rows)}
    for order in (order for order in ORDERS if order < len(path.timesteps)):
        parts[f"local/{order}"] = squares(path, schedule, order)
        if path.adjoints is None:
            continue
        arrived, carried = squares(path, schedule, order, carried=True), len(run.prompts)
        carried *= plan.adjoint_probes
        if plan.adjoint_probes:
            parts[f"adjoint/{order}"] = arrived[:, :carried]
        if plan.feature_probes:
            parts[f"feature/{order}"] = arrived[:, carried:]
    return {name: part.contiguous() for name, part in parts.items()}  # as safetensors wants it


def _seen(run: Run, plan: Plan) -> Tensor:
    """Directions of the path's end, as an image encoder sees it: count × n × d."""
    drawn = run.prepared_with(own_scheduler(run.pipe.scheduler))
    ends = drawn.ends(uniform("trailing", len(run.schedule), plan.num_steps))
    assert plan.encoder is not None
    return feature_directions(run, ends, plan.encoder, plan.feature_probes)


def _check_finite(path: Trajectory, run: Run) -> None:
    sound = path.noises.isfinite().all(2).all(1)
    if not bool(sound.all()):
        t = path.timesteps[int((~sound).nonzero()[0])]
        dtype = network(run.pipe).dtype
        remedy = "look at the sample there, or run it in float32"
        check(False, "network output", f"not finite at timestep {t} ({dtype})", remedy)


def record(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    guidance_scale: float | None = None,
    num_steps: int = 60,
    adjoint_probes: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    truncate: bool = False,
    progress: bool | Progress = True,
    shift_steps: int | None = None,
    **options: Any,
) -> Trajectory:
    """The pipeline's path (`Run.path`). The other arguments are `calibrate`'s."""
    check_options(pipe, options, signature(record).parameters)
    prompts, seed = listed(prompts), check_seeds([seed])[0]
    seeds = range(seed, seed + len(prompts))
    if adjoint_probes:
        check_replay(pipe, "adjoint")
    given = pipe, prompts, seeds, guidance_scale, batch_size, options, truncate
    run = Run(*given, shift_steps=shift_steps)
    return record_path(run, num_steps, adjoint_probes, progress=_shown(progress))
