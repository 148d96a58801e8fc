"""`ASDDIMScheduler`: DDIM on any grid, as a drop-in for diffusers pipelines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.grid import check_timesteps
from asddim_lib.grids.grid import timesteps as make_timesteps
from asddim_lib.grids.table import check_allocation
from asddim_lib.levels import Levels, for_class
from asddim_lib.paper import ddim_step
from asddim_lib.schedulers import held


class ASDDIMScheduler(DDIMScheduler):
    """DDIM whose steps go where an allocation puts them (Eqs 3–13).

    It takes DDIM's settings, and: `allocation`, a name from the table of methods that needs nothing
    or a profile; `p` and `eps` of Eq 5, `lam` of Eq 9, `reading` of Eqs 10–12; and `profile`, a
    calibrated profile's `to_dict()`. Or `grid`, timesteps that it holds: `set_timesteps` lays them
    for `len(grid)` steps. Without any it is DDIM on its own `timestep_spacing` and equals
    diffusers' to the bit, except where diffusers steps beside its own grid.

    >>> pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="logsnr")
    """

    #: Whether a network output that is not finite raises (on a CPU, where that costs no wait).
    #: Set it to False to draw the rest of a batch all the same.
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
        allocation: str = "uniform",
        p: float = 0.5,
        lam: float = 1.0,
        eps: float = 1e-8,
        reading: str = "intent",
        profile: dict[str, Any] | None = None,
        grid: list[int] | None = None,
    ) -> None:
        check_allocation(allocation, profile)
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
        self._alphas = self.alphas_cumprod.cpu().clone()  # diffusers' add_noise moves its own
        if grid is not None:
            held.check_alone(allocation)
            self.register_to_config(grid=held.kept(grid, self))

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As diffusers' `from_config`, of any scheduler whose samples are DDIM's.

        What the source's class means by a setting that it leaves out goes along; latents are
        clipped only where the source clips them. Raises WrongUse for a flow-matching or EDM
        scheduler, or one whose noise levels are not known.
        """
        remedy = "give pipe.scheduler.config"
        check(isinstance(config, Mapping), "config", type(config).__name__, remedy)
        source = _translated(held.without_retired(config, kwargs), kwargs)
        return super().from_config(source, return_unused_kwargs, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Any = None,
    ) -> None:
        """Lays the grid: K steps by its allocation or held grid, or the given `timesteps`.

        Given ones (a list, array or tensor) are strictly decreasing whole numbers, 0 … T − 1.
        Raises WrongUse when both or neither are given, when one is out of range, for a K that a
        held grid has not, and for a first timestep of pure noise when the network predicts that.
        """
        given = "both given" if timesteps is not None else "neither given"
        one = (num_inference_steps is None) != (timesteps is None)
        check(one, "num_inference_steps and timesteps", given, "give one")
        if num_inference_steps is not None and self.config["grid"] is not None:
            grid = list(self.config["grid"])
            held.check_steps(grid, num_inference_steps)
        elif num_inference_steps is not None:
            grid = make_timesteps(self, num_inference_steps)
        else:
            grid = check_timesteps(timesteps, self.config["num_train_timesteps"])
        self._check_start(grid[0])
        self.num_inference_steps = len(grid)
        self.numbers = grid
        self.timesteps = torch.tensor(grid, dtype=torch.int64).to(device=device)
        self._lay(grid)

    def _lay(self, grid: list[int]) -> None:
        """Tables over all timesteps, so that `step` looks values up and waits for no device."""
        rising = torch.tensor(grid[::-1])
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
        """√ᾱ ε − √(1 − ᾱ) x₀, what v-prediction is trained on, of the sample's shape."""
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
        laid = self.num_inference_steps is not None
        check(laid, "num_inference_steps", None, "call set_timesteps first")
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


def _translated(config: Mapping[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A source scheduler's config in DDIM's words, all of it said."""
    source = for_class(ASDDIMScheduler, config)
    coordinates = Levels.from_diffusers(
        {**source, **changes}, mu=1.0
    )  # any shift tells a flow model's
    words = {"flow": "a flow-matching", "edm": "an EDM"}
    kind = words.get(coordinates.kind, coordinates.kind)
    remedy = "its samples are not DDIM's: give the grid to its own scheduler, by sigmas(…)"
    check(coordinates.kind == "vp", "config", f"{kind} scheduler's", remedy)
    source.setdefault("clip_sample", False)
    source.setdefault("thresholding", False)
    source.setdefault("set_alpha_to_one", coordinates.ends_at_zero)
    named = source.get("beta_schedule") in ("linear", "scaled_linear", "squaredcos_cap_v2")
    if not named or "snr_shift_scale" in source:  # levels that DDIM's own words cannot say
        source["trained_betas"] = coordinates.betas.tolist()
        source["rescale_betas_zero_snr"] = False
        source.pop("snr_shift_scale", None)
    return source
