"""The paper's p and λ whose grid comes nearest to a measured density of steps."""

from __future__ import annotations

import numpy as np

from asddim_lib.paper import gradient_step, noise_weights, step_sizes


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
