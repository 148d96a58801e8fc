"""UniPC on any grid. diffusers' own takes custom sigmas for flow matching alone, and no timesteps at all."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.errors import check
from asddim_lib.grids.methods import check_timesteps


class UniPCGridScheduler(UniPCMultistepScheduler):
    """diffusers' UniPC, whose `set_timesteps`, and so a pipeline's call, also takes `timesteps=`.

    >>> pipe.scheduler = UniPCGridScheduler.from_config(pipe.scheduler.config)
    >>> pipe(prompt, timesteps=timesteps(pipe.scheduler, 10, allocation="noise"))
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """As diffusers', or lays the given `timesteps`: strictly decreasing, 0 … T − 1. Raises ValueError when they are not, and for flow matching."""
        if timesteps is None:
            super().set_timesteps(num_inference_steps, device, sigmas, mu)
            return
        flow = self.config["use_flow_sigmas"]
        check(not flow, "timesteps", timesteps, "use_flow_sigmas is on: give sigmas")
        grid = check_timesteps(timesteps, self.config["num_train_timesteps"])
        super().set_timesteps(len(grid), device)  # forgets the last run
        levels = NoiseSchedule.from_config(self.config).finite_sigmas
        last = 0.0 if self.config["final_sigmas_type"] == "zero" else levels[0]
        self.timesteps = torch.tensor(grid, dtype=torch.int64, device=device)
        self.sigmas = torch.from_numpy(np.array([*levels[grid], last], np.float32))
