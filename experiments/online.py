"""A scheduler whose grid is laid again while a picture is drawn.

The paper's loop (its Algorithms 1–5): g(t) is measured on the sample while it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.table import check_profile
from asddim_lib.levels import noise_schedule
from asddim_lib.models.load import Pipeline, check_seeds, network
from asddim_lib.paper import allocate, gradient_step, noise_weights, predict, step_sizes
from asddim_lib.pipeline.recorder import Visit
from asddim_lib.pipeline.recording import frozen
from asddim_lib.pipeline.replay import Capture, Replay, replayed
from asddim_lib.schedulers.ddim import ASDDIMScheduler
from asddim_lib.sensitivity import COST, gradient_norm

#: Takes the number of a step, the visit there, and ᾱ.
AtStep = Callable[[int, Visit, Tensor], None]


class OnlineScheduler(ASDDIMScheduler):
    """An `ASDDIMScheduler` whose grid is laid again whenever g is measured. Made by `online`.

    `timesteps` stays the first grid: it names the steps. `grid` (images × K) says where they lie.
    """

    def begin(self, prior: np.ndarray, reach: float, at_step: AtStep) -> None:
        """Takes the expected g(t) (T numbers) and for how many timesteps a surprise lasts."""
        self._prior, self.reach, self._at_step = prior, reach, at_step

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None
    ) -> None:
        """Lays the first grid from the expected g(t). Raises WrongUse for given `timesteps`."""
        given = timesteps is None and num_inference_steps is not None
        remedy = "online mode lays them itself: give num_inference_steps"
        check(given, "timesteps", timesteps, remedy)
        first = allocate(self._step_sizes(self._prior), num_inference_steps or 0)
        super().set_timesteps(timesteps=first, device=device)
        self._names, self.grid, self._ratios = first, np.array([first]), np.zeros((0, 1))

    def _step_sizes(self, g: np.ndarray) -> np.ndarray:
        config = self.config
        p = config["p"] if config["allocation"] == "combined" else 0.0
        weights = noise_weights(noise_schedule(self).variance, p, config["eps"])
        return step_sizes(weights, gradient_step(g, config["lam"]), config["reading"])

    def number(self, timestep: int | Tensor) -> int:
        """The number of the step that a pipeline calls by its name."""
        return self._names.index(int(timestep))

    def lay_again(self, step: int, g: np.ndarray) -> None:
        """Lays the steps after `step` again, each row of the grid by its own g; K still holds.

        A measurement says how far g is from what was expected. That ratio is taken to fade to its
        mean so far over `reach` timesteps.
        """
        if len(self.grid) != len(g):
            self.grid = np.repeat(self.grid, len(g), 0)
            self._ratios = np.repeat(self._ratios, len(g), 1)
        now = self.grid[:, step]
        self._ratios = np.vstack([self._ratios, g / self._prior[now]])
        for row, t in enumerate(now):
            mean, last = self._ratios[:, row].mean(), self._ratios[-1, row]
            ahead = np.maximum(t - np.arange(len(self._prior)), 0)
            expected = self._prior * (mean + (last - mean) * np.exp(-ahead / self.reach))
            left = self.grid.shape[1] - step
            self.grid[row, step:] = allocate(self._step_sizes(expected)[: t + 1], left)

    def times(self, step: int, device: torch.device) -> Tensor:
        """Where a step lies: one timestep for all images, or one per image."""
        times = torch.as_tensor(self.grid[:, step], device=device)
        return times.squeeze() if len(self.grid) == 1 else times

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **how: Any
    ) -> Any:
        """As `ASDDIMScheduler.step`, after g was measured where it is due."""
        step, kind = self.number(timestep), self.config["prediction_type"]
        alpha, number = self._level(step, sample), int(self.grid[0, step])
        _, epsilon = predict(sample, model_output, alpha, kind)
        sigma = (1 / float(self._alphas[number]) - 1) ** 0.5
        visit = Visit(number, sigma, sample, model_output, epsilon, sample)
        self._at_step(step, visit, alpha)
        return super().step(model_output, timestep, sample, *args, **how)

    def _levels(self, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        step = self.number(timestep)
        if step + 1 == self.grid.shape[1]:
            return self._level(step, sample), self.final_alpha_cumprod.to(sample.device)
        return self._level(step, sample), self._level(step + 1, sample)

    def _level(self, step: int, sample: Tensor) -> Tensor:
        """ᾱ at a step: one number, or one per image."""
        levels = self._alphas[self.times(step, torch.device("cpu"))].to(sample.device)
        return levels if levels.ndim == 0 else levels.reshape(-1, *[1] * (sample.ndim - 1))


@dataclass
class OnlineRecord:
    """What the last call of the pipeline did.

    `grids` has one grid, or one per image; `measured` the g of every image by the number of the
    step; `nfe` the network evaluations per image.
    """

    grids: list[list[int]] = field(default_factory=list)
    measured: dict[int, list[float]] = field(default_factory=dict)
    nfe: int = 0


@contextmanager
def online(
    pipe: Pipeline,
    *,
    every: int = 4,
    estimator: str = "vjp",
    probes: int = 1,
    per_image: bool = False,
    profile: Profile | None = None,
    seed: int = 0,
) -> Iterator[OnlineRecord]:
    """Within it, each call measures g on its own samples and lays the rest of the grid by it.

    g is measured at every `every`-th step; K still holds. The pipeline's scheduler must be an
    `ASDDIMScheduler` with allocation gradient or combined. With `per_image` each image of a batch
    follows a grid of its own, else all follow their mean g. A `profile` (by default the scheduler's
    own) says what g to expect before it is measured; without one, a constant. Yields the record of
    the latest call. Raises WrongUse for a scheduler, estimator or pipeline that does not serve.
    """
    own = pipe.scheduler
    serves = isinstance(own, ASDDIMScheduler)
    serves = serves and own.config["allocation"] in ("gradient", "combined")
    remedy = 'make it ASDDIMScheduler.from_config(…, allocation="gradient" or "combined")'
    check(serves, "pipe.scheduler", type(own).__name__, remedy)
    estimators = COST["frobenius"]
    check(estimator in estimators, "estimator", estimator, f"use one of {', '.join(estimators)}")
    check(every >= 1, "every", every, "give at least 1")
    check(probes >= 1, "probes", probes, "give at least 1")
    check_seeds([seed])
    check_profile(profile)
    scheduler = OnlineScheduler.from_config(own.config)
    expected = profile
    if expected is None and own.config["profile"]:
        expected = Profile.from_dict(own.config["profile"])
    schedule = noise_schedule(own)
    prior = expected.at(schedule) if expected else np.ones(len(schedule))
    session = _Session(pipe, scheduler, prior, every, per_image, seed)
    session.how = {"estimator": estimator, "probes": probes}
    rename = network(pipe).register_forward_pre_hook(session.rename, with_kwargs=True)
    pipe.scheduler = scheduler
    try:
        with frozen(replayed(pipe)):
            yield session.record
    finally:
        pipe.scheduler = own
        session.capture.remove()
        rename.remove()


class _Session:
    """Measures at the scheduler's step, and tells the network the timesteps that were laid."""

    how: dict[str, Any]

    def __init__(
        self,
        pipe: Pipeline,
        scheduler: OnlineScheduler,
        prior: np.ndarray,
        every: int,
        per_image: bool,
        seed: int,
    ) -> None:
        self.pipe, self.scheduler, self.prior = pipe, scheduler, prior
        self.every, self.per_image, self.seed = every, per_image, seed
        self.record, self.capture = OnlineRecord(), Capture(pipe)
        scheduler.begin(prior, np.inf, self.measure)

    def measure(self, step: int, visit: Visit, alpha: Tensor) -> None:
        """Measures g at a step, where it is due, and lays the steps after it again."""
        calls = self.capture.calls
        sizes = [len(call.output) for call in calls]
        steps, evaluations = self.scheduler.grid.shape[1], sum(sizes) // len(visit.sample)
        if step == 0:
            self.record.nfe, self.record.measured = 0, {}
            self.scheduler.reach = self.every * len(self.prior) / steps
        self.record.nfe += evaluations
        if step % self.every == 0 and step + 1 < steps:
            kind = self.scheduler.config["prediction_type"]
            replay = Replay(self.capture, visit, lambda x, out: predict(x, out, alpha, kind)[1])
            # The same probes for every image, whatever the batch.
            generators = [torch.Generator().manual_seed(self.seed + step) for _ in visit.sample]
            t = torch.tensor(visit.timestep)
            g = gradient_norm(replay, visit.sample, t, generator=generators, **self.how)[0]
            values = g.cpu().numpy()
            spent = self.how["probes"] * COST["frobenius"][self.how["estimator"]]
            self.record.nfe += evaluations * spent
            self.record.measured[step] = values.tolist()
            self.scheduler.lay_again(step, values if self.per_image else values.mean(keepdims=True))
        self.capture.take()
        self.record.grids = self.scheduler.grid.tolist()

    def rename(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Puts the laid timestep, one or one per image, in the place of the step's name."""
        if self.capture.busy:  # a replay asks at the timestep it means
            return None
        kind, remedy = type(self.pipe).__name__, "lay a calibrated profile's grid instead"
        what = f"{kind}, which tells its network the time by a name"
        check(len(args) > 1, "pipe", what, remedy)
        step = self.scheduler.number(args[1])
        times = self.scheduler.times(step, args[0].device)
        if times.ndim:
            times = torch.cat([times] * (len(args[0]) // len(times)))
        return (args[0], times, *args[2:]), kwargs
