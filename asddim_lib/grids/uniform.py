"""The uniform spacings of diffusers."""

from __future__ import annotations

import numpy as np

from asddim_lib.errors import check

SPACINGS = ("leading", "trailing", "linspace")


def uniform(
    spacing: str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int = 0
) -> list[int]:
    """A uniform grid of K timesteps, as diffusers lays it.

    `leading` counts from 0 up and adds the offset, `trailing` counts from T down, `linspace`
    includes both ends. Raises WrongUse for another spacing, and for an offset that moves the first
    step beyond T − 1.
    """
    size, steps = num_train_timesteps, num_inference_steps
    check(spacing in SPACINGS, "timestep_spacing", spacing, f"use one of {', '.join(SPACINGS)}")
    if spacing == "linspace":
        grid = np.linspace(0, size - 1, steps).round()[::-1]
    elif spacing == "leading":
        grid = np.arange(0.0, steps)[::-1] * (size // steps) + steps_offset
        beyond = f"{steps} leading steps would begin at {grid[0]:g}, beyond {size - 1}"
        remedy = f"{beyond}: use trailing, or no offset"
        check(grid[0] < size, "steps_offset", steps_offset, remedy)
    else:
        # For K of 61, 103, … diffusers has one more entry, −1, by rounding; it is cut off here.
        grid = np.arange(size, 0, -size / steps)[:steps].round() - 1
    return [int(t) for t in grid]
