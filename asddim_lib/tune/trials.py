"""How grids do on a run's prompts: each drawn once, and kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.files import DamagedFile, load_tensors, save_tensors
from asddim_lib.measure.fingerprint import of_pipeline, of_values
from asddim_lib.measure.run import Run
from asddim_lib.tune.goals import Goal

log = logging.getLogger(__name__)


@dataclass
class Trials:
    """A run's prompts and a goal; a grid's losses are drawn and looked at when first asked for.

    In `folder`, batches are kept under names made of all that they depend on: a search that was
    stopped goes on from there, and `spent` counts the network evaluations as if it had not been.
    `reference_steps` is the fine solution's.
    """

    run: Run
    goal: Goal
    reference_steps: int
    folder: Path | None = None
    spent: int = 0
    _seen: dict[tuple, Tensor] = field(default_factory=dict)
    _wanted: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        count = len(self.run.prompts)
        remedy = "give at least two: distances are measured against the spread between pictures"
        check(count >= 2, "prompts", f"{count} prompt", remedy)
        self._identity = of_pipeline(self.run.pipe) if self.folder else ""

    def cost(self, steps: int) -> int:
        """The network evaluations of so many steps, for all prompts."""
        return steps * self.run.evaluations_per_step

    @property
    def wanted_cost(self) -> int:
        """The network evaluations of `wanted`."""
        return self.goal.evaluations(self.run, self.reference_steps)

    @property
    def wanted(self) -> dict[str, Tensor]:
        """What the goal wants of the pictures, by name."""
        if self._wanted is None:
            self.spent += self.wanted_cost
            parts = [self._wanted_of(batch) for batch in self.run.batches()]
            self._wanted = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self._wanted

    def __call__(self, grid: Sequence[int], batches: int | None = None) -> Tensor:
        """A grid's losses: of all prompts, or of those in the first batches.

        Raises WrongUse where one is not finite.
        """
        cut = list(self.run.batches())[:batches]
        seen = torch.cat([self._look(tuple(grid), batch) for batch in cut])
        wanted = {name: value[: len(seen)] for name, value in self.wanted.items()}
        losses = self.goal.losses(seen.double(), {n: v.double() for n, v in wanted.items()})
        remedy = "the network gave numbers that are not finite: run it in float32"
        check(bool(losses.isfinite().all()), "loss", f"of the grid {list(grid)}", remedy)
        return losses

    def _look(self, grid: tuple[int, ...], batch: slice) -> Tensor:
        key = (grid, batch.start)
        if key not in self._seen:
            part = self.run.part(batch)
            self.spent += len(grid) * part.evaluations_per_step
            draw = lambda: {"seen": self.goal.look(part, grid)}  # noqa: E731
            self._seen[key] = self._kept(part, [list(grid)], draw)["seen"]
        return self._seen[key]

    def _wanted_of(self, batch: slice) -> dict[str, Tensor]:
        part = self.run.part(batch)
        steps = self.reference_steps
        return self._kept(part, ["wanted", steps], lambda: self.goal.wanted(part, steps))

    def _kept(
        self, part: Run, what: list, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Loads tensors from the folder; if they are missing or damaged, makes and saves them."""
        if self.folder is None:
            return make()
        name = of_values(self._identity, part.inputs, self.goal.identity, what)
        file = self.folder / f"{name}.safetensors"
        try:
            return load_tensors(file)[0]
        except FileNotFoundError:
            pass
        except DamagedFile as error:
            log.warning("%s; drawing again", error)
        tensors = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, tensors, "")
        return tensors
