"""The grids that a tuning tries: those that others would take, and a small family of our own.

Few parameters fit few prompts better than free timesteps do. The family has three: which error is
made equal, the power that its density is raised to, and where the first step begins.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from asddim_lib.errors import WrongUse, check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.grid import numbers
from asddim_lib.grids.table import METHODS
from asddim_lib.levels import is_flow
from asddim_lib.pipeline.calls import asked_for_steps
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import numbers_held

#: What a user would pick instead. The last two are searched on a recorded path.
PEERS = ("trailing", "leading", "karras", "logsnr", "beta", "arctan", "ays-sd15", "gits", "tors")
FLOW_PEERS = (
    "trailing",
    "karras",
    "exponential",
    "beta",
    "comfy-beta57",
    "comfy-bong-tangent",
    "comfy-linear-quadratic",
    "gits",
    "tors",
)
#: The name of what the pipeline's own scheduler lays, which is a peer wherever it is a grid.
OWN = "as it is"
#: The densities by what is weighed, the last of them first.
DENSITIES = {"seen": "feature-weighted", "carried": "dual-weighted", "made": "equidistributed"}
TEMPERS = (1.0, 0.5)
#: How far below T the first step begins, in steps of an even grid.
LATER = (0.0, 1.0)
#: The largest number of grids in `family`: two densities are measured.
MOST = 2 * len(TEMPERS) * len(LATER)


def peer_names(config: Any, names: Sequence[str] | None = None) -> list[str]:
    """The names of `PEERS`, or `FLOW_PEERS`, unless others are given.

    Raises WrongUse for a name that no grid has.
    """
    chosen = list(names or (FLOW_PEERS if is_flow(config) else PEERS))
    for name in chosen:
        laid = name in METHODS and METHODS[name].needs in ("nothing", "path")
        check(laid, "peer", name, "name a grid that needs nothing or a path (asddim export --list)")
    return chosen


def needing_a_path(names: Sequence[str]) -> list[str]:
    """Those of some peers that are searched on a recorded path."""
    return [name for name in names if METHODS[name].needs == "path"]


def own_grid(run: Run, steps: int) -> list[int] | str:
    """The numbers of the levels that the pipeline's own scheduler lays for K steps.

    The pipeline asks it for them, and is stopped there. Or why they are no grid, in words.
    """
    first = slice(0, 1)
    with asked_for_steps(run.pipe.scheduler) as (scheduler, found):
        try:
            run.call(first, scheduler, run.generators(first), num_inference_steps=steps)
        except WrongUse as error:
            return str(error)
    if not found:
        return "its pipeline asks it for no steps"
    with suppress(WrongUse):
        grid = numbers_held(found[0], run.mu)
        if len(grid) == steps:
            return grid
    times = ", ".join(f"{float(t):.4g}" for t in found[0].timesteps[:6])
    return f"its scheduler lays {times}, …, which are not {steps} timesteps that fall"


def peers(
    config: Any,
    steps: int,
    names: Sequence[str],
    path: Trajectory | None,
    own: list[int] | str,
    order: int = 1,
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The peers' grids by name, `OWN` among them, and why each of the others is left out.

    A peer is left out where it has no such number of steps, where its grid is another one's, and
    where it needs a path and there is none. `own` is what `own_grid` gives.
    """
    found: dict[str, list[int]] = {}
    left_out: dict[str, str] = {}
    for name in [*names, OWN]:
        how: dict[str, Any] = {"allocation": name, "order": order}
        if name in needing_a_path(names):
            if path is None:
                left_out[name] = "it needs a recorded path, which the plan leaves out"
                continue
            how["path"] = path
        try:
            laid = own if name == OWN else numbers(config, steps, how)
        except WrongUse as error:
            laid = str(error)
        if isinstance(laid, str):
            left_out[name] = laid
            continue
        same = next((other for other, grid in found.items() if grid == laid), None)
        if same is None:
            found[name] = laid
        else:
            left_out[name] = f"it is the same grid as {same}"
    return found, left_out


def family(config: Any, steps: int, profile: Profile, order: int = 1) -> dict[str, list[int]]:
    """Grids of the profile's densities, by name: kind, power, and where the first step begins."""
    found: dict[str, list[int]] = {}
    size = int(config["num_train_timesteps"])
    measured = [kind for kind in DENSITIES if kind in (profile.local_error or {})]
    for kind, temper, later in itertools.product(measured, TEMPERS, LATER):
        begin = size - 1 - round(later * size / steps)
        if begin + 1 < steps:  # as many timesteps as steps must be left
            continue
        how = {"allocation": DENSITIES[kind], "profile": profile, "temper": temper}
        grid = numbers(config, steps, {**how, "begin": begin, "order": order})
        if grid not in found.values():
            found[f"{DENSITIES[kind]}^{temper:g}, from {begin}"] = grid
    return found
