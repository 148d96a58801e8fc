"""The examples in the docstrings of the two functions that a newcomer calls first."""

import doctest

from asddim_lib.grids import grid


def test_the_examples_of_timesteps_and_sigmas_run():
    found = doctest.testmod(grid)
    assert (found.failed, found.attempted) == (0, 8)
