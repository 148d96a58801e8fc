"""A scheduler whose grid is laid anew while a picture is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from asddim_lib.core.allocation import allocate, gradient_step, noise_weights, step_sizes
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.errors import check
from asddim_lib.schedulers.asddim import ASDDIMScheduler


class OnlineScheduler(ASDDIMScheduler):
    """An `ASDDIMScheduler` whose grid is laid anew whenever g is measured. Made by `online`; `timesteps` stays the first grid, a row of names
    for the steps, and `grid` (images × K) says where they lie."""

    def begin(self, prior: np.ndarray, reach: float) -> None:
        """Takes the g(t) that is expected before anything is measured (T), and for how many timesteps a surprise lasts."""
        self._prior, self._reach = prior, reach

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Lays the first grid from the expected g(t). Raises ValueError for `timesteps`, which would leave nothing to lay anew."""
        check(
            timesteps is None and num_inference_steps is not None,
            "timesteps",
            timesteps,
            "online mode lays them itself: give num_inference_steps",
        )
        first = allocate(self._step_sizes(self._prior), num_inference_steps or 0)
        super().set_timesteps(timesteps=first, device=device)
        self._names, self.grid, self._ratios = first, np.array([first]), np.zeros((0, 1))

    def _step_sizes(self, g: np.ndarray) -> np.ndarray:
        config = self.config
        weights = noise_weights(
            NoiseSchedule.from_config(config).variance,
            config["p"] if config["allocation"] == "combined" else 0.0,
            config["eps"],
        )
        return step_sizes(weights, gradient_step(g, config["lam"]), config["reading"])

    def number(self, timestep: int | Tensor) -> int:
        """The number of the step that a pipeline calls by its name."""
        return self._names.index(int(timestep))

    def lay_anew(self, step: int, g: np.ndarray) -> None:
        """Lays the steps after `step` anew, for each row of the grid by its own measured g; each keeps its K steps.

        A measurement says how far g is from what was expected. That ratio is taken to fade to its mean so far over `reach` timesteps.
        """
        if len(self.grid) != len(g):
            self.grid, self._ratios = (
                np.repeat(self.grid, len(g), 0),
                np.repeat(self._ratios, len(g), 1),
            )
        now = self.grid[:, step]
        self._ratios = np.vstack([self._ratios, g / self._prior[now]])
        for row, t in enumerate(now):
            mean, last = self._ratios[:, row].mean(), self._ratios[-1, row]
            ahead = np.maximum(t - np.arange(len(self._prior)), 0)
            expected = self._prior * (mean + (last - mean) * np.exp(-ahead / self._reach))
            self.grid[row, step:] = allocate(
                self._step_sizes(expected)[: t + 1], self.grid.shape[1] - step
            )

    def times(self, step: int, device: torch.device) -> Tensor:
        """Where a step lies: one timestep for all images, or one an image."""
        return (
            torch.as_tensor(self.grid[:, step], device=device).squeeze()
            if len(self.grid) == 1
            else torch.as_tensor(self.grid[:, step], device=device)
        )

    def _alphas(self, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        step, table = self.number(timestep), self.alphas_cumprod.to(sample.device)
        alpha = self._at(table, self.times(step, sample.device), sample)
        if step + 1 == self.grid.shape[1]:
            return alpha, self.final_alpha_cumprod.to(sample.device)
        return alpha, self._at(table, self.times(step + 1, sample.device), sample)
