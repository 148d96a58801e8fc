"""A run's own DDIM path, written down at `scheduler.step`, and the adjoint sweeps back over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.sensitivity import PRODUCTS
from asddim_lib.errors import check
from asddim_lib.evidence.adjoint import carry_back
from asddim_lib.evidence.trajectory import Trajectory
from asddim_lib.measure.replay import Capture, Replay
from asddim_lib.models.load import network
from asddim_lib.schedulers.laying import prepared
from asddim_lib.schedulers.recorder import RecorderScheduler, Visit

if TYPE_CHECKING:
    from asddim_lib.measure.run import Run

#: Takes ε as a function of sample and timestep, the samples, and their timestep.
Measure = Callable[[Replay, Tensor, Tensor], None]


def record_path(run: Run, steps: int, adjoint_probes: int, also: Measure | None) -> Trajectory:
    """What `Run.path` returns."""
    size = len(NoiseSchedule.from_config(run.pipe.scheduler))
    check(2 <= steps <= size, "num_steps", steps, f"give 2 to {size}")
    check(adjoint_probes >= 0, "adjoint_probes", adjoint_probes, "give at least 0")
    recorder = prepared(RecorderScheduler, run.pipe.scheduler, "sigma_min")
    plain = {"allocation": "trailing", "profile": None, "clip_sample": False}
    recorder.register_to_config(**plain, thresholding=False)
    with torch.inference_mode(False), torch.no_grad(), frozen(network(run.pipe)):
        parts = [
            _record_batch(run, batch, recorder, steps, adjoint_probes, also)
            for batch in run.batches()
        ]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], -2)

    adjoints = joined("adjoints") if adjoint_probes else None
    ends, noises = joined("end"), joined("noises")
    return replace(parts[0], samples=joined("samples"), noises=noises, end=ends, adjoints=adjoints)


def _record_batch(
    run: Run, batch: slice, recorder: Any, steps: int, probes: int, also: Measure | None
) -> Trajectory:
    replays: list[Replay] = []
    capture = Capture(run.pipe) if probes or also else None

    def visited(visit: Visit) -> None:
        if capture is None:
            return
        replay = Replay(run.pipe, capture, visit, recorder.alpha_at(visit))
        if probes:
            replays.append(replay)
        if also is not None:
            also(replay, visit.sample, torch.tensor(visit.timestep))

    recorder.start(visited)
    generators = run.generators(batch)
    try:
        how = {"num_inference_steps": steps, "output_type": "latent"}
        end = run.call(batch, recorder, generators, **how)
    finally:
        if capture is not None:
            capture.remove()
    path = _trajectory(recorder, end)
    if not probes:
        return path
    sigmas = path.sigmas(NoiseSchedule.from_config(run.pipe.scheduler))
    sweeps = [_sweep(replays, recorder.visits, sigmas, generators) for _ in range(probes)]
    return replace(path, adjoints=torch.stack(sweeps))


def _trajectory(recorder: Any, end: Tensor) -> Trajectory:
    samples, noises = (
        torch.stack([getattr(visit, name).flatten(1).cpu() for visit in recorder.visits])
        for name in ("sample", "epsilon")
    )
    timesteps = [visit.timestep for visit in recorder.visits]
    end = end.flatten(1).cpu()
    return Trajectory(timesteps, samples, noises, end, float(recorder.final_alpha_cumprod))


def _sweep(
    replays: list[Replay], visits: list[Visit], sigmas: Tensor, generators: list[torch.Generator]
) -> Tensor:
    """One sweep back over a batch's path, along a random direction per image: N × n × d."""
    like = visits[0].sample
    shape = (1, *like.shape[1:])
    probe = torch.cat([torch.randn(shape, generator=one) for one in generators]).to(like)

    def transpose(k: int, v: Tensor) -> Tensor:
        return PRODUCTS["vjp"](replays[k], visits[k].sample, torch.tensor(visits[k].timestep), v)

    return carry_back(sigmas, transpose, probe).flatten(2).cpu()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within it, derivatives are with respect to samples alone."""
    thawed = [p for p in module.parameters() if p.requires_grad and not p.is_inference()]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)
