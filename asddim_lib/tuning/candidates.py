"""Races between the forms of a recipe, each drawn once, and what a race would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from asddim_lib.configs import is_flow
from asddim_lib.digest import of_values
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.metrics.real import real_features
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import Work
from asddim_lib.tuning.forms import FLOW_GRIDS, GRIDS, SCALES, Builder, Form, published_interval
from asddim_lib.tuning.goals import Seen
from asddim_lib.tuning.measures import DETAIL, PROMPT, Measures
from asddim_lib.tuning.recipe import Recipe
from asddim_lib.tuning.search import FIRST, rounds
from asddim_lib.tuning.verify import by_text

#: Steps of the wanted pictures, where no folder of them is given; how many there are at most; by
#: how many the scale is chosen; and the scales that are tried, beside the pipeline's.
SLOW, WANTED, WANTED_FIRST, WANTED_SCALES = 20, 64, 8, (3.0, 6.0)
#: Their seeds are so much higher, so that none of them starts where a judged picture does.
OTHER_NOISE = 500_000


class Search:
    """Draws recipes for some prompts, keeps what was seen, and races forms."""

    def __init__(self, builder: Builder, measures: Measures, work: Work) -> None:
        self.builder, self.measures, self.work = builder, measures, work
        self.identity = measures.identity if work.folder else ""
        self._seen: dict[str, Seen] = {}

    def seen(self, run: Run, recipe: Recipe) -> list[Seen]:
        """What is seen in the recipe's pictures of a run, batch by batch, each drawn once."""
        return [self._batch(run.part(batch), recipe) for batch in run.batches()]

    def _batch(self, run: Run, recipe: Recipe) -> Seen:
        drawn = replace(
            run,
            scheduler=recipe.scheduler,
            guidance_scale=recipe.guidance_scale,
            guidance_plan=None if recipe.plan == GuidancePlan.constant() else recipe.plan,
            shift_steps=recipe.steps,
        )
        key = of_values(drawn.inputs, recipe.steps, self.identity)
        if key not in self._seen:
            cost = recipe.rows * len(run.prompts)
            look = lambda: self.measures.look(drawn, recipe.steps)  # noqa: E731
            self._seen[key] = self.work.do(cost, look, key)
        return self._seen[key]

    def losses(self, run: Run, recipe: Recipe) -> dict[str, Tensor]:
        """A recipe's losses (n) by each measure, for a choice."""
        return self.measures.losses(self.seen(run, recipe), run.prompts, "seen")

    def verdict(self, run: Run, recipe: Recipe) -> dict[str, Tensor]:
        """A recipe's losses by each measure, one for each distinct text, for the verdict."""
        losses = self.measures.losses(self.seen(run, recipe), run.prompts, "checked")
        return {name: by_text(values, run.prompts) for name, values in losses.items()}

    def race(self, run: Run, forms: Sequence[Form], rows: int) -> Form:
        """The form with the least mean loss, by successive halving over batches of prompts.

        Losses are in units of the first form's spread, and measures count alike.
        """
        recipes = {form: self.builder.recipe(form, rows) for form in dict.fromkeys(forms)}
        alive = list(recipes)
        sizes = [batch.stop - batch.start for batch in run.batches()]
        for count, batches in rounds(len(alive), sizes):
            part = run.part(slice(0, sum(sizes[:batches])))
            losses = {form: self.losses(part, recipes[form]) for form in alive[:count]}
            unit = {name: float(v.std()) or 1.0 for name, v in losses[alive[0]].items()}
            total = {
                form: sum(float(v.mean()) / unit[name] for name, v in one.items())
                for form, one in losses.items()
            }
            alive = sorted(total, key=total.__getitem__)
        return alive[0]

    def want(self, run: Run, reference: str | None) -> str:
        """Sets the wanted pictures: the pipeline's own slow ones, or a folder's.

        The slow ones are at the scale at which their CLIP score is best: a scale that wrecks
        pictures in any number of steps would make wrecks the aim. Fine detail is always compared
        with theirs. Returns what they are, in words.
        """
        encoders = {"seen": self.measures.encoder, "checked": self.measures.check}
        part = run.part(slice(0, WANTED))
        assert part.seeds is not None
        own = replace(part, seeds=[one + OTHER_NOISE for one in part.seeds])
        slow = {
            scale: self.builder.of_steps(Form(scale=scale, solver="dpm++"), SLOW)
            for scale in scales_of(run, WANTED_SCALES)
        }
        scores = {
            scale: -float(torch.cat([one[PROMPT] for one in self._first(own, recipe)]).mean())
            for scale, recipe in slow.items()
        }
        best = min(scores, key=scores.__getitem__)
        seen, used = self.seen(own, slow[best]), {n: one for n, one in encoders.items() if one}
        wanted = {name: torch.cat([one[name] for one in seen]) for name in (*used, DETAIL)}
        if reference:
            wanted |= {name: real_features(one, reference)[0] for name, one in used.items()}
        self.measures = replace(
            self.measures, wanted=wanted, asked=own.prompts, real=bool(reference)
        )
        return reference or slow[best].name

    def _first(self, run: Run, recipe: Recipe) -> list[Seen]:
        """What is seen in the first batches, of `WANTED_FIRST` prompts or more."""
        batches, seen = list(run.batches()), list[Seen]()
        while batches and sum(len(one[PROMPT]) for one in seen) < WANTED_FIRST:
            seen.append(self._batch(run.part(batches.pop(0)), recipe))
        return seen


class Rehearsal(Search):
    """A search that draws nothing and counts what it would draw. All forms are equally good."""

    def _batch(self, run: Run, recipe: Recipe) -> Seen:
        key = of_values(recipe.name, run.seeds)
        if key not in self._seen:
            self.work.spent += recipe.rows * len(run.prompts)
            zeros = torch.zeros(len(run.prompts), 1)
            self._seen[key] = {PROMPT: zeros[:, 0], DETAIL: zeros, "seen": zeros, "checked": zeros}
        return self._seen[key]

    def losses(self, run: Run, recipe: Recipe) -> dict[str, Tensor]:
        self.seen(run, recipe)
        return {PROMPT: torch.arange(len(run.prompts), dtype=torch.float64)}

    def verdict(self, run: Run, recipe: Recipe) -> dict[str, Tensor]:
        return {name: by_text(v, run.prompts) for name, v in self.losses(run, recipe).items()}


def scales_of(run: Run, others: Sequence[float] = SCALES) -> list[float]:
    """The guidance scales that are tried: the pipeline's, and others."""
    own = run.guidance_scale
    return list(dict.fromkeys([*([] if own is None else [own]), *others]))


def solvers_of(builder: Builder) -> list[str]:
    """The first-order solver, and DPM-Solver++ (2M)."""
    return ["euler" if is_flow(builder.run.pipe.scheduler) else "ddim", "dpm++"]


def half(run: Run) -> Run:
    """The first half of a run's prompts, or as many as a race begins with."""
    return run.part(slice(0, max(FIRST, len(run.prompts) // 2)))


def around(scale: float | None, scales: Sequence[float]) -> list[float]:
    """A guidance scale, and the next lower and higher of those that are tried."""
    assert scale is not None
    ordered = sorted(scales)
    place = ordered.index(scale)
    return ordered[max(0, place - 1) : place + 2]


def baselines(search: Search, run: Run, rows: int) -> dict[str, Form]:
    """What a user would take without a search, each at its best scale, but for the cap.

    The best scale of a constant one is sought among all, the others' around it.
    """
    run = half(run)
    constant = search.race(run, [Form(scale) for scale in scales_of(run)], rows)
    near = around(constant.scale, scales_of(run))

    def at_best_scale(form: Form) -> Form:
        return search.race(run, [replace(form, scale=scale) for scale in near], rows)

    return {
        "constant": constant,
        "second order": at_best_scale(Form(solver="dpm++")),
        "capped": Form(scale=run.guidance_scale, c=2.0),
        "interval": at_best_scale(published_interval()),
    }


def candidate(search: Search, run: Run, rows: int, others: Mapping[str, Form]) -> Form:
    """The best form by a run's prompts; it may be one of the `others`.

    One number is chosen after the other: the scale and the solver under the cap, when to guide, the
    scale again, and the grid. Half of the prompts choose; only the grid is chosen by all of them.
    """
    builder, scales, some = search.builder, scales_of(run), half(run)
    near = around(others["constant"].scale, scales)
    capped = dict.fromkeys([*near, run.guidance_scale or near[0]])
    forms = [Form(scale, c=2.0, solver=k) for scale in capped for k in solvers_of(builder)]
    form = search.race(some, forms, rows)
    form = search.race(some, [form, *builder.splits(form, rows)], rows)
    others_near = [replace(form, scale=scale) for scale in around(form.scale, scales)]
    form = search.race(some, [form, *others_near], rows)
    grids = FLOW_GRIDS if is_flow(run.pipe.scheduler) else GRIDS
    forms = [form, *(replace(form, grid=grid) for grid in grids), *others.values()]
    return search.race(run, forms, rows)
