"""The noise schedule: how much picture and how much noise each training timestep has (Eqs 1, 2, 4).

The paper's α_t is the cumulative product, `alphas_cumprod` here and in diffusers. Index t of an
array is diffusers' timestep t, 0 … T − 1. The paper counts the same timesteps 1 … T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from asddim_lib.core.coordinates import Coordinates
from asddim_lib.errors import check


@dataclass(frozen=True)
class NoiseSchedule:
    """The betas of a diffusion model, float64, and what follows from them.

    Build one with `from_config`. Raises WrongUse for betas outside (0, 1].
    """

    betas: np.ndarray

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        line = betas.ndim == 1 and len(betas) > 0
        check(line, "betas", betas.shape, "give one number per training timestep")
        within = bool(np.all((betas > 0) & (betas <= 1)))
        check(within, "betas", "some outside (0, 1]", "give variances of single noising steps")
        object.__setattr__(self, "betas", betas)

    @classmethod
    def from_config(cls, scheduler: Any, mu: float | None = None) -> NoiseSchedule:
        """The schedule of a diffusers scheduler, or of its config, with `mu` as `Coordinates.of`.

        A flow-matching model mixes (1 − s) of picture with s of noise. Its schedule is the one
        with the same ratio of the two, from which it differs by a scaling of x_t alone. Raises
        WrongUse for a scheduler whose noise levels are not known.
        """
        return cls(Coordinates.of(scheduler, mu).betas)

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
        """Noise over signal, σ_t / √ᾱ_t, as Euler and k-diffusion solvers count it.

        It is not the σ_t of Eq 4, and it is infinite where ᾱ is 0.
        """
        with np.errstate(divide="ignore"):
            return np.sqrt(self.variance / self.alphas_cumprod)

    @property
    def finite_sigmas(self) -> np.ndarray:
        """`sigmas` with a finite end where ᾱ ends in 0, as diffusers' Euler and DPM-Solver do."""
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
        """Mean and variance of p(x_{t−1} | x_t) for x = x_t and the predicted noise (Eq 2).

        Both have the same shape, any. `variance` is DDPM's choice: "small" for the posterior's
        β̃_t, or "large" for β_t.
        """
        check(variance in ("small", "large"), "variance", variance, "use small or large")
        beta, bar = float(self.betas[t]), float(self.alphas_cumprod[t])
        before = float(self.alphas_cumprod[t - 1]) if t > 0 else 1.0
        mean = (x - beta / math.sqrt(1 - bar) * epsilon) / math.sqrt(1 - beta)
        return mean, beta * (1 - before) / (1 - bar) if variance == "small" else beta
