"""How far grids end from a fine solution in latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.rules import uniform
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.solvers import own_scheduler


def fine_ends(run: Run, steps: int = 200) -> Tensor:
    """The final latents (n × d) of even steps by DDIM, or by Euler for flow matching.

    Raises WrongUse for a number of steps that the model does not have.
    """
    size = len(run.schedule)
    check(1 <= steps <= size, "steps", steps, f"give 1 to {size}")
    fine = run.prepared_with(own_scheduler(run.pipe.scheduler))
    return fine.ends(uniform("trailing", size, steps))


def distances(run: Run, grids: Mapping[str, Sequence[int]], fine: Tensor) -> dict[str, float]:
    """Each grid's mean `relative_distance` from `fine_ends`, by the pipeline's own solver.

    Raises WrongUse for a scheduler that takes no grid.
    """
    drawn = run.prepared_with(type(run.pipe.scheduler))
    return {
        name: float(relative_distance(drawn.ends(grid), fine).mean())
        for name, grid in grids.items()
    }
