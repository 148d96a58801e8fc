"""How grids do on a run's prompts: each drawn once, counted, and kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asddim_lib.cache import DamagedFile, load_tensors, save_tensors, sweep
from asddim_lib.errors import check
from asddim_lib.pipeline.manifest import of_values
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.goals import Goal, Seen, apart

log = logging.getLogger(__name__)

#: A distance below this counts as this: its logarithm is finite.
LEAST = 1e-6
#: Is told what is being done, how many evaluations were spent, and how many may be in all.
Progress = Callable[[str, int, int], None]


@dataclass
class Meter:
    """Counts network evaluations, and tells `progress` before more are spent."""

    progress: Progress
    spent: int = 0
    total: int = 0
    doing: str = ""

    def spend(self, evaluations: int) -> None:
        """Counts what is about to be asked of the network."""
        self.progress(self.doing, self.spent, max(self.total, self.spent))
        self.spent += evaluations

    def end(self) -> None:
        """Tells that no more will be spent."""
        self.progress("done", self.spent, self.spent)


@dataclass(frozen=True)
class Shelf:
    """A folder of tensors, each file under a name made of all that it depends on.

    `identity` is the pipeline's hash. Without a folder nothing is kept.
    """

    folder: Path | None = None
    identity: str = ""

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)

    def kept(self, make: Callable[[], Seen], *depends: Any) -> Seen:
        """What `make` gives, from the folder where it is there.

        A damaged file is named in a warning, and made again.
        """
        if self.folder is None:
            return make()
        file = self.folder / f"{of_values(self.identity, *depends)}.safetensors"
        try:
            return load_tensors(file)[0]
        except FileNotFoundError:
            pass
        except DamagedFile as error:
            log.warning("%s; drawing again", error)
        tensors = make()
        save_tensors(file, tensors, "")
        return tensors


@dataclass
class Trials:
    """A run's prompts and a goal; a grid's losses are drawn and looked at when first asked for.

    What was drawn is on the `shelf`: a search that was stopped goes on from there, and the `meter`
    counts the network evaluations as if it had not been. `reference_steps` is the fine solution's.
    """

    run: Run
    goal: Goal
    reference_steps: int
    shelf: Shelf = field(default_factory=Shelf)
    meter: Meter = field(default_factory=lambda: Meter(lambda doing, spent, total: None))
    _seen: dict[tuple, Seen] = field(default_factory=dict)
    _wanted: Seen | None = None

    def __post_init__(self) -> None:
        count = len(self.run.prompts)
        remedy = "give at least two: distances are measured against the spread between pictures"
        check(count >= 2, "prompts", f"{count} prompt", remedy)
        # Once: it reads all of an encoder's weights.
        self._aim = self.goal.identity if self.shelf.folder else ""

    def telling(self, look_ahead: float) -> Trials:
        """The same trials by a scheduler that tells the network other times (`look_ahead`)."""
        own = self.run.scheduler
        told = type(own).from_config(own.config, look_ahead=look_ahead)
        run, rest = replace(self.run, scheduler=told), (self.shelf, self.meter)
        return Trials(run, self.goal, self.reference_steps, *rest, _wanted=self.wanted)

    def cost(self, steps: int) -> int:
        """The network evaluations of so many steps, for all prompts."""
        return steps * self.run.evaluations_per_step

    @property
    def wanted_cost(self) -> int:
        """The network evaluations of `wanted`."""
        return self.goal.evaluations(self.run, self.reference_steps)

    @property
    def wanted(self) -> Seen:
        """What the goal wants of the pictures of all prompts, by name, in float64."""
        if self._wanted is None:
            parts = [self._wanted_of(self.run.part(batch)) for batch in self.run.batches()]
            self._wanted = _joined(parts)
        return self._wanted

    def __call__(self, grid: Sequence[int], batches: int | None = None) -> Tensor:
        """A grid's losses (n, float64): of all prompts, or of those in the first batches.

        Of a goal whose losses are `relative` they are the logarithms.
        Raises WrongUse where one is not finite.
        """
        wanted = self.wanted
        losses = self.goal.losses(self._all(grid, batches)["seen"], wanted)
        return _finite(_logarithms(losses) if self.goal.relative else losses, grid)

    def checked(self, grid: Sequence[int]) -> Tensor:
        """How far the goal's second encoder sees a grid's pictures lie from the fine ones (n).

        These are logarithms. Raises WrongUse where one is not finite.
        """
        distances = apart(self._all(grid)["checked"], self.wanted["checked"])
        return _finite(_logarithms(distances), grid)

    def _all(self, grid: Sequence[int], batches: int | None = None) -> Seen:
        cut = list(self.run.batches())[:batches]
        return _joined([self._look(tuple(grid), batch) for batch in cut])

    def _look(self, grid: tuple[int, ...], batch: slice) -> Seen:
        key = (grid, batch.start)
        if key not in self._seen:
            part = self.run.part(batch)
            self.meter.spend(len(grid) * part.evaluations_per_step)
            depends = part.inputs, self._aim, list(grid)
            self._seen[key] = self.shelf.kept(lambda: self.goal.look(part, grid), *depends)
        return self._seen[key]

    def _wanted_of(self, part: Run) -> Seen:
        steps = self.reference_steps
        self.meter.spend(self.goal.evaluations(part, steps))
        depends = part.inputs, self._aim, "wanted", steps
        return self.shelf.kept(lambda: self.goal.wanted(part, steps), *depends)


def _joined(parts: list[Seen]) -> Seen:
    return {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}


def _logarithms(distances: Tensor) -> Tensor:
    """log d, also of pictures that are the fine ones themselves."""
    return distances.clamp(min=LEAST).log()


def _finite(losses: Tensor, grid: Sequence[int]) -> Tensor:
    remedy = "the network gave numbers that are not finite: run it in float32"
    check(bool(losses.isfinite().all()), "loss", f"of the grid {list(grid)}", remedy)
    return losses
