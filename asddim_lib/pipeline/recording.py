"""A run's own DDIM path, written down at `scheduler.step`, and the adjoint sweeps back over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory, carry_back
from asddim_lib.levels import Levels, completed, fingerprint
from asddim_lib.pipeline.calls import one_step_more
from asddim_lib.pipeline.recorder import FlowRecorderScheduler, RecorderScheduler, Visit
from asddim_lib.pipeline.replay import Capture, Replay, replayed
from asddim_lib.schedulers.place import drawing
from asddim_lib.sensitivity import PRODUCTS

if TYPE_CHECKING:
    from asddim_lib.pipeline.run import Run

#: Takes ε as a function of sample and timestep, the samples, and their timestep.
Measure = Callable[[Replay, Tensor, Tensor], None]


@dataclass(frozen=True)
class Probes:
    """The directions of a path's end to sweep back from: `count` random ones, then `given` ones.

    Those are … × n × d, for all prompts of a run.
    """

    count: int
    given: Tensor | None = None

    def __bool__(self) -> bool:
        return self.count > 0 or self.given is not None

    def of(self, batch: slice, like: Tensor, generators: list[torch.Generator]) -> Iterator[Tensor]:
        """Those of a batch, each in the shape of its samples."""
        shape = (1, *like.shape[1:])
        for _ in range(self.count):
            yield torch.cat([torch.randn(shape, generator=one) for one in generators]).to(like)
        for probe in [] if self.given is None else self.given[:, batch]:
            yield probe.reshape(like.shape).to(like)


def check_steps(run: Run, steps: int) -> None:
    """Raises WrongUse for a number of points that a path cannot have."""
    size = int(completed(run.pipe.scheduler).get("num_train_timesteps", 1000))
    whole = isinstance(steps, (int, np.integer)) and 2 <= steps <= size
    check(whole, "num_steps", steps, f"give 2 to {size}")


def record_path(
    run: Run,
    steps: int,
    probes: Probes,
    also: Measure | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Trajectory:
    """What `Run.path` returns; `progress` passes the first prompts of batches on."""
    check_steps(run, steps)
    check(probes.count >= 0, "adjoint_probes", probes.count, "give at least 0")
    recorder = _recorder(run)
    with torch.inference_mode(False), torch.no_grad(), frozen(replayed(run.pipe)):
        count, size = len(run.prompts), run.batch_size
        batches = (
            slice(start, min(start + size, count)) for start in progress(range(0, count, size))
        )
        parts = [_record_batch(run, batch, recorder, steps, probes, also) for batch in batches]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], -2)

    adjoints = joined("adjoints") if probes else None
    ends, noises = joined("end"), joined("noises")
    made = replace(parts[0], samples=joined("samples"), noises=noises, end=ends)
    return replace(made, adjoints=adjoints, schedule=fingerprint(run.schedule))


def _recorder(run: Run) -> Any:
    """The scheduler that records a run: it changes nothing on the way, and clips nothing."""
    source = run.config
    kind = Levels.from_diffusers(source).kind
    remedy = "its path is not recorded: use a variance-preserving or flow-matching one"
    check(kind in ("vp", "flow"), "pipe.scheduler", f"an {kind.upper()} one", remedy)
    if kind == "flow":
        recorder = drawing(FlowRecorderScheduler, source, "zero")
        recorder.register_to_config(stochastic_sampling=False)
        return recorder
    recorder = drawing(RecorderScheduler, source, "sigma_min")
    plain = {"allocation": "trailing", "profile": None, "clip_sample": False}
    recorder.register_to_config(**plain, thresholding=False)
    return recorder


def _record_batch(
    run: Run, batch: slice, recorder: Any, steps: int, probes: Probes, also: Measure | None
) -> Trajectory:
    replays: list[Replay] = []
    sweeps: list[Tensor] = []
    given = {"guidance_scale": run.guidance_scale, **run.options}
    capture = Capture(run.pipe, given) if probes or also else None
    generators = run.generators(batch)

    def visited(visit: Visit) -> None:
        if capture is None:
            return
        replay = _replay(capture, visit, recorder.coordinates)
        if also is not None:
            also(replay, visit.scaled, torch.tensor(visit.timestep))
        if not probes:
            return
        replays.append(replay)
        if visit.timestep == 0:  # the last one; after the call a pipeline may change its network
            sigmas = _sigmas(run, recorder)
            for probe in probes.of(batch, visit.scaled, generators):
                sweeps.append(_sweep(replays, recorder.visits, sigmas, probe))

    recorder.start(visited)
    try:
        with one_step_more(run.pipe):
            how = {"num_inference_steps": steps, "output_type": "latent"}
            run.call(batch, recorder, generators, **how)
    finally:
        if capture is not None:
            capture.remove()
    _check_ended(run, recorder)
    path = _trajectory(recorder)
    return replace(path, adjoints=torch.stack(sweeps)) if probes else path


def _check_ended(run: Run, recorder: Any) -> None:
    points = [visit.timestep for visit in recorder.visits]
    what = f"{type(run.pipe).__name__}, which stops at timestep {points[-1] if points else None}"
    remedy = "let it draw to the end: leave out denoising_end and the like"
    check(bool(points) and points[-1] == 0, "pipe", what, remedy)


def _replay(capture: Capture, visit: Visit, coordinates: Levels) -> Replay:
    """ε at a visit, as a function of samples in the variance-preserving scale."""
    level = float(coordinates.sigmas[visit.timestep])

    def noise(sample: Tensor, output: Tensor) -> Tensor:
        return coordinates.predict(sample, output, level)[1]

    scale = (1 + visit.sigma**2) ** 0.5
    factor = 1.0 if coordinates.kind == "vp" else scale * float(coordinates.signal(visit.sigma))
    return Replay(capture, visit, noise, factor)


def _trajectory(recorder: Any) -> Trajectory:
    samples, noises = (
        torch.stack([getattr(visit, name).flatten(1).cpu() for visit in recorder.visits])
        for name in ("scaled", "epsilon")
    )
    timesteps = [visit.timestep for visit in recorder.visits]
    end = recorder.landed.flatten(1).cpu()
    return Trajectory(timesteps, samples, noises, end, _alpha_end(recorder))


def _alpha_end(recorder: Any) -> float:
    """ᾱ where the path ends: clean data for a flow model."""
    flow = recorder.coordinates.kind == "flow"
    return 1.0 if flow else float(recorder.final_alpha_cumprod)


def _sigmas(run: Run, recorder: Any) -> Tensor:
    """`Trajectory.sigmas` of a path that has not landed yet."""
    points = [visit.timestep for visit in recorder.visits]
    nothing = torch.empty(0)
    return Trajectory(points, nothing, nothing, nothing, _alpha_end(recorder)).sigmas(run.schedule)


def _sweep(replays: list[Replay], visits: list[Visit], sigmas: Tensor, probe: Tensor) -> Tensor:
    """One sweep back over a batch's path, along a direction per image: N × n × d."""

    def transpose(k: int, v: Tensor) -> Tensor:
        return PRODUCTS["vjp"](replays[k], visits[k].scaled, torch.tensor(visits[k].timestep), v)

    return carry_back(sigmas, transpose, probe).flatten(2).cpu()


@contextmanager
def frozen(modules: list[nn.Module]) -> Iterator[None]:
    """Within it, derivatives are with respect to samples alone."""
    weights = (p for module in modules for p in module.parameters())
    thawed = [p for p in weights if p.requires_grad and not p.is_inference()]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)
