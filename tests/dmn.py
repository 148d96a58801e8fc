"""DMN's grids on any machine: its bound has many minima, and rounding chooses one."""

import numpy as np

from asddim_lib import timesteps
from asddim_lib.levels import Levels
from experiments.dmn import bound_of


def check_as_good(config, found, recorded):
    """Fails unless both grids make DMN's bound small, and neither much smaller."""
    bounds = [bound(config, grid) for grid in (found, recorded)]
    assert max(bounds) < 1.15 * min(bounds)
    plain = timesteps(config, len(found), allocation="trailing")
    assert max(bounds) < 0.8 * bound(config, plain)


def bound(config, grid):
    """What DMN makes least."""
    levels = Levels.from_diffusers(config).finite_sigmas
    places = np.interp([*grid, 0], np.arange(len(levels)), -np.log(levels))
    return float(bound_of(places))
