"""The grids that a tuning tries: those that others would take, and a small family of our own.

Few parameters fit few prompts better than free timesteps do. The family has three: which error is
made equal, the power that its density is raised to, and where the first step begins.
"""

from __future__ import annotations

import itertools
from typing import Any

from asddim_lib.core.coordinates import is_flow
from asddim_lib.errors import WrongUse
from asddim_lib.evidence.profile import SensitivityProfile
from asddim_lib.evidence.trajectory import Trajectory
from asddim_lib.grids.grid import numbers
from asddim_lib.grids.methods import METHODS

#: What a user would pick instead. The last two are searched on a recorded path.
PEERS = ("trailing", "leading", "karras", "logsnr", "beta", "arctan", "ays-sd15", "gits", "tors")
FLOW_PEERS = ("trailing", "karras", "beta", "beta57", "linear_quadratic", "logsnr", "gits", "tors")
#: The densities by what is weighed, the last of them first.
DENSITIES = {"seen": "feature-weighted", "carried": "dual-weighted", "made": "equidistributed"}
TEMPERS = (1.0, 0.5)
#: How far below T the first step begins, in steps of an even grid.
LATER = (0.0, 1.0)


def peers(config: Any, steps: int, path: Trajectory | None, order: int = 1) -> dict[str, list[int]]:
    """The grids of `PEERS`, or `FLOW_PEERS`, by name, each different from those before it.

    A grid that has no such number of steps is left out.
    """
    found: dict[str, list[int]] = {}
    for name in FLOW_PEERS if is_flow(config) else PEERS:
        how: dict[str, Any] = {"allocation": name, "order": order}
        if METHODS[name].needs == "path":
            if path is None:
                continue
            how["path"] = path
        try:
            grid = numbers(config, steps, how)
        except WrongUse:
            continue
        if grid not in found.values():
            found[name] = grid
    return found


def family(
    config: Any, steps: int, profile: SensitivityProfile, order: int = 1
) -> dict[str, list[int]]:
    """Grids of the profile's densities, by name: kind, power, and how much later it begins."""
    found: dict[str, list[int]] = {}
    size = int(config["num_train_timesteps"])
    measured = [kind for kind in DENSITIES if kind in (profile.local_error or {})]
    for kind, temper, later in itertools.product(measured, TEMPERS, LATER):
        begin = size - 1 - round(later * size / steps)
        how = {"allocation": DENSITIES[kind], "profile": profile, "temper": temper}
        grid = numbers(config, steps, {**how, "begin": begin, "order": order})
        if grid not in found.values():
            found[f"{DENSITIES[kind]}^{temper:g}, from {begin}"] = grid
    return found
