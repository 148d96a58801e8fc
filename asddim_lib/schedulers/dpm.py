"""DPM-Solver++ on any grid: diffusers' own saves none, and takes none for flow matching."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.flow import check_sigmas
from asddim_lib.grids.grid import check_timesteps
from asddim_lib.levels import completed, flow_shift, noise_schedule, with_fixed_shift
from asddim_lib.schedulers import held


class DPMSolverGridScheduler(DPMSolverMultistepScheduler):
    """diffusers' DPM-Solver++ (2M by default) on any grid, which it can hold and save.

    `grid` is a list of timesteps; with `use_flow_sigmas` it is one of σ in (0, 1] as the network is
    to see them, after the shift. `set_timesteps` lays it for `len(grid)` steps. Without a grid it
    is diffusers' own, to the bit. Timesteps that a call gives go before it, and so do a flow
    model's sigmas, unless they are evenly spaced: that is what a pipeline gives by itself.

    A grid stands as given, whatever Karras or other levels the config asks for, and ends where
    diffusers' own would. With flow sigmas the network is told each one times T. diffusers cuts that
    to a whole number, and so its error stops falling where there are many steps.

    >>> pipe.scheduler = DPMSolverGridScheduler.from_config(pipe.scheduler.config, grid=[999, 500])
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
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        grid: list[Any] | None = None,
    ) -> None:
        theirs = inspect.signature(DPMSolverMultistepScheduler.__init__).parameters
        super().__init__(**{name: self.config[name] for name in theirs if name in self.config})
        if grid is not None:
            self.register_to_config(grid=held.kept(grid, self))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
    ) -> None:
        """Lays the held grid, or the given `timesteps`; or as diffusers', where there are neither.

        A flow model takes `sigmas` instead, in (0, 1] before the shift, which is put on them; `mu`
        says a shift that depends on the picture's size. Raises WrongUse for what is no grid, for a
        number of steps that the held grid has not, and for the other kind of model's argument.
        """
        flow = self.config["use_flow_sigmas"]
        grid = held.asked(self, num_inference_steps, sigmas, timesteps)
        if grid is not None:
            self._lay(grid, device)
        elif timesteps is not None:
            check(not flow, "timesteps", "given", "use_flow_sigmas is on: give sigmas")
            both = num_inference_steps is not None
            check(not both, "num_inference_steps and timesteps", "both given", "give one")
            self._lay(check_timesteps(timesteps, len(self.alphas_cumprod)), device)
        elif sigmas is not None:
            check(flow, "sigmas", "given", "use_flow_sigmas is off: give timesteps")
            check_sigmas("sigmas", sigmas)
            mix = np.array([float(sigma) for sigma in sigmas])
            self._lay(flow_shift(mix, with_fixed_shift(completed(self), mu)), device)
        else:
            super().set_timesteps(num_inference_steps, device, mu)

    def _lay(self, grid: Any, device: str | torch.device | None) -> None:
        super().set_timesteps(len(grid), device)  # forgets the last run
        if self.config["use_flow_sigmas"]:
            levels = np.minimum(np.asarray(grid, np.float64), 1.0)  # a shift may round 1 up
            times = torch.tensor(levels * self.config["num_train_timesteps"], dtype=torch.float32)
            lowest = min(float(self.sigmas[-1]), levels[-1])  # type: ignore[has-type]
        else:
            table = self._table()
            levels, lowest = table[grid], table[0]
            times = torch.tensor(grid, dtype=torch.int64)
        end = 0.0 if self.config["final_sigmas_type"] == "zero" else lowest
        self.num_inference_steps = len(grid)
        self.timesteps = times.to(device=device)
        self.sigmas = torch.from_numpy(np.array([*levels, end], np.float32))

    def _table(self) -> np.ndarray:
        """σ at every timestep, diffusers' own; or CogVideoX's, whose setting it does not know."""
        if "snr_shift_scale" in self.config:
            return noise_schedule(self).finite_sigmas
        bars = self.alphas_cumprod.cpu()
        return (((1 - bars) / bars) ** 0.5).numpy()

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """As diffusers'. A last step of no length, from timestep 0 to σ_min, changes nothing."""
        if held.rests(self, timestep):
            self._step_index += 1
            return SchedulerOutput(sample) if return_dict else (sample,)
        how = (generator, variance_noise, return_dict)
        return super().step(model_output, timestep, sample, *how)
