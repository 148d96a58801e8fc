"""From weights to a grid: where the paper spends its steps (Eqs 5–7 and 9–13).

Pure functions of numbers, all in float64. Arrays have one entry per training timestep, index
t = 0 … T − 1. A *step size* h(t) is the length of a step at t, in timesteps; the *density* 1/h(t)
is the number of steps per timestep.
"""

from __future__ import annotations

import numpy as np

from asddim_lib.errors import check

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


def excess(density: np.ndarray, best: np.ndarray, order: int = 1) -> float:
    """The error under one step density, divided by the error under the `best` one; at least 1.

    With a solver of order p, a step of size 1 / density makes the error c(t) density^−(p + 1), so
    K small steps add up to K^−p (∫ c / density^p) (∫ density)^p. The best density is
    c^(1 / (p + 1)), and the ratio does not depend on K.
    """
    moment = (best ** (order + 1) / density**order).sum()
    return float(moment * density.sum() ** order / best.sum() ** (order + 1))


def fit_paper(
    variance: np.ndarray, g: np.ndarray, best: np.ndarray, order: int = 1
) -> tuple[float, float, float]:
    """The p of Eq 5 and the λ of Eq 9 with the least `excess` over the best density.

    Eqs 10–12 are read by intent. Returns p, λ and that excess.
    """
    from scipy.optimize import minimize

    def cost(x: np.ndarray) -> float:
        h = step_sizes(noise_weights(variance, x[0]), gradient_step(g, x[1]))
        return excess(1 / h, best, order)

    fits = [
        minimize(cost, start, method="Nelder-Mead", bounds=[(0, 8), (0, 1e3)])
        for start in ([0.5, 1.0], [0.0, 0.1])
    ]
    fit = min(fits, key=lambda candidate: float(candidate.fun))
    return float(fit.x[0]), float(fit.x[1]), float(fit.fun)


def fit_grid(variance: np.ndarray, grid: list[int]) -> tuple[float, float]:
    """The p of Eq 5, to 0.01, whose grid of the same length lies nearest to the given one.

    Returns p and the root mean square distance, in timesteps.
    """
    powers = np.arange(0, 4.005, 0.01)

    def distance(p: float) -> float:
        laid = np.array(allocate(1 / noise_weights(variance, p), len(grid)))
        return float(np.sqrt(np.mean((laid - grid) ** 2)))

    distances = [distance(p) for p in powers]
    nearest = int(np.argmin(distances))
    return float(powers[nearest]), distances[nearest]


def allocate(h: np.ndarray, num_inference_steps: int) -> list[int]:
    """The grid of K timesteps whose steps are proportional to h(t) and sum to T (Eqs 11–13).

    Eq 11 divides by a sum over the τ_k that it defines. Solved for all k at once, the τ_k cut the
    cumulative density ∫ dt / h into K equal parts, from τ_0 = T to τ_K = 0. The timestep of
    diffusers is τ_k − 1. Rounding keeps the K timesteps strictly decreasing from T − 1, for every
    K from 1 to T. A constant h gives diffusers' trailing grid. Raises WrongUse for K outside
    1 … T, and for an `h` that is not finite and positive everywhere.
    """
    size, steps = len(h), num_inference_steps
    whole = isinstance(steps, (int, np.integer)) and 1 <= steps <= size
    check(whole, "num_inference_steps", steps, f"give a whole number, 1 to {size}")
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
