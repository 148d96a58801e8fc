"""A scheduler whose grid is laid again while a picture is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asddim_lib.core.allocation import allocate, gradient_step, noise_weights, step_sizes
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.step import predict
from asddim_lib.errors import check
from asddim_lib.schedulers.asddim import ASDDIMScheduler
from asddim_lib.schedulers.recorder import Visit

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
        """Lays the first grid from the expected g(t).

        Raises WrongUse for given `timesteps`, and for a `look_ahead`.
        """
        ahead = self.config["look_ahead"]
        check(ahead == 0, "look_ahead", ahead, "online mode tells each step's own time: give 0")
        given = timesteps is None and num_inference_steps is not None
        remedy = "online mode lays them itself: give num_inference_steps"
        check(given, "timesteps", timesteps, remedy)
        first = allocate(self._step_sizes(self._prior), num_inference_steps or 0)
        super().set_timesteps(timesteps=first, device=device)
        self._names, self.grid, self._ratios = first, np.array([first]), np.zeros((0, 1))

    def _step_sizes(self, g: np.ndarray) -> np.ndarray:
        config = self.config
        p = config["p"] if config["allocation"] == "combined" else 0.0
        weights = noise_weights(NoiseSchedule.from_config(self).variance, p, config["eps"])
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
