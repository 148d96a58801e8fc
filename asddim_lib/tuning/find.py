"""N network evaluations, spent where they count: the search for a recipe, and its verdict."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scipy import stats

from asddim_lib.errors import check, check_whole
from asddim_lib.metrics.encoders import CLIP, Encoder, encoder_for
from asddim_lib.metrics.intervals import LEVEL, mean_interval
from asddim_lib.models.load import BUNDLED, Pipeline
from asddim_lib.models.prompts import listed
from asddim_lib.pipeline.manifest import of_pipeline
from asddim_lib.pipeline.run import Run
from asddim_lib.progress import Progress
from asddim_lib.tuning.acceptance import NOT_WORSE, Losses, Pair, accept, not_worse
from asddim_lib.tuning.candidates import (
    Rehearsal,
    Search,
    baselines,
    candidate,
    scales_of,
    solvers_of,
)
from asddim_lib.tuning.draw import Work, split
from asddim_lib.tuning.forms import Builder, Form, published_interval
from asddim_lib.tuning.measures import Measures, Scorer
from asddim_lib.tuning.outcome import BETTER, CHEAPER, Outcome, check_setting
from asddim_lib.tuning.recipe import Recipe
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, LEAST

AIMS = (BETTER, CHEAPER)
#: Numbers of evaluations that are tried to be cheaper, from the most to the fewest.
LADDER = (50, 32, 20, 16, 12, 10, 8, 6)
#: In as many evaluations the form is chosen that the ladder is tried with.
CHOSEN_AT = 16
#: How much worse is still "not worse", in standard deviations of the current pictures' losses.
MARGIN = 0.2


@dataclass(frozen=True)
class Decision:
    """The name of the recipe that is returned, all that were compared, and how."""

    returned: str
    recipes: dict[str, Recipe]
    losses: Losses
    pairs: list[Pair]


def find_recipe(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    *,
    evaluations: int,
    aim: str = BETTER,
    margin: float = MARGIN,
    guidance_scale: float | None = None,
    reference: str | None = None,
    clip: str | None = None,
    encoder: str | Encoder | None = None,
    check_encoder: str | Encoder | None = None,
    scorers: Mapping[str, Scorer] = MappingProxyType({}),
    every: bool = False,
    batch_size: int = 8,
    seed: int = 0,
    truncate: bool = False,
    folder: str | os.PathLike | None = None,
    drawn: str | os.PathLike | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Outcome:
    """The recipe whose pictures are best in N network evaluations, if it is proven better.

    A third of the distinct prompts choose the steps, the scale, when to guide, the grid and the
    solver. The others compare the choice with the pipeline as it is, in as many evaluations, and
    with the baselines: constant guidance at its best scale, by the pipeline's solver and by
    DPM-Solver++ (2M); the cap at the pipeline's scale; and SDXL's interval. The choice is returned
    if it beats all of them (`acceptance`), or else the best baseline if it beats the pipeline as it
    is. Otherwise nothing changes.

    With `aim="cheaper"` it is the recipe with the fewest evaluations (`LADDER`) whose pictures are
    not worse than those of the pipeline as it is in N, by any measure.

    - `evaluations`: N, for one picture: a guided step takes two, another one.
    - `margin`: a loss is not worse if the interval of its mean difference lies below so many
      standard deviations of the current pictures' losses.
    - `guidance_scale`: of the pipeline as it is; by default its own.
    - `reference`: a folder of real pictures that drawn ones should be like, by KID. Without one
      they are compared with the pipeline's own, of other noise, in 20 steps, at the scale of the
      best CLIP score. With these the `fine_detail` of drawn ones is compared in any case.
    - `clip`: a CLIP model by which prompts are judged. `encoder`: by its embeddings pictures are
      compared with the wanted ones; if there is a `check_encoder`, by that one's in the verdict.
    - `scorers`: further measures by name; each gives every picture a score.
    - `every`: judge every baseline, for a table of all, even where some decide nothing.
    - `folder`: for one setting. What is seen of drawn pictures is in its folder "drawn", or in the
      folder `drawn`, which several searches may have.
    - The others are as of `tune`. `progress` has the whole cost before anything is drawn.

    Raises WrongUse for wrong use before anything is drawn.
    """
    texts = listed(prompts)
    check_question(evaluations, aim, margin)
    first, second = parted(texts, aim, margin)
    run = Run(
        pipe, texts, range(seed, seed + len(texts)), guidance_scale, batch_size, options, truncate
    )
    builder = Builder(run)
    measures = measures_of(pipe, clip, encoder, check_encoder, scorers)
    setting = {
        "model": str(getattr(pipe, "name_or_path", "") or ""),
        "pipeline": type(pipe).__name__,
        "aim": aim,
        "evaluations": evaluations,
        "guidance_scale": run.guidance_scale,
        "reference": reference or "",
        **({"margin": margin} if aim == CHEAPER else {}),
        **measures.names,
    }
    work = Work(progress=progress)
    if folder is not None:
        place = check_setting(folder, setting)
        work.folder = place / "drawn" if drawn is None else Path(drawn)
        work.identity = of_pipeline(pipe)

    def decide(search: Search, every: bool) -> tuple[str, Decision]:
        search.work.report("drawing the wanted pictures")
        wanted = search.want(run, reference)
        parts = run.part(first), run.part(second)
        if aim == BETTER:
            return wanted, better(search, *parts, evaluations, every)
        return wanted, cheaper(search, *parts, evaluations, margin)

    rehearsal = Rehearsal(builder, measures, Work())
    decide(rehearsal, every=True)
    work.total = rehearsal.work.spent
    wanted, decision = decide(Search(builder, measures, work), every)
    work.total = work.spent
    work.report("done")
    means = {
        name: {measure: mean_interval(values) for measure, values in one.items()}
        for name, one in decision.losses.items()
    }
    return Outcome(
        recipe=decision.recipes[decision.returned],
        returned=decision.returned,
        recipes=decision.recipes,
        pairs=decision.pairs,
        losses={name: {m: mean for m, (mean, _) in one.items()} for name, one in means.items()},
        halves={name: {m: half for m, (_, half) in one.items()} for name, one in means.items()},
        prompts=len({texts[place] for place in second}),
        evaluations=work.spent,
        wanted=wanted,
        setting=setting,
    )


def better(search: Search, run: Run, judged: Run, rows: int, every: bool) -> Decision:
    """The search's choice if it beats every baseline, or the best baseline, or nothing new.

    Once the choice has failed against one of them, the other baselines decide nothing. They are
    drawn all the same where `every` recipe is to be judged.
    """
    builder, work = search.builder, search.work
    work.report("choosing a recipe")
    others = baselines(search, run, rows)
    form = candidate(search, run, rows, others)
    best = search.race(run, list(others.values()), rows)
    chosen = {form: name for name, form in others.items()}[best]
    recipes = {CURRENT: builder.current(rows)}
    recipes |= {name: builder.recipe(one, rows) for name, one in others.items()}
    if form not in others.values():
        recipes[CANDIDATE] = builder.recipe(form, rows)
    work.report("verifying")
    deciding = [name for name in (CURRENT, chosen, CANDIDATE) if name in recipes]
    losses = {name: search.verdict(judged, recipes[name]) for name in deciding}
    if every or accept(losses, chosen)[0] == CANDIDATE:
        losses = {name: search.verdict(judged, recipe) for name, recipe in recipes.items()}
    returned, pairs = accept(losses, chosen)
    return Decision(returned, recipes, losses, pairs)


def cheaper(search: Search, run: Run, judged: Run, rows: int, margin: float) -> Decision:
    """The fewest evaluations that are not worse than N of the pipeline as it is.

    One form is tried in fewer and fewer evaluations, up to the first that fails. Such a fixed
    sequence of tests needs no correction: an error is made at most as often as in one test.
    """
    builder, work = search.builder, search.work
    work.report("choosing a form")
    forms = [Form(s, c=2.0, solver=k) for s in scales_of(run) for k in solvers_of(builder)]
    forms += [
        Form(s, high=published_interval().high, low=published_interval().low)
        for s in scales_of(run)
    ]
    form = search.race(run, forms, min(CHOSEN_AT, rows))
    work.report("verifying")
    recipes = {CURRENT: builder.current(rows)}
    losses, returned, pairs = {CURRENT: search.verdict(judged, recipes[CURRENT])}, CURRENT, []
    for fewer in (one for one in LADDER if one < rows):
        name = f"{fewer} evaluations"
        recipes[name] = builder.recipe(form, fewer)
        losses[name] = search.verdict(judged, recipes[name])
        tests = not_worse(name, CURRENT, losses, margin)
        pairs += tests
        if any(test.verdict != NOT_WORSE for test in tests):
            break
        returned = name
    return Decision(returned, recipes, losses, pairs)


def check_question(evaluations: int, aim: str, margin: float) -> None:
    """Raises WrongUse for values that are wrong whatever the model and the prompts."""
    check(aim in AIMS, "aim", aim, f"use one of {', '.join(AIMS)}")
    least = min(LADDER) + 1 if aim == CHEAPER else 4
    check_whole("evaluations", evaluations, least)
    known = isinstance(margin, int | float) and math.isfinite(margin) and margin > 0
    check(known, "margin", margin, "give a number of standard deviations above 0")


def parted(
    prompts: Sequence[str], aim: str = BETTER, margin: float = MARGIN
) -> tuple[list[int], list[int]]:
    """The places of the prompts that choose, a third of the distinct ones, and of the others.

    Raises WrongUse for too few: also where no difference at all would be inside the margin, since
    pictures differ from prompt to prompt as much as the current ones do.
    """
    count = len(set(prompts))
    first, second = split(prompts, max(LEAST, count // 3))
    if aim == CHEAPER:
        needed = math.ceil((stats.norm.ppf((1 + LEVEL) / 2) / margin) ** 2)
        judged = count - max(LEAST, count // 3)
        remedy = f"a margin of {margin:g} needs {needed} for the verdict, and half as many to "
        remedy += f"choose: give {math.ceil(1.5 * needed)} distinct ones, or a larger margin"
        check(judged >= needed, "prompts", f"{count} distinct ones", remedy)
    return first, second


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
