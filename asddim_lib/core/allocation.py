"""From weights to a grid: where the paper spends its steps (Eqs 5–7 and 9–13). Pure functions of numbers, all in float64.

Arrays have one entry a training timestep, index t = 0 … T − 1. A *step size* h(t) says how far a step at t may go, in timesteps; the
*density* 1/h(t) says how many steps fall on t.
"""

from __future__ import annotations

import numpy as np

from asddim_lib.errors import check

READINGS = ("intent", "density", "literal")


def noise_weights(variance: np.ndarray, p: float, eps: float = 1e-8) -> np.ndarray:
    """w_t = 1 / (σ_t^p + ε), large where noise is low (Eq 5). `variance` is σ_t² (Eq 4); p ≥ 0, and p = 0 weighs all alike."""
    check(
        np.isfinite(p) and p >= 0,
        "p",
        p,
        "give a finite number of at least 0 (0 ignores the noise level)",
    )
    check(np.isfinite(eps) and eps >= 0, "eps", eps, "give a small number of at least 0")
    return 1 / (np.sqrt(variance) ** p + eps)


def normalize(weights: np.ndarray) -> np.ndarray:
    """Weights divided by their sum over t (Eq 6)."""
    return weights / weights.sum()


def steps_per_timestep(weights: np.ndarray, num_inference_steps: int) -> np.ndarray:
    """N · w̃(t): how many of N steps fall on each timestep (Eq 7, read as a density)."""
    return num_inference_steps * normalize(weights)


def gradient_step(g: np.ndarray, lam: float, normalized: bool = True) -> np.ndarray:
    """1 / (1 + λ g(t)), the step-size factor in (0, 1] that shrinks where the network is sensitive (Eq 9).

    `g` is divided by its mean over t first, so that λ has no units; `normalized=False` takes it raw.
    """
    check(
        np.isfinite(lam) and lam >= 0,
        "lam",
        lam,
        "give a finite number of at least 0 (0 ignores the gradient)",
    )
    g = np.asarray(g, np.float64)
    check(
        bool(np.all(np.isfinite(g) & (g >= 0)) and g.any()),
        "g",
        "not all finite, non-negative, some positive",
        "calibrate again",
    )
    return 1 / (1 + lam * (g / g.mean() if normalized else g))


def combined_weight(noise_weight: np.ndarray, gradient_factor: np.ndarray) -> np.ndarray:
    """w(t) = w_noise(t) · Δτ^grad(t), as printed (Eq 10)."""
    return noise_weight * gradient_factor


def step_sizes(
    noise_weight: np.ndarray, gradient_factor: np.ndarray, reading: str = "intent"
) -> np.ndarray:
    """The step size h(t), up to a factor, that a reading of Eqs 10–12 gives.

    Eq 5 is large where steps should be many, Eq 9 small there; Eq 10 multiplies them. `literal` takes the product as a step size, as
    Eq 11 prints it; `density` takes it as a density, as Eq 7 does; `intent` takes each factor for what the text says it does.
    """
    check(reading in READINGS, "reading", reading, f"use one of {', '.join(READINGS)}")
    if reading == "literal":
        return combined_weight(noise_weight, gradient_factor)
    if reading == "density":
        return 1 / combined_weight(noise_weight, gradient_factor)
    return gradient_factor / noise_weight


def excess(density: np.ndarray, best: np.ndarray, order: int = 1) -> float:
    """The error of steps that fall with one density, over the error if they fell with the `best`: 1 or more, for any number of small steps.

    A step of size 1 / density at t is off by c(t) density^−(p + 1), p being the solver's order, so that K steps are off by
    K^−p (∫ c / density^p) (∫ density)^p, and the best density is c^(1 / (p + 1)).
    """
    return float(
        (best ** (order + 1) / density**order).sum()
        * density.sum() ** order
        / best.sum() ** (order + 1)
    )


def fit_paper(
    variance: np.ndarray, g: np.ndarray, best: np.ndarray, order: int = 1
) -> tuple[float, float, float]:
    """The p of Eq 5 and the λ of Eq 9 whose density, read by intent, has the least `excess` over the best; and that excess."""
    from scipy.optimize import minimize

    def cost(x: np.ndarray) -> float:
        return excess(
            1 / step_sizes(noise_weights(variance, x[0]), gradient_step(g, x[1])), best, order
        )

    found = min(
        (
            minimize(cost, start, method="Nelder-Mead", bounds=[(0, 8), (0, 1e3)])
            for start in ([0.5, 1.0], [0.0, 0.1])
        ),
        key=lambda one: float(one.fun),
    )
    return float(found.x[0]), float(found.x[1]), float(found.fun)


def fit_grid(variance: np.ndarray, grid: list[int]) -> tuple[float, float]:
    """The p of Eq 5 whose own grid of as many steps lies nearest to a given one, to 0.01; and the root mean square distance, in timesteps."""
    powers = np.arange(0, 4.005, 0.01)
    apart = [
        float(
            np.sqrt(
                np.mean((np.array(allocate(1 / noise_weights(variance, p), len(grid))) - grid) ** 2)
            )
        )
        for p in powers
    ]
    best = int(np.argmin(apart))
    return float(powers[best]), apart[best]


def allocate(h: np.ndarray, num_inference_steps: int) -> list[int]:
    """The grid of K timesteps whose steps are proportional to h(t) and sum to T exactly (Eqs 11–13).

    Eq 11 divides by a sum over the very τ_k that it defines. Solved for all k at once, the τ_k cut the cumulative density ∫ dt / h into
    K equal parts: τ_0 = T, τ_K = 0. diffusers' timestep is τ_k − 1. Rounding keeps them distinct: strictly decreasing, first T − 1, for
    every K from 1 to T. With h constant this is diffusers' trailing grid.
    """
    size, steps = len(h), num_inference_steps
    check(
        isinstance(steps, (int, np.integer)) and 1 <= steps <= size,
        "num_inference_steps",
        steps,
        f"give a whole number, 1 to {size}",
    )
    density = 1 / np.asarray(h, np.float64)
    check(
        bool(np.all(np.isfinite(density) & (density > 0))),
        "h",
        "not all finite and positive",
        "give a step size for every timestep",
    )
    cumulative = np.concatenate([[0.0], np.cumsum(density)])
    ideal = np.interp(
        cumulative[-1] * (1 - np.arange(steps) / steps), cumulative, np.arange(size + 1)
    )
    return distinct(ideal - 1)


def distinct(ideal: np.ndarray) -> list[int]:
    """Whole timesteps nearest to the K falling, real `ideal` ones that are strictly decreasing and not negative, whatever ties rounding makes."""
    grid: list[int] = []
    for k, wanted in enumerate(ideal):
        highest = grid[-1] - 1 if grid else round(wanted)
        grid.append(max(min(round(wanted), highest), len(ideal) - 1 - k))
    return grid
