"""The paper's loop (its Algorithms 1–5): g(t) is measured on the sample while it is drawn, and the steps that remain are laid anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asddim_lib.allocation import allocate, gradient_step, noise_weights, step_sizes
from asddim_lib.calibration import Watch
from asddim_lib.errors import check
from asddim_lib.models import Pipeline
from asddim_lib.noise import NoiseSchedule
from asddim_lib.scheduler import ASDDIMScheduler
from asddim_lib.sensitivity import COST, Network, SensitivityProfile, gradient_norm


@dataclass
class OnlineRecord:
    """What the last call of the pipeline did: the grids (one, or one an image), the g that was measured, and evaluations an image."""

    grids: list[list[int]] = field(default_factory=list)
    measured: dict[int, list[float]] = field(default_factory=dict)  # step number: g of every image
    nfe: int = 0


class OnlineScheduler(ASDDIMScheduler):
    """An `ASDDIMScheduler` whose grid is laid anew whenever g is measured. Made by `online`; `timesteps` stays the first grid, a row of names
    for the steps, and `grid` (images × K) says where they lie."""

    def begin(self, prior: np.ndarray, reach: float) -> None:
        """Takes the g(t) that is expected before anything is measured (T), and for how many timesteps a surprise lasts."""
        self._prior, self._reach = prior, reach

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, timesteps: list[int] | None = None) -> None:
        """Lays the first grid from the expected g(t). Raises ValueError for `timesteps`, which would leave nothing to lay anew."""
        check(timesteps is None and num_inference_steps is not None, "timesteps", timesteps, "online mode lays them itself: give num_inference_steps")
        first = allocate(self._step_sizes(self._prior), num_inference_steps or 0)
        super().set_timesteps(timesteps=first, device=device)
        self._names, self.grid, self._ratios = first, np.array([first]), np.zeros((0, 1))

    def _step_sizes(self, g: np.ndarray) -> np.ndarray:
        config = self.config
        weights = noise_weights(NoiseSchedule.from_config(config).variance, config["p"] if config["allocation"] == "combined" else 0.0, config["eps"])
        return step_sizes(weights, gradient_step(g, config["lam"]), config["reading"])

    def number(self, timestep: int | Tensor) -> int:
        """The number of the step that a pipeline calls by its name."""
        return self._names.index(int(timestep))

    def lay_anew(self, step: int, g: np.ndarray) -> None:
        """Lays the steps after `step` anew, for each row of the grid by its own measured g; each keeps its K steps.

        A measurement says how far g is from what was expected. That ratio is taken to fade to its mean so far over `reach` timesteps.
        """
        if len(self.grid) != len(g):
            self.grid, self._ratios = np.repeat(self.grid, len(g), 0), np.repeat(self._ratios, len(g), 1)
        now = self.grid[:, step]
        self._ratios = np.vstack([self._ratios, g / self._prior[now]])
        for row, t in enumerate(now):
            mean, last = self._ratios[:, row].mean(), self._ratios[-1, row]
            ahead = np.maximum(t - np.arange(len(self._prior)), 0)
            expected = self._prior * (mean + (last - mean) * np.exp(-ahead / self._reach))
            self.grid[row, step:] = allocate(self._step_sizes(expected)[: t + 1], self.grid.shape[1] - step)

    def times(self, step: int, device: torch.device) -> Tensor:
        """Where a step lies: one timestep for all images, or one an image."""
        return torch.as_tensor(self.grid[:, step], device=device).squeeze() if len(self.grid) == 1 else torch.as_tensor(self.grid[:, step], device=device)

    def _alphas(self, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        step, table = self.number(timestep), self.alphas_cumprod.to(sample.device)
        alpha = self._at(table, self.times(step, sample.device), sample)
        if step + 1 == self.grid.shape[1]:
            return alpha, self.final_alpha_cumprod.to(sample.device)
        return alpha, self._at(table, self.times(step + 1, sample.device), sample)


@contextmanager
def online(
    pipe: Pipeline,
    *,
    every: int = 4,
    estimator: str = "vjp",
    probes: int = 1,
    per_image: bool = False,
    profile: SensitivityProfile | None = None,
    seed: int = 0,
) -> Iterator[OnlineRecord]:
    """Within it, each call of the pipeline measures g on its own samples at every `every`-th step and lays the rest of the grid by it.

    The pipeline's scheduler must be an `ASDDIMScheduler` with allocation gradient or combined; K still holds. With `per_image` each image of
    a batch follows a grid of its own, else all follow their mean g. A `profile` (by default the scheduler's own) says what g to expect before
    it is measured; without one, a constant. Yields the record of the latest call. Raises ValueError for a scheduler or an estimator that
    does not serve.
    """
    original = pipe.scheduler
    serves = isinstance(original, ASDDIMScheduler) and original.config["allocation"] in ("gradient", "combined")
    check(serves, "pipe.scheduler", type(original).__name__, 'make it ASDDIMScheduler.from_config(…, allocation="gradient" or "combined")')
    check(estimator in COST["frobenius"], "estimator", estimator, f"use one of {', '.join(COST['frobenius'])}")
    check(every >= 1, "every", every, "give at least 1")
    schedule, record = NoiseSchedule.from_config(original), OnlineRecord()
    scheduler = OnlineScheduler.from_config(original.config)
    held = profile or (SensitivityProfile.from_dict(original.config["profile"]) if original.config["profile"] else None)
    scheduler.begin(held.at(schedule) if held else np.ones(len(schedule)), np.inf)

    def measure(eps: Network, prediction: Tensor, x: Tensor, t: Tensor) -> None:
        copies = 2 if pipe.do_classifier_free_guidance else 1
        steps = scheduler.grid.shape[1]
        if state["step"] == 0:
            record.nfe, record.measured = 0, {}
            scheduler.begin(scheduler._prior, every * len(schedule) / steps)
        record.nfe += copies
        if state["step"] % every == 0 and state["step"] + 1 < steps:
            generator = [torch.Generator().manual_seed(seed + state["step"]) for _ in x]  # the same for every image, whatever the batch
            g = gradient_norm(eps, x, t, estimator=estimator, probes=probes, generator=generator)[0].cpu().numpy()
            record.nfe += copies * probes * COST["frobenius"][estimator]
            record.measured[state["step"]] = g.tolist()
            scheduler.lay_anew(state["step"], g if per_image else g.mean(keepdims=True))
        record.grids = scheduler.grid.tolist()

    watch, state = Watch(pipe, None, measure), {"step": 0}

    def rename(network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if watch.busy:  # a probe asks at the timestep it means
            return args, kwargs
        state["step"] = scheduler.number(args[1])
        times = scheduler.times(state["step"], args[0].device)
        return (args[0], torch.cat([times] * (len(args[0]) // len(times))) if times.ndim else times, *args[2:]), kwargs

    handles = [pipe.unet.register_forward_pre_hook(rename, with_kwargs=True), pipe.unet.register_forward_hook(watch, with_kwargs=True)]
    frozen = [p for p in pipe.unet.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    pipe.scheduler = scheduler
    try:
        yield record
    finally:
        pipe.scheduler = original
        for handle in handles:
            handle.remove()
        for p in frozen:
            p.requires_grad_(True)
