"""What a tuning returns: a scheduler, its grid, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd

from asddim_lib.cache import check_writable, seal, unseal, write_whole
from asddim_lib.errors import check
from asddim_lib.tuning.draw import Sampler, Setup, Trials
from asddim_lib.tuning.report import examples, markdown, summary, without_us
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, LEAST, Decision

RESULT, REPORT, SHEET = "tune.json", "report.md", "sheet.png"


@dataclass(frozen=True)
class TunedFor:
    """What a result is for.

    `current` and `solver` are classes: of the user's scheduler, and of the one that draws grids.
    """

    model: str
    pipeline: str
    current: str
    solver: str
    steps: int
    guidance_scale: float | None
    options: dict[str, str]
    shift: float | None
    evaluations_per_picture: int
    goal: str
    relative: bool
    encoder: str
    check_encoder: str
    reference_steps: int

    @classmethod
    def of(cls, setup: Setup) -> TunedFor:
        """What a setup's results are for."""
        run, goal = setup.run, setup.goal
        return cls(
            model=str(getattr(run.pipe, "name_or_path", None) or ""),
            pipeline=type(run.pipe).__name__,
            current=type(run.pipe.scheduler).__name__,
            solver=type(setup.plain).__name__,
            steps=setup.steps,
            guidance_scale=run.guidance_scale,
            options={name: shorten(str(value), 80) for name, value in run.options.items()},
            shift=run.schedule.shift if run.schedule.kind == "flow" else None,
            evaluations_per_picture=setup.rows * setup.current.calls,
            goal=goal.name,
            relative=goal.relative,
            encoder=goal.encoder.name if goal.encoder else "",
            check_encoder=goal.check.name if goal.check else "",
            reference_steps=setup.reference.steps,
        )

    def folder(self, folder: str | os.PathLike) -> Path:
        """A folder's path. Raises WrongUse where it cannot be written, or has another's result."""
        check(bool(str(folder)), "folder", "''", "name one")
        check_writable("folder", Path(folder))
        before = (unseal(Path(folder) / RESULT) or {}).get("setting", {})
        for name, value in vars(self).items():
            other = f"{folder}, whose result has {name} {before.get(name)}, not {value}"
            same = before.get(name, value) == value
            check(same, "folder", other, "name another folder, or remove this one")
        return Path(folder)


@dataclass(frozen=True)
class Tuned:
    """What `tune` returns: the sampler that replaces the current one, or that one.

    `name` is "current", a named grid's, or the candidate's origin: a density, moved or not. `grid`
    has its timesteps, numbers of levels for a flow model too; None where the current scheduler's
    levels are no whole timesteps of the solver's. `scheduler` is for `pipe.scheduler`, as it was
    judged, and can be saved; it is the pipeline's own where nothing changes. Call the pipeline with
    `num_inference_steps` of the setting's steps.

    `grids` are those that were compared, the candidate's among them, and `skipped` says why others
    were not drawn. `decision` compares all of them by so many `pictures` each, of distinct
    `prompts` that served no choice; `chosen_on` pictures did. `evaluations` counts the network's.
    `advice` is how many prompts would decide, and after how many `minutes`, where it is open.
    `sheet` is a PNG of the `shown` prompts' pictures. `plain` is code that draws the grid with
    diffusers alone.
    """

    name: str
    grid: list[int] | None
    scheduler: Any = field(compare=False, repr=False)
    grids: dict[str, list[int]]
    skipped: dict[str, str]
    decision: Decision
    setting: TunedFor
    prompts: int
    pictures: int
    chosen_on: int
    evaluations: int
    shown: list[str]
    sheet: bytes = field(repr=False)
    plain: str
    advice: int | None
    minutes: float | None = field(compare=False)

    @property
    def changed(self) -> bool:
        """Whether another sampler replaces the current one."""
        return self.decision.returned != CURRENT

    @property
    def cost_in_pictures(self) -> float:
        """The network evaluations, in pictures of the current sampler."""
        return self.evaluations / self.setting.evaluations_per_picture

    def table(self) -> pd.DataFrame:
        """Each comparison that was made, in a row."""
        return pd.DataFrame([asdict(one) for one in self.decision.comparisons])

    def summary(self) -> str:
        """What is returned, and how sure that is, in a few sentences."""
        return summary(self)

    def report(self, folder: str = "tuned") -> str:
        """A page in Markdown: the verdict, its use, every comparison, the cost, the setting.

        Its code loads the scheduler from the folder.
        """
        return markdown(self, folder)

    def to_dict(self) -> dict[str, Any]:
        """All but the sheet, as JSON holds it; of the scheduler, its config."""
        parts = {n: v for n, v in vars(self).items() if n not in ("sheet", "scheduler")}
        parts["scheduler_config"] = json.loads(self.scheduler.to_json_string())
        return parts | {"decision": asdict(self.decision), "setting": asdict(self.setting)}

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder: tune.json with its hash, report.md, sheet.png and scheduler/.

        A scheduler's `from_pretrained(folder, subfolder="scheduler")` loads the last. Raises
        WrongUse for a folder with a result for another setting, and OSError where a file could not
        be written.
        """
        place = self.setting.folder(folder)
        (place / "scheduler").mkdir(parents=True, exist_ok=True)
        config = self.scheduler.to_json_string()
        _write(place / "scheduler" / "scheduler_config.json", config.encode())
        if self.sheet:
            _write(place / SHEET, self.sheet)
        else:  # an older result's would be taken for this one's
            (place / SHEET).unlink(missing_ok=True)
        _write(place / REPORT, self.report(str(folder)).encode())
        seal(place / RESULT, self.to_dict())


def result(
    trials: Trials,
    samplers: Mapping[str, Sampler],
    decision: Decision,
    grids: Mapping[str, list[float]],
    skipped: dict[str, str],
    origin: str,
    chosen_on: int,
    examples_of: int,
) -> Tuned:
    """The result of a decision among samplers by their trials.

    `origin` is what the candidate came of. The sheet has the first `examples_of` prompts, by the
    current sampler, the candidate and the one returned, or by all where there is no candidate.
    """
    setup, returned, work = trials.setup, decision.returned, trials.setup.work
    pipe, setting, texts = setup.run.pipe, TunedFor.of(setup), trials.run.prompts
    times = {name: setup.levels.to_timesteps(grid) for name, grid in grids.items()}
    if returned == CURRENT:
        scheduler, plain = pipe.scheduler, ""
        own = setup.current_grid
        grid = None if own is None else setup.levels.to_timesteps(own)
    else:
        judged, grid = samplers[returned].scheduler, times[returned]
        scheduler = type(judged).from_config(judged.config)
        plain = without_us(pipe, scheduler, grid, setting)
    few = (CURRENT, CANDIDATE, returned) if CANDIDATE in grids else samplers
    sheet = examples(trials, {n: samplers[n] for n in samplers if n in few}, examples_of)
    work.total = work.spent
    work.report("done")
    advice = minutes = None
    if decision.needed is not None:
        more = max(decision.needed, LEAST) / len(set(texts))
        advice = ceil(more * len(set(setup.run.prompts)))
        minutes = more * work.spent * work.seconds / work.drawn / 60 if work.drawn else None
    return Tuned(
        name=origin if returned == CANDIDATE else returned,
        grid=grid,
        scheduler=scheduler,
        grids=times,
        skipped=skipped,
        decision=decision,
        setting=setting,
        prompts=len(set(texts)),
        pictures=len(texts),
        chosen_on=chosen_on,
        evaluations=work.spent,
        shown=list(texts[:examples_of]),
        sheet=sheet,
        plain=plain,
        advice=advice,
        minutes=minutes,
    )


def _write(file: Path, content: bytes) -> None:
    write_whole(file, lambda part: part.write_bytes(content))
