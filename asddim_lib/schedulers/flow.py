"""`ASFlowScheduler`: Euler's method for flow-matching models on any grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from asddim_lib.errors import check
from asddim_lib.schedulers.mixin import TakesGrid, init_of


class ASFlowScheduler(TakesGrid, FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """diffusers' Euler for flow matching on any grid: `grid` or `allocation`.

    It replaces `FlowMatchEulerDiscreteScheduler`, and UniPC or DPM-Solver with flow sigmas, in any
    pipeline, also one that takes no `sigmas`. Its `grid` has the shift in it and is not shifted
    again; a call's sigmas are shifted, as by diffusers.

    >>> pipe.scheduler = ASFlowScheduler.from_config(pipe.scheduler.config, allocation="logsnr")
    """

    __init__ = init_of(FlowMatchEulerDiscreteScheduler)

    @classmethod
    def _translated(
        cls, source: dict[str, Any], changes: Mapping[str, Any], kind: str
    ) -> dict[str, Any]:
        """UniPC's and DPM-Solver's `flow_shift` becomes `shift`."""
        remedy = "its samples are not flow matching's: use ASDDIMScheduler"
        check(kind == "flow", "config", f"of a {kind} scheduler", remedy)
        if source.pop("use_flow_sigmas", False):  # a solver's, which has DDPM's settings as well
            source["shift"] = source.pop("flow_shift")
            for name in ("beta_start", "beta_end", "beta_schedule", "prediction_type"):
                source.pop(name, None)
            source.pop("thresholding", None)
        return source

    def _set(self, grid: Any, device: Any) -> None:
        self.num_inference_steps = len(grid)
        self.sigmas = torch.tensor([*grid, 0.0], dtype=torch.float32).to(device=device)
        self.timesteps = self.sigmas[:-1] * self.config["num_train_timesteps"]
        self._step_index = None
        self._begin_index = None

    def _set_uniform(
        self, steps: int | None, device: Any, timesteps: Any, sigmas: Any, mu: float | None
    ) -> None:
        FlowMatchEulerDiscreteScheduler.set_timesteps(self, steps, device, sigmas, mu, timesteps)

    def _set_given(
        self, steps: int | None, device: Any, timesteps: Any, sigmas: Any, mu: float | None
    ) -> None:
        if sigmas is not None:
            shares = np.asarray(self._read(sigmas, "sigmas"))  # without a last 0
            sigmas = np.asarray(sigmas)[: len(shares)]
        self._set_uniform(steps, device, timesteps, sigmas, mu)
