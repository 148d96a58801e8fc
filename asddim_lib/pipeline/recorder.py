"""Schedulers that write down what passes through them: DDIM, and Euler for flow matching."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.rules import uniform
from asddim_lib.levels import LARGEST_SIGMA, Levels
from asddim_lib.schedulers.ddim import ASDDIMScheduler
from asddim_lib.schedulers.flow import ASFlowScheduler


class Visit(NamedTuple):
    """One step of a run.

    `timestep` is the number of its level, `sigma` the ratio of noise to signal there. `sample` and
    the guided `model_output` are as the pipeline has them; `epsilon` is the noise in the sample.
    `scaled` is the sample of the variance-preserving model with the same σ.
    """

    timestep: int
    sigma: float
    sample: Tensor
    model_output: Tensor
    epsilon: Tensor
    scaled: Tensor


class _Recording:
    """What both recorders share: a list of visits, and a look at each sample on its way.

    What arrives at `step` has been guided, rescaled, split and negated already, in any pipeline.
    Raises WrongUse where the path would not be the scheduler's own update: for η > 0, added noise,
    or a pipeline that changes samples between steps.
    """

    coordinates: Levels

    def start(self, on_visit: Callable[[Visit], None] | None = None) -> None:
        """Forgets the last run. `on_visit` is called at each visit of the next one.

        `landed` is where the last step led.
        """
        self.visits: list[Visit] = []
        self._on_visit = on_visit
        self.landed: Tensor | None = None

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        **options: Any,
    ) -> Any:
        """As the scheduler's own `step`, and keeps the visit."""
        check(eta == 0, "eta", eta, "a path is recorded without noise: leave it out")
        self._check_unmoved(sample)
        number = self._begins(timestep)
        visit = self._visit(number, model_output, sample)
        self.visits.append(visit)
        if self._on_visit is not None:
            self._on_visit(visit)
        landed = super().step(model_output, timestep, sample, **options)  # type: ignore[misc]
        self.landed = landed[0]
        return landed

    @abstractmethod
    def _begins(self, timestep: Any) -> int:
        """The number of the level that a step begins at."""

    def _visit(self, number: int, model_output: Tensor, sample: Tensor) -> Visit:
        schedule = self.coordinates
        level = float(schedule.sigmas[number])
        sigma = min(level, LARGEST_SIGMA)
        clean, epsilon = schedule.predict(sample, model_output, level)
        same = schedule.kind == "vp" and sigma == level
        scaled = sample if same else schedule.vp_sample(clean, epsilon, sigma)
        return Visit(number, sigma, sample, model_output, epsilon, scaled)

    def _check_unmoved(self, sample: Tensor) -> None:
        if self.landed is None:
            return
        moved = (sample.float() - self.landed.float()).norm()  # no float64 on MPS
        what = "changed between steps by the pipeline"
        remedy = "its path is not its own update: use one that leaves them, as a 9-channel one"
        rounding = 1e-3 if sample.dtype == torch.float32 else 3e-2
        check(bool(moved <= rounding * self.landed.float().norm()), "samples", what, remedy)


class RecorderScheduler(_Recording, ASDDIMScheduler):  # type: ignore[misc]
    """DDIM that keeps every visit.

    The grid goes on to timestep 0, and the path ends at that level, so that its last stretch is
    seen too.
    """

    def _set(self, grid: Any, device: Any) -> None:
        super()._set(grid if grid[-1] == 0 else [*grid, 0], device)
        self.coordinates = Levels.from_diffusers(self)

    def _begins(self, timestep: Any) -> int:
        return int(timestep)


class FlowRecorderScheduler(_Recording, ASFlowScheduler):  # type: ignore[misc]
    """Euler for flow matching that keeps every visit.

    K evenly spaced levels and the last one before clean data, moved by the scheduler's shift,
    whatever the pipeline asks for: the path ends at clean data.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Sets the grid, with the shift that `mu` gives where it depends on the picture's size."""
        self.coordinates = Levels.from_diffusers(self, mu)
        size = len(self.coordinates.betas)
        steps = len(sigmas) if sigmas is not None else int(num_inference_steps or 0)
        grid = uniform("trailing", size, steps, 0)
        self.numbers = grid if grid[-1] == 0 else [*grid, 0]
        levels = self.coordinates
        self._set(levels.shifted(levels.unshifted_at(self.numbers)), device)

    def _begins(self, timestep: Any) -> int:
        if self.step_index is None:
            self._init_step_index(timestep)
        return self.numbers[int(self.step_index or 0)]
