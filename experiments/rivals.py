"""Grids that only the experiments compare: importing this module adds them to the table."""

from __future__ import annotations

import numpy as np

from asddim_lib.grids.published import rule_of
from asddim_lib.grids.rules import Rule, arctan, in_share
from asddim_lib.grids.table import Method, Options, by_path, by_rule, register
from asddim_lib.levels import Levels
from asddim_lib.paper import allocate, distinct, gradient_step, noise_weights, step_sizes
from experiments import searches
from experiments.dmn import dmn
from experiments.stopping import STOPPING


def beta_sigmas(high: float, low: float, steps: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Quantiles of a Beta distribution over σ (Lee et al. 2024), as diffusers reads them."""
    from scipy.stats import beta as distribution

    return low + distribution.ppf(np.linspace(1, 0, steps), a, b) * (high - low)


# ComfyUI's schedulers (comfy/samplers.py), on the model's table of levels, one per timestep.


def simple(levels: Levels, steps: int) -> list[int]:
    """Every T/K-th timestep from the highest down, the distance cut to a whole number."""
    size = len(levels)
    return distinct(size - 1.0 - np.floor(np.arange(steps) * (size / steps)))


def ddim_uniform(levels: Levels, steps: int) -> list[int]:
    """Timesteps 1, 1 + ⌊T/K⌋, … from below.

    Where K does not divide T, ComfyUI has more than K steps. These are the last K, as it takes them
    for image-to-image.
    """
    size = len(levels)
    places = 1 + max(size // steps, 1) * np.arange(steps - 1.0, -1, -1)
    return distinct(np.minimum(places, size - 1))


def normal(levels: Levels, steps: int) -> list[int]:
    """Evenly spaced timesteps, with both ends."""
    return distinct(_even(levels, steps))


def sgm_uniform(levels: Levels, steps: int) -> list[int]:
    """Evenly spaced timesteps of K + 1, without the lowest (Stability AI's generative-models)."""
    return distinct(_even(levels, steps + 1)[:-1])


def _even(levels: Levels, count: int) -> np.ndarray:
    end = 0.0
    if levels.kind == "flow":  # ComfyUI counts 1000 s as timesteps, and shifts them a second time
        size = 1 + levels.shift / levels.sigmas[0]
        end = size * float(levels.shares[0]) - 1
    return np.linspace(len(levels) - 1, end, count)


def fitted(levels: Levels, steps: int, options: Options) -> list[int]:
    """Combined (Eqs 10–13), with the p and λ nearest to dual-weighted."""
    assert options.profile is not None  # `timesteps_of` has checked what the method needs
    p, lam, _ = options.profile.fit(levels, options.order)
    factor = gradient_step(options.profile.at(levels), lam)
    return allocate(options.cut(step_sizes(noise_weights(levels.variance, p), factor)), steps)


_RULES: dict[str, tuple[str, Rule]] = {
    "dmn": ("the least bound on a multistep solver's error (Xue et al. 2024)", dmn),
    "beta-sigmas": (
        "quantiles of Beta(0.6, 0.6) over σ, on flow models over s",
        in_share(beta_sigmas),
    ),
    "ays-deepfloyd": (
        "Align Your Steps, as published for DeepFloyd IF",
        rule_of("ays-deepfloyd"),
    ),
    "comfy-simple": ("ComfyUI's simple: every T/K-th timestep from the top", simple),
    "comfy-sgm-uniform": (
        "ComfyUI's sgm_uniform: even timesteps, without the lowest",
        sgm_uniform,
    ),
    "comfy-ddim-uniform": (
        "ComfyUI's ddim_uniform: timesteps 1, 1 + T/K, … from below",
        ddim_uniform,
    ),
    "comfy-normal": ("ComfyUI's normal: even timesteps, with both ends", normal),
    "comfy-kl-optimal": (
        "ComfyUI's kl_optimal: even in arctan of σ, of a flow model in arctan of s",
        in_share(arctan),
    ),
    **STOPPING,
}
for _name, (_summary, _rule) in _RULES.items():
    _kind = "vp" if _name == "ays-deepfloyd" else None
    register(Method(_name, "nothing", _summary, by_rule(_rule), _kind))
_SEARCHES = {
    "oracle": ("path", "the least summed deviation from a recorded path", searches.oracle),
    "constant-rate": (
        "path",
        "the predicted sample changes alike in each step (CRS, Okada et al. 2026)",
        searches.constant_rate,
    ),
    "dual-path": (
        "adjoints",
        "the least error at the path's end, with signs, by local search",
        searches.dual_path,
    ),
}
for _name, (_needs, _summary, _search) in _SEARCHES.items():
    register(Method(_name, _needs, _summary, by_path(_search)))
register(Method("fitted", "profile", "combined, with the p and λ nearest to dual-weighted", fitted))
