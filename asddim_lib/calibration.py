"""Measures a pipeline along its own sampling path: a profile of its sensitivity, or the path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asddim_lib.cache import check_writable, kept
from asddim_lib.digest import of_values
from asddim_lib.errors import check, check_whole
from asddim_lib.evidence.path import ORDERS, Trajectory, mean_shares, squares
from asddim_lib.evidence.profile import FEW, KINDS, Profile
from asddim_lib.grids.rules import uniform
from asddim_lib.levels import fingerprint
from asddim_lib.metrics.encoders import Encoder, encoder_for
from asddim_lib.models.calls import check_options
from asddim_lib.models.load import Pipeline, check_seeds, network
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.decoding import check_decodes, feature_directions
from asddim_lib.pipeline.manifest import described, of_pipeline
from asddim_lib.pipeline.recording import check_steps
from asddim_lib.pipeline.replay import REMEDY, Replay, check_replay
from asddim_lib.pipeline.run import Run, within_memory
from asddim_lib.progress import Progress, progress_line
from asddim_lib.schedulers.solvers import own_scheduler
from asddim_lib.sensitivity import COST, gradient_norm, largest_eigenvalue

#: The quantile over prompts of κ: a step should be stable for nearly all pictures.
KAPPA_QUANTILE = 0.9
#: Counts network evaluations that were just made.
Spent = Callable[[int], None]


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
    kappa_probes: int = 0,
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
    `kappa_probes` of about 6 also measure κ, which decides how long a guided step may be
    (`guidance.law`): so many products with ∂ε/∂x at each timestep, two evaluations each.
    Prompt i starts from the noise of seed `seed` + i; g is the mean over prompts. Prompts, batches,
    `truncate` and `options` (height, negative_prompt, …) are as in `Run`. Without a
    `guidance_scale` the pipeline's default counts (`calls.default_scale`). `progress` shows a line
    of the network evaluations spent, or is called with what is being done, those, and all.
    `shift_steps` is how many steps the grids will have, where a shift depends on it (FLUX.2).
    With a `cache` folder each batch is kept under a name made of all that it depends on, so that
    measuring again costs nothing and a stopped run goes on. The pipeline comes back as it was.
    Raises WrongUse for wrong prompts or numbers, an encoder of no use, a pipeline whose guidance
    cannot be replayed (where the estimator needs it), or a network output that is not finite.
    """
    check_options(pipe, options, signature(calibrate).parameters)
    check_encoder(encoder, feature_probes)
    check(norm in COST, "norm", norm, f"use one of {', '.join(COST)}")
    estimator = estimator or next(iter(COST[norm]))
    counts = probes, adjoint_probes, feature_probes, kappa_probes
    measurement = Measurement(num_steps, norm, estimator, *counts)
    if cache is not None:
        check_writable("cache", Path(cache))
    run = _run(pipe, prompts, seed, guidance_scale, batch_size, options, truncate, shift_steps)
    check_steps(run, num_steps)
    sees = encoder_for(pipe, encoder) if feature_probes else None
    return measure(run, measurement, sees, cache, progress)


def measure(
    run: Run,
    measurement: Measurement,
    encoder: Encoder | None = None,
    cache: str | os.PathLike | None = None,
    progress: bool | Progress = True,
) -> Profile:
    """`calibrate` of a run that is set up, by an encoder that is loaded."""
    measurement.check_replay(run.pipe)
    depends = measurement.numbers, encoder.identity if encoder else ""
    identity = of_values(of_pipeline(run.pipe), *depends) if cache is not None else ""
    parts, each = [], measurement.evaluations * run.evaluations_per_step // len(run.prompts)
    with _counted(progress, "measuring", each * len(run.prompts)) as spent:
        for batch in run.batches():
            part = run.part(batch)
            name = f"{of_values(identity, part.inputs)}.safetensors" if cache is not None else ""
            work = partial(_measured, measurement=measurement, encoder=encoder, spent=spent.add)
            alone = partial(within_memory, part, work, "measuring", REMEDY)
            parts.append(kept(None if cache is None else Path(cache) / name, alone))
            spent.add(each * batch.stop - spent.evaluations)  # as many as a kept part had cost
    return _profile(run, _joined(parts), measurement, encoder)


def check_encoder(encoder: str | Encoder | None, feature_probes: int) -> None:
    """Raises WrongUse for an encoder that no probe uses."""
    remedy = "without feature_probes it sees nothing: leave it out, or give feature_probes"
    needed = bool(feature_probes) or not encoder
    check(needed, "encoder", getattr(encoder, "name", encoder), remedy)


@dataclass(frozen=True)
class Measurement:
    """What is measured along a path: `calibrate`'s numbers.

    Raises WrongUse for an estimator of another norm, and for numbers out of range.
    """

    num_steps: int = 32
    norm: str = "frobenius"
    estimator: str = "vjp"
    probes: int = 1
    adjoint_probes: int = 0
    feature_probes: int = 0
    kappa_probes: int = 0

    def __post_init__(self) -> None:
        known = (*COST[self.norm], *(["path"] if self.norm == "frobenius" else []))
        remedy = f"for the {self.norm} norm use one of {', '.join(known)}"
        check(self.estimator in known, "estimator", self.estimator, remedy)
        check_whole("num_steps", self.num_steps, 2)
        check_whole("probes", self.probes, 1)
        check_whole("adjoint_probes", self.adjoint_probes, 0)
        check_whole("feature_probes", self.feature_probes, 0)
        check_whole("kappa_probes", self.kappa_probes, 0)

    def check_replay(self, pipe: Pipeline) -> None:
        """Raises WrongUse where the pipeline's network calls cannot be repeated for this."""
        if self.feature_probes:
            check_decodes(pipe)
        if self.adjoint_probes + self.feature_probes:
            check_replay(pipe, "adjoint")
        if self.estimator != "path":
            check_replay(pipe, self.estimator)
        if self.kappa_probes:
            check_replay(pipe, "difference")

    @property
    def numbers(self) -> dict[str, Any]:
        """What a kept batch's name depends on; later kinds of probes are left out if 0."""
        later = ("feature_probes", "kappa_probes")
        return {k: v for k, v in vars(self).items() if k not in later or v}

    @property
    def derivative(self) -> int:
        """Network evaluations of g and κ at one timestep; a derivative counts as two."""
        g = 0 if self.estimator == "path" else self.probes * COST[self.norm][self.estimator]
        return g + 2 * self.kappa_probes

    @property
    def evaluations(self) -> int:
        """Network evaluations for one prompt and one row of guidance.

        The path has `num_steps` + 1 points, and a sweep costs three a point. Feature probes draw
        the path once more.
        """
        points, sweeps = self.num_steps + 1, self.adjoint_probes + self.feature_probes
        drawn = points if self.feature_probes else 0
        return points * (1 + 3 * sweeps) + drawn + self.derivative * self.num_steps


class _Counter:
    """Network evaluations spent of a `total`, passed on to `progress` whenever some are added."""

    def __init__(self, doing: str, total: int, progress: Progress | None) -> None:
        self.doing, self.total, self.progress, self.evaluations = doing, total, progress, 0

    def add(self, evaluations: int) -> None:
        self.evaluations += evaluations
        if self.progress is not None:
            self.progress(self.doing, min(self.evaluations, self.total), self.total)


@contextmanager
def _counted(progress: bool | Progress, doing: str, total: int) -> Iterator[_Counter]:
    """A counter that shows a line, calls the caller's `progress`, or is silent."""
    if progress is True:
        with progress_line() as line:
            yield _Counter(doing, total, line)
    else:
        yield _Counter(doing, total, progress or None)


def _run(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    seed: int,
    guidance_scale: float | None,
    batch_size: int,
    options: dict[str, Any],
    truncate: bool,
    shift_steps: int | None,
) -> Run:
    """The run of some prompts, whose seeds follow one another."""
    texts, first = listed(prompts), check_seeds([seed])[0]
    seeds = range(first, first + len(texts))
    given = pipe, texts, seeds, guidance_scale, batch_size, options, truncate
    return Run(*given, shift_steps=shift_steps)


def _profile(
    run: Run, parts: dict[str, Tensor], measurement: Measurement, encoder: Encoder | None
) -> Profile:
    """The mean over prompts."""
    assert run.seeds is not None
    grid, g, count = parts["timesteps"].tolist(), parts["g"].double(), len(run.prompts)
    local: dict[str, Any] = {"timesteps": grid}
    for kind in KINDS:
        orders = [order for order in ORDERS if f"{kind}/{order}" in parts]
        shares = {str(o): mean_shares(parts[f"{kind}/{o}"], o).tolist() for o in orders}
        local |= {kind: shares} if shares else {}
    local |= {"encoder": encoder.name} if encoder else {}
    kappa = _kappa(run, parts, grid[: len(g)]) if measurement.kappa_probes else None
    # An image-to-image pipeline begins later, on a path of fewer points.
    spent = replace(measurement, num_steps=len(grid) - 1).evaluations * run.evaluations_per_step
    return Profile(
        timesteps=grid[: len(g)],
        g=g.mean(1).tolist(),
        stderr=(g.std(1) / count**0.5).tolist() if count > 1 else [None] * len(g),
        norm=measurement.norm,
        estimator=measurement.estimator,
        probes=measurement.probes,
        samples=count,
        seed=run.seeds[0],
        guidance_scale=float(run.options.get("guidance_scale", run.guidance_scale) or 0.0),
        model=str(getattr(run.pipe, "name_or_path", "")),
        schedule=fingerprint(run.schedule),
        evaluations=spent,
        local_error=local,
        prompts=list(run.prompts) if count <= FEW else of_values(run.prompts),
        options=described(run.options),
        dtype=str(network(run.pipe).dtype).removeprefix("torch."),
        kappa=kappa,
    )


def _kappa(run: Run, parts: dict[str, Tensor], grid: list[int]) -> dict[str, Any]:
    """What a profile says of κ."""
    scales = parts["scale"].unique().tolist()
    remedy = "kappa_probes need one: give the same everywhere, or leave them out"
    check(len(scales) == 1, "guidance_scale", ", ".join(map(str, scales)), remedy)
    values = parts["kappa"][: len(grid)].quantile(KAPPA_QUANTILE, dim=1)
    sigmas = run.schedule.finite_sigmas[grid]
    return {"scale": scales[0], "sigmas": sigmas.tolist(), "values": values.tolist()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The batches' parts as one."""
    first = parts[0]
    joined = {n: torch.cat([part[n] for part in parts], -1) for n in first if n != "timesteps"}
    return {"timesteps": first["timesteps"], **joined}


def _measured(
    run: Run, measurement: Measurement, encoder: Encoder | None, spent: Spent
) -> dict[str, Tensor]:
    """A run's part of a profile.

    `g` is timesteps × n. By order, each stretch has its squared errors: `local` (× n), `adjoint`
    and `feature` (× probes n).
    """
    batches = [run.part(batch) for batch in run.batches()]
    return _joined([_measured_batch(one, measurement, encoder, spent) for one in batches])


def _measured_batch(
    run: Run, measurement: Measurement, encoder: Encoder | None, spent: Spent
) -> dict[str, Tensor]:
    steps, schedule, rows = measurement.num_steps, run.schedule, []
    kappas: list[Tensor] = []
    scales: list[float] = []
    grid = uniform("trailing", len(schedule), steps)
    generator = run.generators(slice(0, 1))[0]
    along, whole = measurement.estimator == "path", slice(0, len(run.prompts))

    def measure(eps: Replay, x: Tensor, t: Tensor) -> None:
        if int(t) not in grid:
            return
        if measurement.kappa_probes:
            probes, starts = measurement.kappa_probes, run.generators(whole)
            value, _ = largest_eigenvalue(eps, x, t, probes=probes, generator=starts)
            # σ ∂ε/∂y, from ∂ε/∂x of the variance-preserving sample x = y / √(1 + σ²)
            kappas.append(value * schedule.variance[int(t)] ** 0.5)
            scales.append(round(eps.formula.scale or 1.0, 2))
        if not along:
            g, _ = gradient_norm(
                eps,
                x,
                t,
                norm=measurement.norm,
                estimator=measurement.estimator,
                probes=measurement.probes,
                generator=generator,
            )
            rows.append(g.cpu())
        spent(measurement.derivative * run.evaluations_per_step)

    directions = None
    if encoder is not None:  # of the path's end, as the encoder sees it: count × n × d
        ends = run.prepared_with(own_scheduler(run.pipe.scheduler)).ends(grid)
        spent((steps + 1) * run.evaluations_per_step)
        directions = feature_directions(run, ends, encoder, measurement.feature_probes)
    visit = measure if measurement.derivative else None
    carried = measurement.adjoint_probes
    path = run.path(steps, carried, visit, directions, spent)
    _check_finite(path, run)
    if along:
        changed, moved = (v.double().diff(dim=0).norm(dim=2) for v in (path.noises, path.samples))
        rows = list(changed / moved)
    parts = {"timesteps": torch.tensor(path.timesteps, device="cpu"), "g": torch.stack(rows)}
    if kappas:
        parts["kappa"] = torch.stack(kappas)
        parts["scale"] = torch.tensor(scales, dtype=torch.float64).expand(len(run.prompts), -1).T
    for order in (order for order in ORDERS if order < len(path.timesteps)):
        parts[f"local/{order}"] = squares(path, schedule, order)
        if path.adjoints is None:
            continue
        arrived, own = squares(path, schedule, order, carried=True), carried * len(run.prompts)
        if carried:
            parts[f"adjoint/{order}"] = arrived[:, :own]
        if encoder is not None:
            parts[f"feature/{order}"] = arrived[:, own:]
    return {name: part.contiguous() for name, part in parts.items()}  # as safetensors wants it


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
    measurement = Measurement(num_steps, estimator="path", adjoint_probes=adjoint_probes)
    measurement.check_replay(pipe)
    run = _run(pipe, prompts, seed, guidance_scale, batch_size, options, truncate, shift_steps)
    total = measurement.evaluations * run.evaluations_per_step
    with _counted(progress, "recording", total) as spent:
        return run.path(num_steps, adjoint_probes, spent=spent.add)
