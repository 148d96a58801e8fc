"""Grids of flow-matching models: levels of noise s in (0, 1], as the network sees them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from asddim_lib.core.coordinates import flow_shift
from asddim_lib.errors import check
from asddim_lib.grids.grid import numbers


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


def evenly_spaced(sigmas: Any) -> bool:
    """Whether sigmas are what a pipeline gives by itself: evenly spaced, from 1 down to 1/K.

    FLUX, Chroma, Qwen-Image, Z-Image, HunyuanVideo and LTX give these to any scheduler.
    """
    values = np.asarray(sigmas, np.float64)
    even = np.linspace(1, 1 / max(1, len(values)), len(values))
    return np.allclose(values, even, atol=1e-6)


def with_boundary(levels: np.ndarray, boundary: float) -> np.ndarray:
    """The grid with a step that begins at the boundary between two networks.

    The node that is nearest moves just below it: a pipeline asks the network of high noise at the
    boundary itself. Raises WrongUse for fewer than two nodes.
    """
    remedy = "give at least 2: a step above the boundary and one below it"
    check(len(levels) > 1, "num_inference_steps", len(levels), remedy)
    inner = np.arange(1, len(levels))
    nearest = int(inner[np.abs(levels[inner] - boundary).argmin()])
    moved = levels.copy()
    moved[nearest] = boundary - 1e-4
    falling = bool((np.diff(moved) < 0).all())
    what = f"{boundary}, with no node above it"
    check(falling, "boundary", what, "give more steps, or a grid that begins above it")
    return moved
