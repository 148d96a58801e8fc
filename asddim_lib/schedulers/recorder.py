"""A DDIM that writes down what passes through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asddim_lib.core.step import predict
from asddim_lib.errors import check
from asddim_lib.schedulers.asddim import ASDDIMScheduler


class Visit(NamedTuple):
    """One step of a run: its timestep, the sample, the guided network output and its ε."""

    timestep: int
    sample: Tensor
    model_output: Tensor
    epsilon: Tensor


class RecorderScheduler(ASDDIMScheduler):
    """Steps as DDIM does and keeps every visit, whatever the pipeline does before `step`.

    What arrives at `step` has been guided, rescaled, split and negated already, in any pipeline.
    The grid goes on to timestep 0, and the path ends at that level, so that its last stretch is
    seen too. `on_visit` is called at each visit. Raises WrongUse where the path would not be its
    own update: for η > 0, clipped samples' ε, or a pipeline that changes samples between steps.
    """

    def start(self, on_visit: Callable[[Visit], None] | None = None) -> None:
        """Forgets the last run."""
        self.visits: list[Visit] = []
        self._on_visit = on_visit
        self._landed: Tensor | None = None

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Any = None
    ) -> None:
        """Lays the grid and goes on to timestep 0."""
        super().set_timesteps(num_inference_steps, device, timesteps)
        if int(self.timesteps[-1]) > 0:
            super().set_timesteps(timesteps=[*self.timesteps.tolist(), 0], device=device)

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        **options: Any,
    ) -> Any:
        """As `ASDDIMScheduler.step`, and keeps the visit."""
        check(eta == 0, "eta", eta, "a path is recorded without noise: leave it out")
        if self._landed is not None:
            moved = (sample.double() - self._landed.double()).norm()
            what = "changed between steps by the pipeline"
            remedy = "its path is not its own update: use one that leaves them, as a 9-channel one"
            rounding = 1e-3 if sample.dtype == torch.float32 else 3e-2
            check(bool(moved <= rounding * self._landed.double().norm()), "samples", what, remedy)
        kind, (alpha, _) = self.config["prediction_type"], self._levels(timestep, sample)
        epsilon = model_output
        if kind != "epsilon":
            _, epsilon = predict(sample, model_output, alpha, kind)
        visit = Visit(int(timestep), sample, model_output, epsilon)
        self.visits.append(visit)
        if self._on_visit is not None:
            self._on_visit(visit)
        landed = super().step(model_output, timestep, sample, **options)
        self._landed = landed[0]
        return landed

    def alpha_at(self, visit: Visit) -> Tensor:
        """ᾱ at a visit."""
        return self._levels(visit.timestep, visit.sample)[0]
