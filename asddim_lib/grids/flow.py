"""Grids of flow-matching models: levels of noise s in (0, 1], as the network sees them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from asddim_lib.errors import check
from asddim_lib.grids.grid import numbers
from asddim_lib.grids.rules import linear_quadratic
from asddim_lib.levels import flow_shift


def flow_levels(config: Mapping[str, Any], steps: int) -> np.ndarray:
    """The K levels (float64, falling) of a flow scheduler's config, by its allocation.

    The config's shift is static (`with_fixed_shift`). Its shift is in the levels already.
    """
    size = int(config["num_train_timesteps"])
    grid = numbers({**config, "timestep_spacing": "trailing"}, steps, {})
    return flow_shift((np.array(grid) + 1) / size, config)


def check_sigmas(name: str, sigmas: Any) -> None:
    """Raises WrongUse unless `sigmas` fall strictly within (0, 1]."""
    values = [float(sigma) for sigma in sigmas]
    falling = bool(values) and all(a > b for a, b in itertools.pairwise(values))
    right = falling and values[-1] > 0 and values[0] <= 1
    check(right, name, values, "give strictly falling sigmas in (0, 1], without the 0 at the end")


def of_a_pipeline(sigmas: Any, timesteps: Any, num_train_timesteps: int) -> bool:
    """Whether a pipeline asks for these by itself, whatever its user says.

    Nothing; or evenly spaced sigmas, from 1 down to 1/K (FLUX, Chroma, Lumina 2, Qwen-Image,
    HunyuanVideo, LTX); or evenly spaced whole timesteps, from T down to 1, and also their sigmas
    (CogView 4, GLM-Image); or linear-quadratic levels, as sigmas (Mochi) or as timesteps (LTX with
    conditions).
    """
    if sigmas is None and timesteps is None:
        return True
    size = num_train_timesteps
    if timesteps is None:
        steps = len(sigmas)
        evenly = _near(sigmas, np.linspace(1, 1 / max(1, steps), steps))
        return evenly or _near(sigmas, linear_quadratic(steps))
    steps = len(timesteps)
    if sigmas is None:
        return _near(np.asarray(timesteps, float) / size, linear_quadratic(steps))
    cog, glm = np.linspace(size, 1, steps), np.linspace(size, 1, steps + 1)[:-1]
    even = next((e for e in (cog.astype(int), glm.astype(int)) if _near(timesteps, e)), None)
    return even is not None and _near(sigmas, even / size)


def _near(given: Any, values: np.ndarray) -> bool:
    return len(given) == len(values) and np.allclose(np.asarray(given, float), values, atol=1e-6)
