"""The noise schedule: how much of the picture and how much noise there is at every training timestep (Eqs 1, 2, 4).

The paper's α_t is the cumulative product, `alphas_cumprod` here and in diffusers. Index t of an array is diffusers' timestep t,
0 … T − 1; the paper counts the same timesteps 1 … T.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from asddim_lib.errors import check


@dataclass(frozen=True)
class NoiseSchedule:
    """The betas of a diffusion model, float64, and what follows from them; build one with `from_config`."""

    betas: np.ndarray

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        check(
            betas.ndim == 1 and len(betas) > 0,
            "betas",
            betas.shape,
            "give one number a training timestep",
        )
        check(
            bool(np.all((betas > 0) & (betas <= 1))),
            "betas",
            "some outside (0, 1]",
            "give variances of single noising steps",
        )
        object.__setattr__(self, "betas", betas)

    @classmethod
    def from_config(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule of a diffusers scheduler, or of its config, by diffusers' own formulas in float64.

        A flow-matching model mixes (1 − s) of picture with s of noise; its schedule is the one with the same ratio of the two, with which
        it differs by a scaling of x_t alone. Raises ValueError when the config names no known beta schedule, or a shift that depends on
        the picture's size.
        """
        config = _config(scheduler)
        size = config.get("num_train_timesteps", 1000)
        if is_flow(config):
            mix = flow_shift(np.arange(1, size + 1) / size, config)
            bars = (1 - mix) ** 2 / ((1 - mix) ** 2 + mix**2)
            return cls(1 - bars / np.concatenate([[1.0], bars[:-1]]))
        start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
        name = config.get("beta_schedule", "linear")
        if config.get("trained_betas") is not None:
            betas = np.asarray(config["trained_betas"], np.float64)
        elif name == "linear":
            betas = np.linspace(start, end, size)
        elif name == "scaled_linear":
            betas = np.linspace(start**0.5, end**0.5, size) ** 2
        elif name == "squaredcos_cap_v2":
            bars = [
                math.cos((i / size + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(size + 1)
            ]
            betas = np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bars)])
        else:
            raise ValueError(
                f"beta_schedule is {name!r}; use linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
            )
        if config.get("rescale_betas_zero_snr"):
            roots = np.sqrt(np.cumprod(1 - betas))
            roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
            bars = roots**2
            betas = 1 - bars / np.concatenate([[1.0], bars[:-1]])
        return cls(betas)

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ_t, the share of the picture's variance that is left at timestep t."""
        return np.cumprod(1 - self.betas)

    @property
    def variance(self) -> np.ndarray:
        """σ_t² = 1 − ᾱ_t, the variance of the noise at timestep t (Eq 4)."""
        return 1 - self.alphas_cumprod

    @property
    def sigmas(self) -> np.ndarray:
        """σ_t / √ᾱ_t, noise over signal, as Euler and k-diffusion solvers count it; infinite where ᾱ is 0. Not the σ_t of Eq 4."""
        with np.errstate(divide="ignore"):
            return np.sqrt(self.variance / self.alphas_cumprod)

    @property
    def finite_sigmas(self) -> np.ndarray:
        """`sigmas`, with the last one finite where ᾱ ends in 0, as diffusers' Euler and DPM-Solver make it."""
        bars = np.maximum(self.alphas_cumprod, 2.0**-24)
        return np.sqrt((1 - bars) / bars)

    @property
    def snr(self) -> np.ndarray:
        """Signal-to-noise ratio ᾱ_t / σ_t²."""
        return self.alphas_cumprod / self.variance

    def forward_step(self, x: Tensor, t: int) -> tuple[Tensor, float]:
        """Mean and variance of q(x_t | x_{t−1}) for x = x_{t−1} of any shape (Eq 1)."""
        beta = float(self.betas[t])
        return math.sqrt(1 - beta) * x, beta

    def reverse_step(
        self, x: Tensor, epsilon: Tensor, t: int, variance: str = "small"
    ) -> tuple[Tensor, float]:
        """Mean and variance of p(x_{t−1} | x_t) for x = x_t and the predicted noise, both of any one shape (Eq 2).

        `variance` is "small" for the posterior's β̃_t or "large" for β_t, DDPM's two choices.
        """
        check(variance in ("small", "large"), "variance", variance, "use small or large")
        beta, bar = float(self.betas[t]), float(self.alphas_cumprod[t])
        before = float(self.alphas_cumprod[t - 1]) if t > 0 else 1.0
        mean = (x - beta / math.sqrt(1 - bar) * epsilon) / math.sqrt(1 - beta)
        return mean, beta * (1 - before) / (1 - bar) if variance == "small" else beta


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler, or its config, is a flow-matching one."""
    config = _config(scheduler)
    return "shift" in config and "beta_start" not in config


def flow_shift(mix: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Flow matching's share of noise s in (0, 1], moved towards noise by the config's `shift`, as diffusers moves it."""
    dynamic = config.get("use_dynamic_shifting", False)
    check(
        not dynamic,
        "use_dynamic_shifting",
        dynamic,
        "give a scheduler with a fixed shift: from_config(…, use_dynamic_shifting=False, shift=…)",
    )
    shift = config["shift"]
    return shift * mix / (1 + (shift - 1) * mix)


def _config(scheduler: Any) -> Mapping[str, Any]:
    config = getattr(scheduler, "config", scheduler)
    check(
        isinstance(config, Mapping),
        "scheduler",
        type(scheduler).__name__,
        "give a diffusers scheduler or its config",
    )
    return config
