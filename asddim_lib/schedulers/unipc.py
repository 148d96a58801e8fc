"""UniPC on any grid: diffusers' own takes no timesteps, and sigmas for flow matching alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.errors import check
from asddim_lib.grids.grid import check_timesteps


class UniPCGridScheduler(UniPCMultistepScheduler):
    """diffusers' UniPC, whose `set_timesteps`, and so a pipeline's call, also takes `timesteps=`.

    >>> pipe.scheduler = UniPCGridScheduler.from_config(pipe.scheduler.config)
    >>> pipe(prompt, timesteps=timesteps(pipe.scheduler, 10, allocation="logsnr"))
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """As diffusers', or lays the given `timesteps`: strictly decreasing, 0 … T − 1.

        They stand as given, whatever Karras or other levels the config asks for. Raises WrongUse
        when they are no grid, and for flow matching, which takes sigmas.
        """
        if timesteps is None:
            given = None if sigmas is None else np.asarray(sigmas)  # diffusers' takes no list
            super().set_timesteps(num_inference_steps, device, given, mu)
            return
        flow = self.config["use_flow_sigmas"]
        check(not flow, "timesteps", "given", "use_flow_sigmas is on: give sigmas")
        grid = check_timesteps(timesteps, self.config["num_train_timesteps"])
        super().set_timesteps(len(grid), device)  # forgets the last run
        levels = NoiseSchedule.from_config(self.config).finite_sigmas
        last = 0.0 if self.config["final_sigmas_type"] == "zero" else levels[0]
        self.timesteps = torch.tensor(grid, dtype=torch.int64, device=device)
        self.sigmas = torch.from_numpy(np.array([*levels[grid], last], np.float32))

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        **options: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """As diffusers'. A last step of no length, from timestep 0 to σ_min, changes nothing."""
        if self.step_index is None:
            self._init_step_index(timestep)
        here = int(self.step_index)
        if self.sigmas[here] == self.sigmas[here + 1]:  # diffusers' would divide 0 by 0
            self._step_index += 1
            return SchedulerOutput(sample) if return_dict else (sample,)
        return super().step(model_output, timestep, sample, return_dict=return_dict, **options)
