"""The paper, line by line: noise (Eqs 1, 2, 4), the DDIM step (Eq 3), the grid (Eqs 5-7, 9-13).

Pure functions of numbers and tensors, float64 where they are numbers. The paper's α_t is the
cumulative product, `alphas_cumprod` here and in diffusers. Index t of an array is diffusers'
timestep t, 0 … T − 1; the paper counts the same timesteps 1 … T. Eq 8 is in `sensitivity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from asddim_lib.errors import check, check_whole

READINGS = ("intent", "density", "literal")


def noise_weights(variance: np.ndarray, p: float, eps: float = 1e-8) -> np.ndarray:
    """w_t = 1 / (σ_t^p + ε), large where noise is low (Eq 5).

    `variance` is σ_t² (Eq 4). p = 0 weighs all timesteps alike. Raises WrongUse for a negative or
    infinite `p` or `eps`.
    """
    remedy = "give a finite number of at least 0 (0 ignores the noise level)"
    check(np.isfinite(p) and p >= 0, "p", p, remedy)
    check(np.isfinite(eps) and eps >= 0, "eps", eps, "give a small number of at least 0")
    return 1 / (np.sqrt(variance) ** p + eps)


def normalize(weights: np.ndarray) -> np.ndarray:
    """Weights divided by their sum over t (Eq 6)."""
    return weights / weights.sum()


def steps_per_timestep(weights: np.ndarray, num_inference_steps: int) -> np.ndarray:
    """N · w̃(t): how many of N steps fall on each timestep (Eq 7, read as a density)."""
    return num_inference_steps * normalize(weights)


def gradient_step(g: np.ndarray, lam: float, normalized: bool = True) -> np.ndarray:
    """1 / (1 + λ g(t)): a factor in (0, 1], small where the network is sensitive (Eq 9).

    `g` is first divided by its mean over t, so λ has no units; `normalized=False` uses it raw.
    Raises WrongUse for a negative or infinite `lam`, and for a `g` that is negative or infinite
    anywhere or zero everywhere.
    """
    remedy = "give a finite number of at least 0 (0 ignores the gradient)"
    check(np.isfinite(lam) and lam >= 0, "lam", lam, remedy)
    g = np.asarray(g, np.float64)
    usable = bool(np.all(np.isfinite(g) & (g >= 0)) and g.any())
    check(usable, "g", "not all finite, non-negative, some positive", "calibrate again")
    return 1 / (1 + lam * (g / g.mean() if normalized else g))


def combined_weight(noise_weight: np.ndarray, gradient_factor: np.ndarray) -> np.ndarray:
    """w(t) = w_noise(t) · Δτ^grad(t), as printed (Eq 10)."""
    return noise_weight * gradient_factor


def step_sizes(
    noise_weight: np.ndarray, gradient_factor: np.ndarray, reading: str = "intent"
) -> np.ndarray:
    """The step size h(t), up to a constant factor, under one reading of Eqs 10–12.

    Eq 5 is large where steps should be dense; Eq 9 is small there; Eq 10 multiplies the two.
    `literal` takes the product as a step size, as Eq 11 prints it. `density` takes it as a
    density, as Eq 7 does. `intent` uses each factor as the text describes it. Raises WrongUse for
    another reading.
    """
    check(reading in READINGS, "reading", reading, f"use one of {', '.join(READINGS)}")
    if reading == "literal":
        return combined_weight(noise_weight, gradient_factor)
    if reading == "density":
        return 1 / combined_weight(noise_weight, gradient_factor)
    return gradient_factor / noise_weight


def allocate(h: np.ndarray, num_inference_steps: int) -> list[int]:
    """The grid of K timesteps whose steps are proportional to h(t) and sum to T (Eqs 11–13).

    Eq 11 divides by a sum over the τ_k that it defines. Solved for all k at once, the τ_k cut the
    cumulative density ∫ dt / h into K equal parts, from τ_0 = T to τ_K = 0. The timestep of
    diffusers is τ_k − 1. Rounding keeps the K timesteps strictly decreasing from T − 1, for every
    K from 1 to T. A constant h gives diffusers' trailing grid. Raises WrongUse for K outside
    1 … T, and for an `h` that is not finite and positive everywhere.
    """
    size, steps = len(h), num_inference_steps
    check_whole("num_inference_steps", steps, 1, size)
    density = 1 / np.asarray(h, np.float64)
    usable = bool(np.all(np.isfinite(density) & (density > 0)))
    check(usable, "h", "not all finite and positive", "give a step size for every timestep")
    cumulative = np.concatenate([[0.0], np.cumsum(density)])
    cuts = cumulative[-1] * (1 - np.arange(steps) / steps)
    return distinct(np.interp(cuts, cumulative, np.arange(size + 1)) - 1)


def distinct(ideal: np.ndarray) -> list[int]:
    """Rounds K falling real timesteps to whole ones: strictly decreasing, none negative."""
    grid: list[int] = []
    for k, timestep in enumerate(ideal):
        highest = grid[-1] - 1 if grid else round(timestep)
        grid.append(max(min(round(timestep), highest), len(ideal) - 1 - k))
    return grid


@dataclass(frozen=True)
class NoiseSchedule:
    """The betas of a diffusion model, float64, and what follows from them.

    Build one with `levels.noise_schedule`. Raises WrongUse for betas outside (0, 1].
    """

    betas: np.ndarray

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        line = betas.ndim == 1 and len(betas) > 0
        check(line, "betas", betas.shape, "give one number per training timestep")
        within = bool(np.all((betas > 0) & (betas <= 1)))
        check(within, "betas", "some outside (0, 1]", "give variances of single noising steps")
        object.__setattr__(self, "betas", betas)

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


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def predict(
    sample: Tensor, model_output: Tensor, alpha: Tensor, prediction_type: str = "epsilon"
) -> tuple[Tensor, Tensor]:
    """Converts a network's output to the clean picture x̂_0 and the noise ε.

    `alpha` is ᾱ at the sample's timestep: a scalar, or a tensor that broadcasts with the sample.
    Both results have the sample's shape. Raises WrongUse for an unknown `prediction_type`.
    """
    known = prediction_type in PREDICTION_TYPES
    remedy = f"use one of {', '.join(PREDICTION_TYPES)}"
    check(known, "prediction_type", prediction_type, remedy)
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    if prediction_type == "epsilon":
        return (sample - noise * model_output) / signal, model_output
    if prediction_type == "sample":
        return model_output, (sample - signal * model_output) / noise
    return signal * sample - noise * model_output, signal * model_output + noise * sample


def ddim_step(
    sample: Tensor,
    model_output: Tensor,
    alpha: Tensor,
    alpha_next: Tensor,
    *,
    prediction_type: str = "epsilon",
    eta: float = 0.0,
    noise: Tensor | None = None,
    clean: Callable[[Tensor], Tensor] | None = None,
    keep_epsilon: bool = True,
) -> tuple[Tensor, Tensor]:
    """One DDIM update to any less noisy timestep (Eq 3): the next sample and x̂_0.

    Both have the sample's shape. `alpha` and `alpha_next` are ᾱ at the two timesteps. η > 0 adds
    η times DDPM's noise and requires `noise`, standard normal. `clean` edits x̂_0 (clipping,
    thresholding); `keep_epsilon=False` then recomputes ε from the edited x̂_0. The operations and
    their order are those of diffusers, so float32 results agree bit for bit. Raises WrongUse for
    η outside [0, 1], for η > 0 without `noise`, and for an unknown `prediction_type`.
    """
    x0, epsilon = predict(sample, model_output, alpha, prediction_type)
    if clean is not None:
        x0 = clean(x0)
    if not keep_epsilon:
        epsilon = (sample - alpha**0.5 * x0) / (1 - alpha) ** 0.5
    if eta == 0:
        return alpha_next**0.5 * x0 + (1 - alpha_next) ** 0.5 * epsilon, x0
    check(0 < eta <= 1, "eta", eta, "give a number from 0 (deterministic) to 1 (DDPM's noise)")
    remedy = "eta > 0 needs standard normal noise of the sample's shape"
    check(noise is not None, "noise", noise, remedy)
    assert noise is not None
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    deviation = eta * variance**0.5
    # The direction's variance is 0 where η = 1 and ᾱ = 0; rounding can make it negative.
    direction = (1 - alpha_next - deviation**2).clamp(min=0)
    return alpha_next**0.5 * x0 + direction**0.5 * epsilon + deviation * noise, x0
