"""Grids that only the experiments and a chapter need: importing this adds them to the table."""

from __future__ import annotations

from asddim_lib.grids.table import Method, register
from asddim_lib.paper import NoiseSchedule
from experiments.stopping import STOPPING


def _add(name: str, summary: str, grid) -> None:  # type: ignore[no-untyped-def]
    def lay(schedule: NoiseSchedule, steps: int, options) -> list[int]:  # type: ignore[no-untyped-def]
        return grid(NoiseSchedule(options.cut(schedule.betas)), steps)

    register(Method(name, "nothing", summary, lay))


for _name, (_summary, _grid) in STOPPING.items():
    _add(_name, _summary, _grid)
