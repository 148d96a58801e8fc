"""The forms that a recipe may take: few numbers that mean the same in any number of evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from asddim_lib.errors import check
from asddim_lib.grids.grid import sigmas
from asddim_lib.guidance.plan import PUBLISHED, GuidancePlan
from asddim_lib.guidance.steps import law_of
from asddim_lib.levels import sigma_of
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import Setup
from asddim_lib.tuning.goals import Latents
from asddim_lib.tuning.recipe import Recipe

#: Guidance scales that are tried, beside the pipeline's.
SCALES = (2.0, 3.0, 4.0, 6.0)
#: Grids that are tried for the best form.
GRIDS = ("beta", "karras", "logsnr")
FLOW_GRIDS = ("beta", "karras", "comfy-linear-quadratic")


@dataclass(frozen=True)
class Form:
    """A recipe but for its number of steps.

    `scale` is the guidance scale; None is the pipeline's. Steps that begin at a σ in (`low`,
    `high`] are guided, the others not. `c` is the plan's cap. `grid` names one of `METHODS`, and
    `solver` one of `schedulers.solvers`; None is the pipeline's.
    """

    scale: float | None = None
    high: float = math.inf
    low: float = 0.0
    c: float | None = None
    grid: str = "trailing"
    solver: str | None = None

    @property
    def name(self) -> str:
        """It in words."""
        scale = "the pipeline's scale" if self.scale is None else f"scale {self.scale:g}"
        parts = [scale if self.high > self.low else "not guided"]
        if math.isfinite(self.high):
            parts.append(f"guided below σ = {self.high:.2g}")
        if self.low:
            parts.append(f"guided above σ = {self.low:.2g}")
        parts += [] if self.c is None else [f"capped at c = {self.c:g}"]
        parts += [] if self.grid == "trailing" else [f"grid {self.grid}"]
        parts += [] if self.solver is None else [f"solver {self.solver}"]
        return ", ".join(parts)

    def plan(self, scale: float | None) -> GuidancePlan:
        """Its plan, where `scale` is the one that the plan itself has to set."""
        edges: list[tuple[float, float | None]] = []
        if math.isfinite(self.high):
            edges.append((self.high, 1.0))
        edges.append((self.low, scale))
        if self.low:
            edges.append((0.0, 1.0))
        plain = len(edges) == 1 and scale is None
        return GuidancePlan(bands=None if plain else tuple(edges), c=self.c)


class Builder:
    """Recipes of one pipeline. `run` has the call that the user makes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        rows = run.evaluations_per_step // len(run.prompts)
        what = f"{type(run.pipe).__name__}, with {rows} network evaluations in a step"
        remedy = "a recipe decides when to guide, which takes two: give a guidance_scale above 1, "
        remedy += "or true_cfg_scale and a negative_prompt; for other pipelines use `tune`"
        check(rows == 2, "pipe", what, remedy)
        #: Whether the call names the scale; otherwise the plan sets it.
        self.named = run.guidance_scale is not None
        self._setups: dict[tuple[int, str | None], Setup] = {}

    def setup(self, steps: int, solver: str | None = None) -> Setup:
        """Who draws in K steps by a solver."""
        key = steps, solver
        if key not in self._setups:
            self._setups[key] = Setup(self.run, steps, Latents(), solver)
        return self._setups[key]

    def current(self, rows: int) -> Recipe:
        """The pipeline as the user has it, with the most steps that need no more rows."""
        scheduler, steps = self.run.pipe.scheduler, rows // 2
        while 2 * len(self.run.asked(scheduler, steps).timesteps) > rows:  # PNDM, Heun
            steps -= 1
        calls = len(self.run.asked(scheduler, steps).timesteps)
        scale, plan = self.run.guidance_scale, GuidancePlan.constant()
        return Recipe("the current setting", steps, scale, plan, 2 * calls, scheduler)

    def recipe(self, form: Form, rows: int) -> Recipe:
        """The form with the most steps that need no more rows.

        Raises WrongUse where two guided steps need more, or its grid cannot have so many steps.
        """
        check(rows >= 4, "evaluations", rows, "give at least 4, which two guided steps need")
        steps = rows // 2
        while steps < rows and self.rows(form, steps + 1) <= rows:
            steps += 1
        return self.of_steps(form, steps)

    def of_steps(self, form: Form, steps: int) -> Recipe:
        """The form in K steps."""
        setup, grid = self._grid(form, steps)
        scale = form.scale if self.named and form.scale is not None else self.run.guidance_scale
        plan = form.plan(None if self.named else form.scale)
        scheduler = setup.sampler(grid).scheduler
        name = f"{steps} steps, {form.name}"
        return Recipe(name, steps, scale, plan, self.rows(form, steps), scheduler)

    def rows(self, form: Form, steps: int) -> int:
        """The rows of a picture in K steps: 2 in each guided step and 1 in each other."""
        return sum(1 + (scale > 1) for scale in self.scales(form, steps))

    def scales(self, form: Form, steps: int) -> list[float]:
        """The guidance scale of each of K steps."""
        setup, _ = self._grid(form, steps)
        scale = form.scale or self.run.guidance_scale or max(SCALES)
        return form.plan(form.scale).at(self.sigmas(form, steps), scale, law_of(setup.plain))

    def sigmas(self, form: Form, steps: int) -> np.ndarray:
        """The K + 1 σ of its grid, as a plan has them."""
        setup, grid = self._grid(form, steps)
        values = np.array(setup.levels.grid_of(grid))
        return sigma_of(np.minimum(values, 1.0)) if setup.levels.kind == "flow" else values

    def _grid(self, form: Form, steps: int) -> tuple[Setup, Any]:
        setup = self.setup(steps, form.solver)
        given = setup.config, steps
        return setup, sigmas(*given, shifted=True, allocation=form.grid, order=setup.order)

    def splits(self, form: Form, rows: int) -> Iterator[Form]:
        """The form with more steps, of which the first are not guided, or the first and the last.

        All need `rows` evaluations, or one less. More than half as many steps again are not tried.
        """
        for steps in self._counts(rows):
            idle = 2 * steps - rows
            levels = self.sigmas(form, steps)
            for first in sorted({idle, -(-idle // 2)}, reverse=True):
                edges = [_between(levels, place) for place in (first, steps - (idle - first))]
                high = edges[0] if first else math.inf
                yield replace(form, high=high, low=edges[1] if idle > first else 0.0)

    def _counts(self, rows: int) -> list[int]:
        """At most four numbers of steps between a half and three quarters of the rows."""
        counts = range(rows // 2 + 1, 3 * rows // 4 + 1)
        places = np.linspace(0, len(counts) - 1, min(4, len(counts))).round()
        return [counts[int(place)] for place in places]


def published_interval() -> Form:
    """SDXL's interval (Kynkäänniemi et al. 2024)."""
    (high, _), (low, _), _ = PUBLISHED["interval-sdxl"]
    return Form(high=high, low=low)


def _between(levels: np.ndarray, place: int) -> float:
    """A σ below that of the step before a place, and above that of the step there."""
    before, after = levels[place - 1] if place else math.inf, levels[place]
    return float(2 * after if math.isinf(before) else math.sqrt(before * after))
