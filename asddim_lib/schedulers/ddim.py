"""`ASDDIMScheduler`: DDIM on any grid, as a drop-in for diffusers pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.levels import Levels
from asddim_lib.paper import ddim_step
from asddim_lib.schedulers.mixin import TakesGrid, init_of


class ASDDIMScheduler(TakesGrid, DDIMScheduler):  # type: ignore[misc]
    """DDIM (Eq 3) on any grid: `grid`, or an `allocation` such as the paper's (Eqs 5–13).

    Without either it equals diffusers' `DDIMScheduler` to the bit, except where diffusers computes
    a step's end as t − T/K, which is no timestep of its grid.

    >>> pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="logsnr")
    """

    #: Whether a network output that is not finite raises; on a CPU only, where the check does not
    #: wait. Set it to False to draw the rest of a batch anyway.
    strict = True

    __init__ = init_of(DDIMScheduler)

    @classmethod
    def _translated(
        cls, source: dict[str, Any], changes: Mapping[str, Any], kind: str
    ) -> dict[str, Any]:
        """Latents are clipped only where the source clips them.

        Levels that DDIM's settings cannot name become `trained_betas`.
        """
        remedy = "its samples are not DDIM's: give the grid to its own scheduler, by sigmas(…)"
        check(kind == "vp", "config", f"of a {kind} scheduler", remedy)
        source.setdefault("clip_sample", False)
        source.setdefault("thresholding", False)
        source.setdefault("set_alpha_to_one", source.get("final_sigmas_type", "zero") == "zero")
        named = source.get("beta_schedule") in ("linear", "scaled_linear", "squaredcos_cap_v2")
        if not named or "snr_shift_scale" in source:
            source["trained_betas"] = Levels.from_diffusers({**source, **changes}).betas.tolist()
            source["rescale_betas_zero_snr"] = False
            source.pop("snr_shift_scale", None)
        return source

    def _check_options(self) -> None:
        super()._check_options()
        self._alphas = self.alphas_cumprod.clone()  # diffusers' add_noise moves its own

    def _set_uniform(
        self, steps: int | None, device: Any, timesteps: Any, sigmas: Any, mu: float | None
    ) -> None:
        self._set(self._steps_by_options(steps, mu), device)

    def _set(self, grid: Any, device: Any) -> None:
        """Also fills ᾱ of the next timestep for all T, so that `step` never waits for a device."""
        self._check_start(grid[0])
        self.num_inference_steps, self.numbers = len(grid), list(grid)
        self.timesteps = torch.tensor(self.numbers, dtype=torch.int64).to(device=device)
        rising = torch.tensor(self.numbers[::-1])
        place = torch.searchsorted(rising, torch.arange(len(self._alphas)))
        final = self.final_alpha_cumprod.cpu()
        lower = self._alphas[rising[(place - 1).clamp(min=0)]]
        self._alphas_next = torch.where(place > 0, lower, final)
        self._tables: dict[torch.device, Tensor] = {}

    def _check_start(self, first: int) -> None:
        silent = bool((self.betas[: first + 1] == 1).any())  # nothing of the picture is left
        blind = silent and self.config["prediction_type"] == "epsilon"
        what = f"{first}, where ᾱ is 0 and prediction_type is epsilon"
        remedy = "noise says nothing of the picture there: start lower, or use v_prediction"
        check(not blind, "timesteps", what, remedy)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """√ᾱ x₀ + √(1 − ᾱ) ε, of the samples' shape, with one timestep per sample (Eq 1)."""
        signal, deviation = self._roots(original_samples, timesteps)
        return signal * original_samples + deviation * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """√ᾱ ε − √(1 − ᾱ) x₀, the target of v-prediction, of the sample's shape."""
        signal, deviation = self._roots(sample, timesteps)
        return signal * noise - deviation * sample

    def _roots(self, sample: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1 − ᾱ) per sample: roots in float32, and then the sample's dtype."""
        alphas = self._alphas.to(sample.device)
        levels = alphas.index_select(0, timesteps.to(sample.device, torch.int64).reshape(-1))
        levels = levels.reshape(-1, *[1] * (sample.ndim - 1))
        return (levels**0.5).to(sample.dtype), ((1 - levels) ** 0.5).to(sample.dtype)

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
        """One update from `timestep` to the grid's next smaller one, or to its end (Eq 3).

        Arguments and results are those of diffusers' `DDIMScheduler.step`. `timestep` may hold one
        timestep per sample. The scheduler keeps no state of a run, and nothing waits for a device.
        Raises WrongUse, on a CPU, for a network output that is not finite.
        """
        ready = self.num_inference_steps is not None
        check(ready, "num_inference_steps", None, "call set_timesteps first")
        self._check_finite(model_output, timestep)
        alpha, alpha_next = self._levels(timestep, sample)
        if eta > 0 and variance_noise is None:
            variance_noise = randn_tensor(
                model_output.shape,
                generator=generator,
                device=model_output.device,
                dtype=model_output.dtype,
            )
        previous, original = ddim_step(
            sample,
            model_output,
            alpha,
            alpha_next,
            prediction_type=self.config["prediction_type"],
            eta=eta,
            noise=variance_noise,
            clean=self._clean,
            keep_epsilon=not use_clipped_model_output,
        )
        previous, original = previous.to(sample.dtype), original.to(sample.dtype)
        return DDIMSchedulerOutput(previous, original) if return_dict else (previous, original)

    def _levels(self, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """ᾱ at the timestep and at the grid's next smaller one, float32, on the sample's device."""
        tables = self._tables.get(sample.device)
        if tables is None:
            tables = torch.stack([self._alphas, self._alphas_next]).to(sample.device)
            self._tables[sample.device] = tables
        if not isinstance(timestep, Tensor):
            return tables[0, timestep], tables[1, timestep]
        place = timestep.to(sample.device, torch.int64).reshape(-1)
        levels = tables.index_select(1, place)  # unlike tables[:, timestep], waits for no value
        shape = () if timestep.ndim == 0 else (-1, *[1] * (sample.ndim - 1))
        return levels[0].reshape(shape), levels[1].reshape(shape)

    def _check_finite(self, model_output: Tensor, timestep: int | Tensor) -> None:
        if not self.strict or model_output.device.type != "cpu":
            return
        least, greatest = model_output.aminmax()  # either is NaN if any is; no second tensor
        if math.isfinite(least) and math.isfinite(greatest):
            return
        t = int(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        step, sigma = sum(n > t for n in self.numbers), (1 - float(self._alphas[t])) ** 0.5
        what = f"not finite at step {step} (timestep {t}, σ {sigma:.4f})"
        remedy = "look at the sample there, or run the network in float32"
        check(False, "model_output", what, remedy)

    def _clean(self, x0: Tensor) -> Tensor:
        if self.config["thresholding"]:
            return self._threshold_sample(x0)
        limit = self.config["clip_sample_range"]
        return x0.clamp(-limit, limit) if self.config["clip_sample"] else x0
