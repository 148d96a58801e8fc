"""A run's own DDIM path, recorded at `scheduler.step`, and the adjoint sweeps back over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asddim_lib.configs import completed
from asddim_lib.errors import check, check_whole
from asddim_lib.evidence.path import Trajectory, carry_back
from asddim_lib.grids.rules import uniform
from asddim_lib.levels import LARGEST_SIGMA, Levels, fingerprint
from asddim_lib.models.calls import one_step_more, parameters, swapped
from asddim_lib.pipeline.replay import Capture, Replay, Visit, replayed
from asddim_lib.schedulers.ddim import ASDDIMScheduler
from asddim_lib.schedulers.flow import ASFlowScheduler
from asddim_lib.schedulers.place import drawing, intercepted
from asddim_lib.sensitivity import PRODUCTS

if TYPE_CHECKING:
    from asddim_lib.pipeline.run import Run

#: Takes ε as a function of sample and timestep, the samples, and their timestep.
Measure = Callable[[Replay, Tensor, Tensor], None]


class Recorder:
    """A path's visits, kept by the `scheduler` that draws it: DDIM, or Euler for flow matching.

    Its grid is of evenly spaced levels, as many as the pipeline asks for, and goes on to the last
    one before clean data, where the path ends; nothing is clipped on the way. What arrives at
    `step` has been guided, rescaled, split and negated already, in any pipeline. `on_visit` is
    called at each visit. Raises WrongUse where the path would not be the scheduler's own update:
    for η > 0, added noise, or a pipeline that changes samples between steps.
    """

    def __init__(self, run: Run, on_visit: Callable[[Visit], None]) -> None:
        kind, flow = run.schedule.kind, run.schedule.kind == "flow"
        remedy = "its path is not recorded: use a variance-preserving or flow-matching one"
        check(flow or kind == "vp", "pipe.scheduler", f"an {kind.upper()} one", remedy)
        if flow:
            plain = drawing(ASFlowScheduler, run.config, "zero")
            plain.register_to_config(stochastic_sampling=False)
        else:
            plain = drawing(ASDDIMScheduler, run.config, "sigma_min")
            plain.register_to_config(clip_sample=False, thresholding=False)
        self.visits: list[Visit] = []
        self.landed: Tensor | None = None  # where the last step led
        self._alpha_end = 1.0 if flow else float(plain.final_alpha_cumprod)

        def set_timesteps(
            scheduler: Any,
            num_inference_steps: int | None = None,
            device: Any = None,
            *,
            timesteps: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
        ) -> None:
            given = timesteps if sigmas is None else sigmas
            steps = int(num_inference_steps or 0) if given is None else len(given)
            self.levels = Levels.from_diffusers(plain, mu)
            grid = uniform("trailing", len(self.levels), steps)
            self._numbers = grid if grid[-1] == 0 else [*grid, 0]
            shifted = self.levels.shifted(self.levels.unshifted_at(self._numbers)) if flow else None
            with torch.device("cpu"):
                scheduler._set(shifted if flow else self._numbers, device)

        def step(
            scheduler: Any,
            model_output: Tensor,
            timestep: Any,
            sample: Tensor,
            eta: float = 0.0,
            **options: Any,
        ) -> Any:
            check(eta == 0, "eta", eta, "a path is recorded without noise: leave it out")
            self._check_unmoved(sample)
            if flow and scheduler.step_index is None:
                scheduler._init_step_index(timestep)
            number = self._numbers[scheduler.step_index] if flow else int(timestep)
            self.visits.append(self._visit(number, model_output, sample))
            on_visit(self.visits[-1])
            result = type(plain).step(scheduler, model_output, timestep, sample, **options)
            self.landed = result[0]
            return result

        self.scheduler = intercepted(plain, "recorded", set_timesteps=set_timesteps, step=step)

    def _visit(self, number: int, model_output: Tensor, sample: Tensor) -> Visit:
        level = float(self.levels.sigmas[number])
        sigma = min(level, LARGEST_SIGMA)
        clean, epsilon = self.levels.predict(sample, model_output, level)
        same = self.levels.kind == "vp" and sigma == level
        scaled = sample if same else self.levels.vp_sample(clean, epsilon, sigma)
        return Visit(number, sigma, sample, model_output, epsilon, scaled)

    def _check_unmoved(self, sample: Tensor) -> None:
        if self.landed is None:
            return
        moved = (sample.float() - self.landed.float()).norm()  # no float64 on MPS
        what = "changed between steps by the pipeline"
        remedy = "its path is not its own update: use one that leaves them, as a 9-channel one"
        rounding = 1e-3 if sample.dtype == torch.float32 else 3e-2
        check(bool(moved <= rounding * self.landed.float().norm()), "samples", what, remedy)

    def path(self, adjoints: Tensor | None = None) -> Trajectory:
        """The path so far; its end is empty until the first step has landed."""
        samples = torch.stack([visit.scaled.flatten(1).cpu() for visit in self.visits])
        noises = torch.stack([visit.epsilon.flatten(1).cpu() for visit in self.visits])
        end = samples[:0] if self.landed is None else self.landed.flatten(1).cpu()
        points = [visit.timestep for visit in self.visits]
        return Trajectory(points, samples, noises, end, self._alpha_end, adjoints)


def check_steps(run: Run, steps: int) -> None:
    """Raises WrongUse for a number of points that a path cannot have."""
    size = completed(run.pipe.scheduler).get("num_train_timesteps", 1000)
    check_whole("num_steps", steps, 2, int(size))


def record_path(
    run: Run,
    steps: int,
    adjoint_probes: int = 0,
    also: Measure | None = None,
    directions: Tensor | None = None,
    spent: Callable[[int], None] | None = None,
) -> Trajectory:
    """What `Run.path` returns."""
    check_steps(run, steps)
    check_whole("adjoint_probes", adjoint_probes, 0)
    listed, what = "guidance_schedule" in parameters(run.pipe), type(run.pipe).__name__
    remedy = "its scales are as many as its steps, and a path has one more: it is not recorded"
    check(not listed, "pipe", what, remedy)
    planned, remedy = run.guidance_plan is not None, "a path is recorded without: leave it out"
    check(not planned, "guidance_plan", run.guidance_plan, remedy)
    with torch.inference_mode(False), torch.no_grad(), frozen(replayed(run.pipe)):
        parts = []
        for batch in run.batches():
            given = None if directions is None else directions[:, batch]
            part = run.part(batch)
            parts.append(_record_batch(part, steps, adjoint_probes, also, given, spent))

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], -2)

    made = replace(parts[0], samples=joined("samples"), noises=joined("noises"), end=joined("end"))
    adjoints = None if made.adjoints is None else joined("adjoints")
    return replace(made, adjoints=adjoints, schedule=fingerprint(run.schedule))


def _record_batch(
    run: Run,
    steps: int,
    adjoint_probes: int,
    also: Measure | None,
    directions: Tensor | None,
    spent: Callable[[int], None] | None,
) -> Trajectory:
    """The path of prompts that fit in one batch."""
    replays: list[Replay] = []
    sweeps: list[Tensor] = []
    swept = adjoint_probes > 0 or directions is not None
    whole = slice(0, len(run.prompts))
    generators = run.generators(whole)

    def count(evaluations: int) -> None:
        if spent is not None:
            spent(evaluations * run.evaluations_per_step)

    def visited(visit: Visit) -> None:
        count(1)
        if capture is None:
            return
        replay = _replay(capture, visit, recorder.levels)
        if also is not None:
            also(replay, visit.scaled, torch.tensor(visit.timestep, device="cpu"))
        if not swept:
            return
        replays.append(replay)
        if visit.timestep == 0:  # the last one; after the call a pipeline may change its network
            sigmas = recorder.path().sigmas(run.schedule)
            for probe in _probes(visit.scaled, generators, adjoint_probes, directions):
                sweeps.append(_sweep(replays, recorder.visits, sigmas, probe, count))

    recorder = Recorder(run, visited)
    given = {"guidance_scale": run.guidance_scale, **run.options}
    capture = Capture(run.pipe, given) if swept or also else None
    guider = getattr(run.pipe, "guider", None)
    longer = {} if guider is None else {"guider": one_step_more(guider)}
    try:
        with swapped(run.pipe, **longer):
            how = {"num_inference_steps": steps, "output_type": "latent"}
            run.call(whole, recorder.scheduler, generators, **how)
    finally:
        if capture is not None:
            capture.remove()
    points = [visit.timestep for visit in recorder.visits]
    what = f"{type(run.pipe).__name__}, which stops at timestep {points[-1] if points else None}"
    remedy = "let it draw to the end: leave out denoising_end and the like"
    check(bool(points) and points[-1] == 0, "pipe", what, remedy)
    return recorder.path(torch.stack(sweeps) if swept else None)


def _replay(capture: Capture, visit: Visit, levels: Levels) -> Replay:
    """ε at a visit, as a function of samples in the variance-preserving scale."""
    level = float(levels.sigmas[visit.timestep])
    scale = (1 + visit.sigma**2) ** 0.5
    factor = 1.0 if levels.kind == "vp" else scale * float(levels.signal(visit.sigma))
    return Replay(capture, visit, lambda x, out: levels.predict(x, out, level)[1], factor)


def _probes(
    like: Tensor, generators: list[torch.Generator], count: int, directions: Tensor | None
) -> Iterator[Tensor]:
    """A batch's directions of its path's end: random ones, one stream per prompt, then given ones.

    Each has the shape of its samples.
    """
    shape = (1, *like.shape[1:])
    for _ in range(count):
        drawn = [torch.randn(shape, generator=one, device="cpu") for one in generators]
        yield torch.cat(drawn).to(like)
    for probe in [] if directions is None else directions:
        yield probe.reshape(like.shape).to(like)


def _sweep(
    replays: list[Replay],
    visits: list[Visit],
    sigmas: Tensor,
    probe: Tensor,
    count: Callable[[int], None],
) -> Tensor:
    """One sweep back over a batch's path, along a direction per image: N × n × d."""

    def transpose(k: int, v: Tensor) -> Tensor:
        count(3)  # a call, and its backward pass, which counts as two
        t = torch.tensor(visits[k].timestep, device="cpu")
        return PRODUCTS["vjp"](replays[k], visits[k].scaled, t, v)

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
