"""DMN's grids on any machine: its bound has many minima, and rounding chooses one."""

import numpy as np

from asddim_lib import timesteps
from asddim_lib.grids.rules import _dmn_bound
from asddim_lib.levels import noise_schedule


def check_as_good(config, found, recorded):
    """Fails unless both grids make DMN's bound small, and neither much smaller."""
    bounds = [bound(config, grid) for grid in (found, recorded)]
    assert max(bounds) < 1.15 * min(bounds)
    plain = timesteps(config, len(found), allocation="trailing")
    assert max(bounds) < 0.8 * bound(config, plain)


def bound(config, grid):
    """What DMN makes least."""
    levels = noise_schedule(config).finite_sigmas
    places = np.interp([*grid, 0], np.arange(len(levels)), -np.log(levels))
    return float(_dmn_bound(places))
