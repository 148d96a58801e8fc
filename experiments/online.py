"""The paper's loop (its Algorithms 1–5): g(t) is measured on the sample while it is drawn.

After each measurement the remaining steps are placed again; K stays.
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
from asddim_lib.levels import Levels, noise_schedule
from asddim_lib.models.load import Pipeline, check_seeds, network
from asddim_lib.paper import allocate, gradient_step, noise_weights, predict, step_sizes
from asddim_lib.pipeline.recording import frozen
from asddim_lib.pipeline.replay import Capture, Replay, Visit, replayed
from asddim_lib.schedulers.ddim import ASDDIMScheduler
from asddim_lib.sensitivity import COST, gradient_norm


class OnlineScheduler(ASDDIMScheduler):
    """An `ASDDIMScheduler` whose remaining steps move whenever g is measured. Made by `online`.

    `timesteps` stays the first grid: it names the steps. `grid` (images × K, or one row for all)
    says where they are. `expected` is g(t) before any measurement (T numbers). `at_step` is called
    with the number of each step, the visit there, and ᾱ.
    """

    expected: np.ndarray
    at_step: Callable[[int, Visit, Tensor], None]

    def set_timesteps(  # type: ignore[override]  # what it refuses, it does not take
        self, num_inference_steps: int | None = None, device: Any = None, *, timesteps: Any = None
    ) -> None:
        """Sets the first grid, from the expected g(t). Raises WrongUse for given `timesteps`."""
        given = timesteps is None and num_inference_steps is not None
        remedy = "online mode sets them itself: give num_inference_steps"
        check(given, "timesteps", timesteps, remedy)
        first = allocate(self._step_sizes(self.expected), num_inference_steps or 0)
        super().set_timesteps(timesteps=first, device=device)
        self._names, self.grid, self._ratios = first, np.array([first]), np.zeros((0, 1))

    def _step_sizes(self, g: np.ndarray) -> np.ndarray:
        """h(t), up to a factor, from g(t) (Eqs 5, 9 and 10)."""
        config = self.config
        p = config["p"] if config["allocation"] == "combined" else 0.0
        weights = noise_weights(noise_schedule(self).variance, p, config["eps"])
        return step_sizes(weights, gradient_step(g, config["lam"]), config["reading"])

    def number(self, timestep: int | Tensor) -> int:
        """The number of the step that a pipeline calls by its name."""
        return self._names.index(int(timestep))

    def times(self, step: int) -> Tensor:
        """The timestep of a step: one for all images, or one per image."""
        times = torch.as_tensor(self.grid[:, step], device="cpu")
        return times[0] if len(times) == 1 else times

    def place_rest(self, step: int, g: np.ndarray, reach: float) -> None:
        """Places the steps after `step` again, each row of the grid by its g (rows).

        The ratio of measured to expected g fades to its mean so far over `reach` timesteps.
        """
        if len(self.grid) != len(g):
            self.grid = np.repeat(self.grid, len(g), 0)
            self._ratios = np.repeat(self._ratios, len(g), 1)
        now = self.grid[:, step]
        self._ratios = np.vstack([self._ratios, g / self.expected[now]])
        for row, t in enumerate(now):
            mean, last = self._ratios[:, row].mean(), self._ratios[-1, row]
            ahead = np.maximum(t - np.arange(len(self.expected)), 0)
            g_t = self.expected * (mean + (last - mean) * np.exp(-ahead / reach))
            self.grid[row, step:] = allocate(
                self._step_sizes(g_t)[: t + 1], self.grid.shape[1] - step
            )

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **how: Any
    ) -> Any:
        """As `ASDDIMScheduler.step`, after `at_step`."""
        step = self.number(timestep)
        number = int(self.grid[0, step])
        alpha = self._level(step, sample)
        _, epsilon = predict(sample, model_output, alpha, self.config["prediction_type"])
        sigma = (1 / float(self._alphas[number]) - 1) ** 0.5
        self.at_step(step, Visit(number, sigma, sample, model_output, epsilon, sample), alpha)
        return super().step(model_output, timestep, sample, *args, **how)

    def _levels(self, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        step = self.number(timestep)
        last = step + 1 == self.grid.shape[1]
        end = self.final_alpha_cumprod.to(sample.device)
        return self._level(step, sample), end if last else self._level(step + 1, sample)

    def _level(self, step: int, sample: Tensor) -> Tensor:
        """ᾱ at a step: one number, or one per image."""
        levels = self._alphas[self.times(step)].to(sample.device)
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
    """Within it, each call measures g on its own samples and places the remaining steps by it.

    g is measured at every `every`-th step; K stays. The pipeline's scheduler must be an
    `ASDDIMScheduler` with allocation gradient or combined. With `per_image` each image of a batch
    follows its own grid, else all follow their mean g. A `profile` (by default the scheduler's) is
    the g expected before it is measured; without one, a constant. Yields the record of the latest
    call. Raises WrongUse for a scheduler, estimator or pipeline that does not serve.
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
    if profile is None and own.config["profile"]:
        profile = Profile.from_dict(own.config["profile"])
    levels, record = Levels.from_diffusers(own), OnlineRecord()
    scheduler = OnlineScheduler.from_config(own.config)
    scheduler.expected = profile.at(levels) if profile else np.ones(len(levels))
    prediction_type = own.config["prediction_type"]

    def at_step(step: int, visit: Visit, alpha: Tensor) -> None:
        """Measures g at a step, where it is due, and places the steps after it again."""
        steps, images = scheduler.grid.shape[1], len(visit.sample)
        evaluations = sum(len(call.output) for call in capture.calls) // images
        if step == 0:
            record.nfe, record.measured = 0, {}
        record.nfe += evaluations
        if step % every == 0 and step + 1 < steps:
            replay = Replay(
                capture, visit, lambda x, out: predict(x, out, alpha, prediction_type)[1]
            )
            # The same probes for every image, whatever the batch.
            generators = [torch.Generator("cpu").manual_seed(seed + step) for _ in range(images)]
            t = torch.tensor(visit.timestep)
            g = gradient_norm(
                replay, visit.sample, t, estimator=estimator, probes=probes, generator=generators
            )[0].numpy()
            record.nfe += evaluations * probes * estimators[estimator]
            record.measured[step] = g.tolist()
            reach = every * len(levels) / steps
            scheduler.place_rest(step, g if per_image else g.mean(keepdims=True), reach)
        capture.take()
        record.grids = scheduler.grid.tolist()

    def rename(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Gives the network the step's timestep, one or one per image, and not its name."""
        if capture.busy:  # a replay asks at the timestep it means
            return None
        kind, remedy = type(pipe).__name__, "set a calibrated profile's grid instead"
        check(len(args) > 1, "pipe", f"{kind}, which passes its network the time by name", remedy)
        times = scheduler.times(scheduler.number(args[1])).to(args[0].device)
        if times.ndim:
            times = torch.cat([times] * (len(args[0]) // len(times)))
        return (args[0], times, *args[2:]), kwargs

    scheduler.at_step, capture = at_step, Capture(pipe)
    hook = network(pipe).register_forward_pre_hook(rename, with_kwargs=True)
    pipe.scheduler = scheduler
    try:
        with frozen(replayed(pipe)):
            yield record
    finally:
        pipe.scheduler = own
        capture.remove()
        hook.remove()
