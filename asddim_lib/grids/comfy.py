"""ComfyUI's schedulers as grids: `comfy-` and ComfyUI's name, with hyphens for underscores.

They are those of ComfyUI's comfy/samplers.py; RES4LYF's __init__.py and sigmas.py add beta57 and
bong_tangent. ComfyUI defines them on the model's table of levels, one per training timestep: σ of
a diffusion model, the share of noise s of a flow model. A level between two of the table, and a
level that comes twice, goes to the nearest timesteps that are distinct. ComfyUI would draw with
the former as it is, and leaves out the latter. An EDM model is taken for a diffusion model here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asddim_lib.grids.native import Table
from asddim_lib.grids.rules import Grid, arctan, nearest
from asddim_lib.paper import NoiseSchedule, distinct

# Grids in timesteps, real numbers from T − 1 to 0.


def simple(table: Table, steps: int) -> np.ndarray:
    """Every T/K-th timestep from the highest down, the distance cut to a whole number."""
    size = len(table.levels)
    return size - 1.0 - np.floor(np.arange(steps) * (size / steps))


def ddim_uniform(table: Table, steps: int) -> np.ndarray:
    """Timesteps 1, 1 + ⌊T/K⌋, … from below.

    ComfyUI goes on to the top, so it has more than K steps where K does not divide T. These are
    the last K of them, as ComfyUI takes them for image-to-image.
    """
    size = len(table.levels)
    return np.minimum(1 + max(size // steps, 1) * np.arange(steps - 1.0, -1, -1), size - 1)


def normal(table: Table, steps: int) -> np.ndarray:
    """Evenly spaced timesteps, with both ends."""
    return np.linspace(len(table.levels) - 1, table.end, steps)


def sgm_uniform(table: Table, steps: int) -> np.ndarray:
    """Evenly spaced timesteps of K + 1, without the lowest (Stability AI's generative-models)."""
    return normal(table, steps + 1)[:-1]


def beta57(table: Table, steps: int) -> np.ndarray:
    """Quantiles of Beta(0.5, 0.7) over timesteps; ComfyUI's `beta` has 0.6 and 0.6."""
    from scipy.stats import beta as distribution

    places = distribution.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.5, 0.7)
    return np.rint(places * (len(table.levels) - 1))


# Grids in the table's own numbers, σ or s.


def linear_quadratic(table: Table, steps: int, threshold: float = 0.025) -> np.ndarray:
    """Mochi's schedule: what is denoised rises linearly to `threshold`, then quadratically to 1.

    Half of the steps are linear. The quadratic part begins with the linear part's slope.
    """
    half, k = steps // 2, np.arange(steps)
    if steps == 1:
        return table.levels[-1:]
    slope = threshold / half
    bend = (1 - slope * steps) * (np.maximum(k - half, 0) / (steps - half)) ** 2
    return (1 - slope * k - bend) * table.levels[-1]


def kl_optimal(table: Table, steps: int) -> np.ndarray:
    """Evenly spaced in the arctan of the level; of a diffusion model, the grid `arctan`."""
    return arctan(float(table.levels[-1]), float(table.levels[0]), steps)


def bong_tangent(table: Table, steps: int) -> np.ndarray:
    """Two arctan curves that meet at 1/2, three fifths of the way, and are steepest there.

    They run from 1 to 0 whatever the model, so a diffusion model begins at σ = 1 and not with
    pure noise.
    """
    if steps == 1:  # RES4LYF would divide by 0
        return np.array([min(1.0, table.levels[-1])])
    count = steps + 2
    first = int((count * 0.6 + count * 0.6) / 2)
    rise = _arctan_fall(np.arange(first) - first, 8 / count, min(1.0, table.levels[-1]), 0.5)
    fall = _arctan_fall(np.arange(count - first), 8 / count, 0.5, 0.0)
    return np.concatenate([rise[:-1], fall])[:steps]


def _arctan_fall(places: np.ndarray, slope: float, high: float, low: float) -> np.ndarray:
    """−arctan(slope × place), scaled to fall from `high` to `low`."""
    curve = -np.arctan(slope * places)
    return low + (high - low) * (curve - curve[-1]) / (curve[0] - curve[-1])


Definition = Callable[[Table, int], np.ndarray]


def _at_timesteps(definition: Definition) -> Grid:
    return lambda schedule, steps: distinct(definition(Table.of(schedule), steps))


def _at_levels(definition: Definition) -> Grid:
    def grid(schedule: NoiseSchedule, steps: int) -> list[int]:
        table = Table.of(schedule)
        return nearest(schedule, table.sigmas(definition(table, steps)))

    return grid


#: Methods of the table: summary and grid.
COMFY: dict[str, tuple[str, Grid]] = {
    "comfy-simple": ("ComfyUI's simple: every T/K-th timestep from the top", _at_timesteps(simple)),
    "comfy-sgm-uniform": (
        "ComfyUI's sgm_uniform: even timesteps, without the lowest",
        _at_timesteps(sgm_uniform),
    ),
    "comfy-ddim-uniform": (
        "ComfyUI's ddim_uniform: timesteps 1, 1 + T/K, … from below",
        _at_timesteps(ddim_uniform),
    ),
    "comfy-normal": ("ComfyUI's normal: even timesteps, with both ends", _at_timesteps(normal)),
    "comfy-linear-quadratic": (
        "ComfyUI's linear_quadratic, Mochi's: many short steps first",
        _at_levels(linear_quadratic),
    ),
    "comfy-kl-optimal": (
        "ComfyUI's kl_optimal: even in arctan of σ, of a flow model in arctan of s",
        _at_levels(kl_optimal),
    ),
    "comfy-beta57": (
        "RES4LYF's beta57: quantiles of Beta(0.5, 0.7) over timesteps",
        _at_timesteps(beta57),
    ),
    "comfy-bong-tangent": (
        "RES4LYF's bong_tangent, for flow models; others begin at σ = 1",
        _at_levels(bong_tangent),
    ),
}
