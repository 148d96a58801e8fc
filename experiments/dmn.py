"""DMN (Xue et al. 2024): the grid with the least bound on the effect of the network's errors."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np

from asddim_lib.errors import check
from asddim_lib.levels import Levels
from asddim_lib.paper import distinct

#: Points and weights of the rule that integrates over a step: exact to machine precision there.
LEGENDRE = np.polynomial.legendre.leggauss(8)


def dmn(levels: Levels, steps: int) -> list[int]:
    """The K timesteps with the least bound for a multistep solver of order 3; needs no model.

    The search starts at uniform timesteps, as the authors advise for latent models. The bound has
    many minima, and rounding decides between them: another machine may return another grid, with a
    bound a few per cent higher or lower. Raises WrongUse beyond 64 steps, which take minutes.
    """
    remedy = "give at most 64 for dmn, whose search grows with their cube"
    check(steps <= 64, "num_inference_steps", steps, remedy)
    places = np.linspace(len(levels) - 1, 0, steps + 1)
    start = np.interp(places, np.arange(len(levels)), -np.log(levels.finite_sigmas))
    # The last step ends at the last node, timestep 0: nearly clean data.
    nodes = np.array(least_bound(tuple(start.tolist()))[:-1])
    log_sigmas = np.log(levels.finite_sigmas)
    return distinct(np.interp(-nodes, log_sigmas, np.arange(len(levels))))


@cache
def least_bound(start: tuple[float, ...]) -> tuple[float, ...]:
    from scipy.optimize import LinearConstraint, minimize

    steps = len(start) - 1
    if steps == 1:
        return start
    # Each row is the difference of two neighbouring nodes, which must not fall; the ends are fixed.
    rising = np.eye(steps, steps - 1) - np.eye(steps, steps - 1, -1)
    least = np.concatenate([[start[0]], np.zeros(steps - 2), [-start[-1]]])

    def bound(inner: np.ndarray) -> np.ndarray:
        ends = [(0, 0)] * (inner.ndim - 1) + [(1, 1)]
        return bound_of(np.pad(inner, ends, constant_values=[(start[0], start[-1])]))

    def slope(inner: np.ndarray) -> np.ndarray:
        """Forward differences, all in one call of the bound."""
        moves = np.sqrt(np.finfo(float).eps) * np.where(inner < 0, -1, 1) * np.fmax(1, abs(inner))
        moved = inner + np.diag(moves)
        return (bound(moved) - bound(inner)) / (moved - inner).diagonal()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the quasi-Newton update of a flat stretch
        result = minimize(
            lambda inner: float(bound(inner)),
            start[1:-1],
            jac=slope,
            method="trust-constr",
            constraints=[LinearConstraint(rising, least, np.inf)],
        )
    return (start[0], *result.x.tolist(), start[-1])


def bound_of(nodes: np.ndarray) -> np.ndarray:
    """The bound that `dmn` minimizes, at half-log-SNRs λ_0 … λ_K (… × K + 1), for each row.

    Step s integrates e^λ times the polynomial through the last min(s + 1, 3, K − s) values of
    x̂_0, whose errors are taken to be σ_t²/√ᾱ_t. As in the authors' code, the first three steps
    count separately, the others by the summed weight of each value.
    """
    steps = nodes.shape[-1] - 1
    error = 1 / (np.sqrt(1 + np.exp(2 * nodes)) * np.exp(nodes))
    order = np.minimum(np.minimum(np.arange(steps) + 1, 3), steps - np.arange(steps))
    total, summed = np.zeros(nodes.shape[:-1]), np.zeros((steps, *nodes.shape[:-1]))
    for number in (1, 2, 3):
        of_order = np.flatnonzero(order == number)
        past, weights = _weights(nodes, of_order, number)
        share = weights * error[..., past]
        separate = of_order < 3
        total += np.sqrt((share[..., separate, :] ** 2).sum(-1)).sum(-1)
        np.add.at(summed, past[~separate], np.moveaxis(share[..., ~separate, :], (-2, -1), (0, 1)))
    return total + np.abs(summed).sum(0)


def _weights(nodes: np.ndarray, of_order: np.ndarray, number: int) -> tuple:
    """The past values of x̂_0 that the steps use (steps × number), and their weights (… × both).

    A weight is the integral over the step of e^λ times the value's Lagrange basis polynomial.
    """
    points, weights = LEGENDRE
    past = of_order[:, None] + np.arange(1 - number, 1)
    half = (nodes[..., of_order + 1] - nodes[..., of_order])[..., None] / 2
    at = nodes[..., of_order][..., None] + half * (1 + points)
    integrals = np.zeros((*nodes.shape[:-1], *past.shape))
    for j in range(number):
        basis = np.exp(at) * half
        for m in set(range(number)) - {j}:
            width = (nodes[..., past[:, j]] - nodes[..., past[:, m]])[..., None]
            basis = basis * (at - nodes[..., past[:, m], None]) / width
        integrals[..., j] = basis @ weights
    return past, integrals
