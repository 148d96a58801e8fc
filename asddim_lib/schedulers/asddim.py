"""`ASDDIMScheduler`: DDIM on any grid, as a drop-in for diffusers pipelines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from asddim_lib.core.step import ddim_step
from asddim_lib.errors import check
from asddim_lib.grids.methods import ALLOCATIONS, check_timesteps
from asddim_lib.grids.methods import timesteps as make_timesteps


class ASDDIMScheduler(DDIMScheduler):
    """DDIM whose steps go where the paper's allocation puts them (Eqs 3–13).

    It takes DDIM's settings, and: `allocation` (uniform, noise, gradient, combined, or any of `grids.ALLOCATIONS`), `p` and `eps` of Eq 5, `lam` of Eq 9, `reading` of
    Eqs 10–12, and `profile`, a calibrated profile's `to_dict()`. Uniform follows `timestep_spacing` and equals diffusers' DDIM to the bit.

    >>> pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="noise")
    """

    #: Whether a number that is not finite stops the whole batch. Who looks at each sample when it is done may set it to False.
    strict = True

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        allocation: str = "noise",
        p: float = 0.5,
        lam: float = 1.0,
        eps: float = 1e-8,
        reading: str = "intent",
        profile: dict[str, Any] | None = None,
    ) -> None:
        check(
            allocation in ALLOCATIONS,
            "allocation",
            allocation,
            f"use one of {', '.join(ALLOCATIONS)}",
        )
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            clip_sample=clip_sample,
            set_alpha_to_one=set_alpha_to_one,
            steps_offset=steps_offset,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self._seen: list[
            tuple[tuple[Tensor, Tensor], int | Tensor]
        ] = []  # the ends of outputs that nobody has looked at yet, and when

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Lays the grid: K steps by this scheduler's allocation, or the given `timesteps`, strictly decreasing, 0 … T − 1.

        Raises ValueError when both or neither are given, or when one is out of range; and on an accelerator, for a run that ended before the
        grid did (`denoising_end`) and whose network had failed.
        """
        self._report()
        given = "both" if timesteps is not None else "neither"
        check(
            (num_inference_steps is None) != (timesteps is None),
            "num_inference_steps and timesteps",
            f"{given} given",
            "give one",
        )
        grid = (
            make_timesteps(self.config, num_inference_steps)
            if num_inference_steps is not None
            else check_timesteps(timesteps or [], self.config.num_train_timesteps)
        )
        self.num_inference_steps = len(grid)
        self.timesteps = torch.tensor(grid, dtype=torch.int64, device=device)
        # ᾱ of every timestep and of the next smaller one on the grid, so that step() looks up values and never waits for a device.
        rising = torch.tensor(grid[::-1])
        place = torch.searchsorted(rising, torch.arange(len(self.alphas_cumprod)))
        self._alpha_next = torch.where(
            place > 0, self.alphas_cumprod[rising[place - 1]], self.final_alpha_cumprod
        ).to(device)
        self._alpha = self.alphas_cumprod.to(device)
        self._begin = 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Tells at which step of the grid a pipeline begins, as image-to-image pipelines do."""
        self._begin = begin_index

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One update from `timestep` to the grid's next smaller one, or to clean data after the last (Eq 3).

        Arguments and results are those of diffusers' `DDIMScheduler.step`; `timestep` may also hold one timestep a sample. Nothing here
        waits for a device. Raises ValueError when the network returns a number that is not finite: at once on a CPU, after the grid's last
        step elsewhere, or when the next grid is laid if that step never came.
        """
        check(
            self.num_inference_steps is not None,
            "num_inference_steps",
            None,
            "call set_timesteps first",
        )
        alpha, alpha_next = self._alphas(timestep, sample)
        self._watch(model_output, timestep)
        if eta > 0 and variance_noise is None:
            shape, device, dtype = model_output.shape, model_output.device, model_output.dtype
            variance_noise = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        previous, original = ddim_step(
            sample,
            model_output,
            alpha,
            alpha_next,
            prediction_type=self.config.prediction_type,
            eta=eta,
            noise=variance_noise,
            clean=self._clean,
            keep_epsilon=not use_clipped_model_output,
        )
        return DDIMSchedulerOutput(previous, original) if return_dict else (previous, original)

    def _alphas(self, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """ᾱ at the timestep and at the grid's next smaller one, as the sample's device holds them."""
        if self._alpha.device != sample.device:
            self._alpha, self._alpha_next = (
                self._alpha.to(sample.device),
                self._alpha_next.to(sample.device),
            )
        return self._at(self._alpha, timestep, sample), self._at(self._alpha_next, timestep, sample)

    @staticmethod
    def _at(table: Tensor, timestep: int | Tensor, sample: Tensor) -> Tensor:
        if not isinstance(timestep, Tensor):
            return table[timestep]
        found = table.take(
            timestep.to(table.device)
        )  # unlike table[timestep], no wait for the timestep's value
        return (
            found
            if found.ndim == 0
            else found.to(sample.dtype).reshape(-1, *[1] * (sample.ndim - 1))
        )

    def _watch(self, model_output: Tensor, timestep: int | Tensor) -> None:
        if not self.strict:
            return
        self._seen.append(
            (model_output.aminmax(), timestep)
        )  # both are NaN if any is, and unlike isfinite() this makes no second tensor
        if self._has_values(model_output.device) or len(self._seen) + self._begin >= len(
            self.timesteps
        ):
            self._report()

    @staticmethod
    def _has_values(device: torch.device) -> bool:
        """Whether values are there at once; of an accelerator's, one only asks when the work is done."""
        return device.type == "cpu"

    def _report(self) -> None:
        seen, self._seen = self._seen, []
        for (least, greatest), t in seen:
            if not (math.isfinite(least) and math.isfinite(greatest)):
                at = int(t.flatten()[0] if isinstance(t, Tensor) else t)
                step, sigma = (
                    int((self.timesteps > at).sum()),
                    (1 - float(self.alphas_cumprod[at])) ** 0.5,
                )
                value = f"not finite at step {step} (timestep {at}, σ {sigma:.4f})"
                check(
                    False,
                    "model_output",
                    value,
                    "look at the sample there, or run the network in float32",
                )

    def _clean(self, x0: Tensor) -> Tensor:
        if self.config.thresholding:
            return self._threshold_sample(x0)
        limit = self.config.clip_sample_range
        return x0.clamp(-limit, limit) if self.config.clip_sample else x0
