"""N network evaluations, spent where they count: the search for a recipe, and its verdict."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from asddim_lib.configs import is_flow
from asddim_lib.digest import of_values
from asddim_lib.errors import check_whole
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.metrics.encoders import CLIP, Encoder, encoder_for
from asddim_lib.metrics.real import real_features
from asddim_lib.models.load import BUNDLED, Pipeline
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.manifest import of_pipeline
from asddim_lib.pipeline.run import Run
from asddim_lib.progress import Progress
from asddim_lib.tuning.acceptance import accept
from asddim_lib.tuning.draw import Work, split
from asddim_lib.tuning.forms import FLOW_GRIDS, GRIDS, SCALES, Builder, Form, published_interval
from asddim_lib.tuning.goals import Seen
from asddim_lib.tuning.measures import Measures, Scorer
from asddim_lib.tuning.outcome import Outcome, check_setting
from asddim_lib.tuning.recipe import Recipe
from asddim_lib.tuning.search import rounds
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, LEAST, by_text

#: Steps of the wanted pictures, where no folder of them is given, and how many there are at most.
SLOW, WANTED = 20, 64
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


def find_recipe(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    evaluations: int,
    guidance_scale: float | None = None,
    reference: str | None = None,
    clip: str | None = None,
    encoder: str | Encoder | None = None,
    check_encoder: str | Encoder | None = None,
    scorers: Mapping[str, Scorer] = MappingProxyType({}),
    batch_size: int = 8,
    seed: int = 0,
    truncate: bool = False,
    folder: str | os.PathLike | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """The recipe whose pictures are best in N network evaluations, if it is proven better.

    A third of the distinct prompts choose the steps, the scale, when to guide, the grid and the
    solver. The others compare the choice with the pipeline as it is, in as many evaluations, and
    with the baselines: constant guidance at its best scale, the cap at the pipeline's scale, and
    SDXL's interval. The choice is returned if it beats all of them (`acceptance`), or else the best
    baseline if it beats the pipeline as it is. Otherwise nothing changes.

    - `evaluations`: N, for one picture: a guided step takes two, another one.
    - `guidance_scale`: of the pipeline as it is; by default its own.
    - `reference`: a folder of real pictures that drawn ones should be like. Without one they are
      compared with the pipeline's own, of other noise, in `SLOW` steps at `guidance_scale`.
    - `clip`: a CLIP model by which prompts are judged. `encoder`: by its embeddings pictures are
      compared with the wanted ones; if there is a `check_encoder`, by that one's in the verdict.
    - `scorers`: further measures by name; each gives every picture a score.
    - The others are as of `tune`, but that a `folder` keeps what is drawn.

    Raises WrongUse for wrong use before anything is drawn.
    """
    check_whole("evaluations", evaluations, 4)
    texts = listed(prompts)
    seeds = range(seed, seed + len(texts))
    run = Run(pipe, texts, seeds, guidance_scale, batch_size, options, truncate)
    builder = Builder(run)
    first, second = parted(run.prompts)
    measures = measures_of(pipe, clip, encoder, check_encoder, scorers)
    setting = {
        "model": str(getattr(pipe, "name_or_path", "") or ""),
        "pipeline": type(pipe).__name__,
        "evaluations": evaluations,
        "guidance_scale": run.guidance_scale,
        "reference": reference or "",
        **measures.names,
    }
    work = Work(progress=progress)
    if folder is not None:
        work.folder = check_setting(folder, setting) / "drawn"
        work.identity = of_pipeline(pipe)
    measures = with_wanted(measures, builder, work, reference)
    search, verdict = Search(builder, measures, work), run.part(second)
    work.doing = "choosing a recipe"
    form, baselines = chosen(search, run.part(first), evaluations)
    best = search.race(run.part(first), list(baselines.values()), evaluations)
    recipes = {CURRENT: builder.current(evaluations)}
    recipes |= {name: builder.recipe(one, evaluations) for name, one in baselines.items()}
    if form not in baselines.values():
        recipes[CANDIDATE] = builder.recipe(form, evaluations)
    work.doing = "verifying"
    losses = {name: search.verdict(verdict, one) for name, one in recipes.items()}
    named = {form: name for name, form in baselines.items()}
    returned, pairs = accept(losses, named[best])
    work.total = work.spent
    work.report("done")
    return Outcome(
        recipe=recipes[returned],
        returned=returned,
        recipes=recipes,
        pairs=pairs,
        losses={n: {m: float(v.mean()) for m, v in one.items()} for n, one in losses.items()},
        prompts=len(set(verdict.prompts)),
        evaluations=work.spent,
        setting=setting,
    )


def parted(prompts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The places of the prompts that choose, a third of the distinct ones, and of the others.

    Raises WrongUse for too few.
    """
    return split(prompts, max(LEAST, len(set(prompts)) // 3))


def measures_of(
    pipe: Pipeline,
    clip: str | None,
    encoder: str | Encoder | None,
    check_encoder: str | Encoder | None,
    scorers: Mapping[str, Scorer],
) -> Measures:
    """The measures of a pipeline's pictures. By default one CLIP model is all of them."""
    seen = encoder_for(pipe, encoder)
    checked = None if check_encoder is None else encoder_for(pipe, check_encoder)
    bundled = str(getattr(pipe, "name_or_path", "")) in BUNDLED
    return Measures(clip or ("bundled" if bundled else CLIP), seen, checked, dict(scorers))


def with_wanted(
    measures: Measures, builder: Builder, work: Work, reference: str | None
) -> Measures:
    """The measures with the wanted pictures: those of a folder, or the pipeline's own slow ones."""
    encoders = {"seen": measures.encoder, "checked": measures.check}
    if reference:
        real = {n: real_features(one, reference)[0] for n, one in encoders.items() if one}
        return replace(measures, wanted=real)
    work.doing = "drawing the wanted pictures"
    run = builder.run.part(slice(0, WANTED))
    assert run.seeds is not None
    own = replace(run, seeds=[one + OTHER_NOISE for one in run.seeds])
    slow = builder.of_steps(Form(solver="dpm++"), SLOW)
    seen = Search(builder, measures, work).seen(own, slow)
    drawn = {n: torch.cat([part[n] for part in seen]) for n, one in encoders.items() if one}
    return replace(measures, wanted=drawn, asked=run.prompts)


def chosen(search: Search, run: Run, rows: int) -> tuple[Form, dict[str, Form]]:
    """The best form by a run's prompts, and the baselines, each at its best scale.

    One number is chosen after the other: the scale, when to guide, the scale again, then the grid
    and the solver.
    """
    builder = search.builder
    own = run.guidance_scale
    scales = list(dict.fromkeys([*([] if own is None else [own]), *SCALES]))

    def at_best_scale(form: Form) -> Form:
        return search.race(run, [replace(form, scale=scale) for scale in scales], rows)

    baselines = {
        "constant": at_best_scale(Form()),
        "capped": Form(scale=own, c=2.0),
        "interval": at_best_scale(published_interval()),
    }
    form = at_best_scale(Form(c=2.0))
    form = search.race(run, [form, *builder.splits(form, rows)], rows)
    form = at_best_scale(form)
    grids = FLOW_GRIDS if is_flow(run.pipe.scheduler) else GRIDS
    others = [replace(form, grid=grid) for grid in grids]
    others += [replace(form, solver=solver) for solver in _solvers(builder)]
    return search.race(run, [form, *others, *baselines.values()], rows), baselines


def _solvers(builder: Builder) -> list[str]:
    """The first-order solver, and DPM-Solver++ (2M)."""
    flow = is_flow(builder.run.pipe.scheduler)
    return ["euler" if flow else "ddim", "dpm++"]
