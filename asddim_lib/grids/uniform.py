"""diffusers' uniform spacings."""

from __future__ import annotations

import numpy as np

from asddim_lib.errors import check

SPACINGS = ("leading", "trailing", "linspace")


def uniform(
    spacing: str, num_train_timesteps: int, num_inference_steps: int, steps_offset: int = 0
) -> list[int]:
    """diffusers' uniform grids: `leading` (from 0 up, plus the offset), `trailing` (from T down), `linspace` (both ends)."""
    size, steps = num_train_timesteps, num_inference_steps
    check(spacing in SPACINGS, "timestep_spacing", spacing, f"use one of {', '.join(SPACINGS)}")
    if spacing == "linspace":
        grid = np.linspace(0, size - 1, steps).round()[::-1]
    elif spacing == "leading":
        grid = np.arange(0.0, steps)[::-1] * (size // steps) + steps_offset
        check(
            grid[0] < size,
            "steps_offset",
            steps_offset,
            f"{steps} leading steps would begin at {grid[0]:g}, beyond {size - 1}: use trailing, or no offset",
        )
    else:
        grid = (
            np.arange(size, 0, -size / steps)[:steps].round() - 1
        )  # diffusers' has one more, −1, for K of 61, 103, … : a rounding slip
    return [int(t) for t in grid]
