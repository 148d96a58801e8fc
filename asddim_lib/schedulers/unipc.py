"""UniPC on any grid: diffusers' own takes no timesteps, and sigmas for flow matching alone."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.grid import check_timesteps
from asddim_lib.levels import noise_schedule
from asddim_lib.schedulers import held


class UniPCGridScheduler(UniPCMultistepScheduler):
    """diffusers' UniPC, whose `set_timesteps`, and so a pipeline's call, also takes `timesteps=`.

    `grid` is a list of timesteps that the scheduler holds, and saves; with `use_flow_sigmas` it is
    one of σ in (0, 1] as the network is to see them, after the shift. `set_timesteps` lays it for
    `len(grid)` steps. Timesteps that a call gives go before it, and so do a flow model's sigmas,
    unless they are evenly spaced: that is what a pipeline gives by itself.

    >>> pipe.scheduler = UniPCGridScheduler.from_config(pipe.scheduler.config)
    >>> pipe(prompt, timesteps=timesteps(pipe.scheduler, 10, allocation="logsnr"))
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        predict_x0: bool = True,
        solver_type: str = "bh2",
        lower_order_final: bool = True,
        disable_corrector: list[int] = [],  # noqa: B006 - diffusers' own default, never written to
        solver_p: Any = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shift_terminal: float | None = None,
        grid: list[Any] | None = None,
    ) -> None:
        theirs = inspect.signature(UniPCMultistepScheduler.__init__).parameters
        super().__init__(**{name: self.config[name] for name in theirs if name in self.config})
        if grid is not None:
            self.register_to_config(grid=held.kept(grid, self))

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As diffusers'."""
        source = held.without_retired(config, kwargs)
        return super().from_config(source, return_unused_kwargs, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Lays the held grid, or the given `timesteps`; or as diffusers', where there are neither.

        Timesteps fall strictly within 0 … T − 1. A grid stands as given, whatever Karras or other
        levels the config asks for. Raises WrongUse for what is no grid, for a number of steps that
        the held grid has not, for a missing `mu` beside it, and for a flow model's timesteps: it
        takes sigmas.
        """
        grid = held.asked(self, num_inference_steps, sigmas, timesteps)
        if grid is not None and self.config["use_flow_sigmas"]:
            self._lay_sigmas(grid, device, mu)
        elif grid is not None:
            self._lay(grid, device)
        elif timesteps is None:
            given = None if sigmas is None else np.asarray(sigmas)  # diffusers' takes no list
            super().set_timesteps(num_inference_steps, device, given, mu)
        else:
            self._lay(timesteps, device)

    def _lay(self, timesteps: Any, device: str | torch.device | None) -> None:
        flow = self.config["use_flow_sigmas"]
        check(not flow, "timesteps", "given", "use_flow_sigmas is on: give sigmas")
        grid = check_timesteps(timesteps, self.config["num_train_timesteps"])
        super().set_timesteps(len(grid), device)  # forgets the last run
        levels = noise_schedule(self).finite_sigmas
        last = 0.0 if self.config["final_sigmas_type"] == "zero" else levels[0]
        self.timesteps = torch.tensor(grid, dtype=torch.int64, device=device)
        self.sigmas = torch.from_numpy(np.array([*levels[grid], last], np.float32))

    def _lay_sigmas(
        self, grid: list[float], device: str | torch.device | None, mu: float | None
    ) -> None:
        """Lays sigmas that have the shift in them, as diffusers' lays those without it."""
        known = mu is not None or not self.config["use_dynamic_shifting"]
        remedy = "this scheduler's shift depends on the picture's size: a pipeline gives it"
        check(known, "mu", mu, remedy)
        super().set_timesteps(len(grid), device, mu=mu)  # forgets the last run
        levels = np.array(grid)
        levels[0] = min(levels[0], 1 - 1e-6)  # at pure noise its log of the signal is infinite
        last = 0.0 if self.config["final_sigmas_type"] == "zero" else levels[-1]
        times = (levels * self.config["num_train_timesteps"]).astype(np.int64)
        self.timesteps = torch.from_numpy(times).to(device=device)
        self.sigmas = torch.from_numpy(np.array([*levels, last], np.float32))
        self.num_inference_steps = len(grid)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """As diffusers'; on a held grid it is the first of several steps that are told one time.

        diffusers takes the second of them, and so would leave a step of the grid out.
        """
        if self.config["grid"] is None:
            return super().index_for_timestep(timestep, schedule_timesteps)
        times = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (times == timestep).nonzero()
        return int(found[0]) if len(found) else len(times) - 1

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        **options: Any,
    ) -> SchedulerOutput | tuple[Tensor]:
        """As diffusers'. A last step of no length, from timestep 0 to σ_min, changes nothing."""
        if held.rests(self, timestep):
            self._step_index += 1
            return SchedulerOutput(sample) if return_dict else (sample,)
        return super().step(model_output, timestep, sample, return_dict=return_dict, **options)
