"""DPM-Solver++ and UniPC on any grid: diffusers takes one for some models, and saves none."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.schedulers.mixin import TakesGrid, init_of


class _Multistep(TakesGrid):
    """What both have in common: σ on the CPU, and where a grid begins and ends.

    A grid takes precedence over Karras or other levels of the config, and ends where diffusers'
    class ends. A flow network gets the timestep T s. diffusers cuts it to a whole number, and then
    its error stops falling at many steps.
    """

    #: The largest s of which the solver's logarithms are finite.
    highest = 1.0
    sigmas: Tensor
    num_inference_steps: int | None

    @classmethod
    def _translated(
        cls, source: dict[str, Any], changes: Mapping[str, Any], kind: str
    ) -> dict[str, Any]:
        remedy = "it solves variance-preserving and flow models: use EDM's own schedulers"
        check(kind != "edm", "config", "an EDM scheduler's", remedy)
        if kind == "flow" and not source.get("use_flow_sigmas"):
            source |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
            source["flow_shift"] = source.pop("shift")
        return source

    def _restart(self, steps: int) -> None:
        """Resets the solver's history, for K steps."""
        raise NotImplementedError

    def _table(self) -> np.ndarray:
        """σ at every timestep of a variance-preserving model."""
        return self._noise_levels().finite_sigmas

    def _set(self, grid: Any, device: Any) -> None:
        self._restart(len(grid))
        if self._flow:
            size = np.float32(self.config["num_train_timesteps"])
            sigmas = np.minimum(np.asarray(grid, np.float64), 1.0)  # a shift may round 1 up
            times = torch.from_numpy(np.float32(sigmas) * size)
            lowest = min(1 / float(size), sigmas[-1])
            sigmas[0] = min(sigmas[0], self.highest)
        else:
            table = self._table()
            sigmas, lowest, times = table[grid], table[0], torch.tensor(grid, dtype=torch.int64)
        end = 0.0 if self.config["final_sigmas_type"] == "zero" else lowest
        self.num_inference_steps = len(grid)
        self.timesteps = times.to(device=device)
        self.sigmas = torch.from_numpy(np.array([*sigmas, end], np.float32))


def _step_of(parent: Any) -> Any:
    """The `step` of a subclass of diffusers' `parent`.

    A last step of no length, from timestep 0 to σ_min, changes nothing: diffusers divides 0 by 0.
    """

    arguments = inspect.signature(parent.step)

    @functools.wraps(parent.step)
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **how: Any
    ) -> Any:
        if self.num_inference_steps is not None and self.step_index is None:
            self._init_step_index(timestep)
        here = self.step_index
        if here is None or self.sigmas[here] != self.sigmas[here + 1]:
            return parent.step(self, model_output, timestep, sample, *args, **how)
        self._step_index += 1
        given = arguments.bind(self, model_output, timestep, sample, *args, **how).arguments
        return SchedulerOutput(sample) if given.get("return_dict", True) else (sample,)

    return step


class DPMSolverGridScheduler(_Multistep, DPMSolverMultistepScheduler):  # type: ignore[misc]
    """diffusers' DPM-Solver++ (2M by default) on any grid, by the options of `mixin`.

    >>> pipe.scheduler = DPMSolverGridScheduler.from_config(pipe.scheduler.config, grid=[999, 500])
    """

    __init__ = init_of(DPMSolverMultistepScheduler)

    def _restart(self, steps: int) -> None:
        DPMSolverMultistepScheduler.set_timesteps(self, steps)

    def _set_uniform(
        self, steps: int | None, device: Any, timesteps: Any, sigmas: Any, mu: float | None
    ) -> None:
        if sigmas is not None:  # diffusers' takes none
            self._set_given(None, device, None, sigmas, mu)
        else:
            DPMSolverMultistepScheduler.set_timesteps(self, steps, device, mu)

    def _table(self) -> np.ndarray:
        """σ as diffusers' class has it, in float32; CogVideoX's setting it does not know."""
        if "snr_shift_scale" in self.config:
            return super()._table()
        bars = self.alphas_cumprod.cpu()
        return (((1 - bars) / bars) ** 0.5).numpy()

    step = _step_of(DPMSolverMultistepScheduler)


class UniPCGridScheduler(_Multistep, UniPCMultistepScheduler):  # type: ignore[misc]
    """diffusers' UniPC on any grid, by the options of `mixin`.

    >>> pipe.scheduler = UniPCGridScheduler.from_config(pipe.scheduler.config)
    >>> pipe(prompt, timesteps=timesteps(pipe.scheduler, 10, allocation="logsnr"))
    """

    __init__ = init_of(UniPCMultistepScheduler)
    highest = 1 - 1e-6

    def _restart(self, steps: int) -> None:
        mu = 1.0 if self.config["use_dynamic_shifting"] else None  # its levels are replaced
        UniPCMultistepScheduler.set_timesteps(self, steps, mu=mu)

    def _set_uniform(
        self, steps: int | None, device: Any, timesteps: Any, sigmas: Any, mu: float | None
    ) -> None:
        given = None if sigmas is None else np.asarray(sigmas)  # diffusers' takes no list
        UniPCMultistepScheduler.set_timesteps(self, steps, device, given, mu)

    step = _step_of(UniPCMultistepScheduler)
