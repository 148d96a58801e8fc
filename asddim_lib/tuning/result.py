"""What a tuning returns: a scheduler, its grid, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import pandas as pd

from asddim_lib import schedulers
from asddim_lib.cache import DamagedFile, seal, sealed, write_whole
from asddim_lib.errors import WrongUse, check
from asddim_lib.schedulers.place import drawing
from asddim_lib.tuning.draw import Sampler, Trials, TunedFor
from asddim_lib.tuning.report import examples, markdown, summary
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, LEAST, Comparison, Decision

RESULT, REPORT, SHEET = "tune.json", "report.md", "sheet.png"
#: diffusers' class that draws a grid of ours by the same method, and the call's argument for it.
STOCK = {
    "ASDDIMScheduler": ("EulerDiscreteScheduler", "timesteps"),
    "DPMSolverGridScheduler": ("DPMSolverMultistepScheduler", "timesteps"),
    "ASFlowScheduler": ("FlowMatchEulerDiscreteScheduler", "sigmas"),
}


@dataclass(frozen=True)
class Tuned:
    """What `tune` or `compare` returns: the sampler that replaces the current one, or that one.

    `name` is "current", a named grid's, or the candidate's origin: a density, moved or not. `grid`
    has its timesteps, numbers of levels for a flow model too; None where the current scheduler's
    levels are no whole timesteps of the solver's. `candidate` is what `tune` proposed. `grids` are
    the named ones, and `skipped` says why others were not drawn. `decision` compares all of them by
    so many `pictures` each, of distinct `prompts` that served no choice; `chosen_on` pictures did.
    `evaluations` counts the network's. `advice` is how many prompts would decide, and after how
    many minutes, where it is open. `sheet` is a PNG of the `shown` prompts' pictures.
    """

    name: str
    grid: list[int] | None
    candidate: list[int] | None
    grids: dict[str, list[int]]
    skipped: dict[str, str]
    decision: Decision
    setting: TunedFor
    prompts: int
    pictures: int
    chosen_on: int
    evaluations: int
    scheduler_config: dict[str, Any]
    shown: list[str]
    advice: int | None = None
    sheet: bytes = b""
    minutes: float | None = field(default=None, compare=False)
    _current: Any = field(default=None, compare=False, repr=False)

    @property
    def changed(self) -> bool:
        """Whether another sampler replaces the current one."""
        return self.decision.returned != CURRENT

    @property
    def scheduler(self) -> Any:
        """The scheduler for `pipe.scheduler`, ready and as it was judged; it can be saved.

        It is the pipeline's own where nothing changes. Call the pipeline with `num_inference_steps`
        of the setting's steps. Raises WrongUse for a class that a loaded result does not know.
        """
        if self._current is not None:
            return self._current
        name = self.scheduler_config["_class_name"]
        kind = getattr(schedulers, name, None) or getattr(diffusers, name, None)
        remedy = "nothing changes: keep the pipeline's own scheduler"
        check(kind is not None, "scheduler", f"{name}, which is not diffusers'", remedy)
        return kind.from_config(self.scheduler_config)  # type: ignore[union-attr]

    @property
    def sigmas(self) -> list[float]:
        """The grid as a flow-matching pipeline takes it, by `sigmas=`: before the shift.

        Raises WrongUse for another kind of model, which takes `grid` by `timesteps=`, and where
        there is no grid.
        """
        check(self.setting.flow, "model", "no flow-matching one", "use grid, by timesteps=")
        remedy = "nothing changes: call the pipeline with num_inference_steps alone"
        check(self.grid is not None, "grid", None, remedy)
        return [(t + 1) / self.setting.num_train_timesteps for t in self.grid or []]

    def without_us(self) -> tuple[Any, dict[str, Any]] | None:
        """A diffusers scheduler and the call's arguments that draw the grid without this library.

        None where nothing changes, and where diffusers has no scheduler, or the pipeline no
        argument, that takes it. `DDIM` is drawn by Euler, the same method in other variables.
        """
        config = self.scheduler_config
        name, argument = STOCK.get(config["_class_name"], ("", ""))
        clips = name.startswith("Euler") and (config["clip_sample"] or config["thresholding"])
        flow_dpm = self.setting.flow and argument == "timesteps"
        if not self.changed or argument not in self.setting.takes or clips or flow_dpm:
            return None
        scheduler = drawing(getattr(diffusers, name), config)
        if name.startswith("Euler"):  # whose first sample then has DDIM's scale
            scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="leading")
        return scheduler, {argument: self.grid if argument == "timesteps" else self.sigmas}

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
        """All but the sheet, as JSON holds it."""
        parts = {n: v for n, v in vars(self).items() if n not in ("sheet", "_current")}
        return parts | {"decision": asdict(self.decision), "setting": asdict(self.setting)}

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder: tune.json with its hash, report.md, sheet.png and scheduler/.

        A scheduler's `from_pretrained(folder, subfolder="scheduler")` loads the last. Raises
        WrongUse for a folder with a result for another setting, and OSError where a file could not
        be written.
        """
        place = self.setting.claim(folder)
        (place / "scheduler").mkdir(exist_ok=True)
        config = json.dumps(self.scheduler_config, indent=2, sort_keys=True) + "\n"
        _write(place / "scheduler" / "scheduler_config.json", config.encode())
        if self.sheet:
            _write(place / SHEET, self.sheet)
        else:  # an older result's would be taken for this one's
            (place / SHEET).unlink(missing_ok=True)
        _write(place / REPORT, self.report(str(folder)).encode())
        seal(place / RESULT, self.to_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Tuned:
        """What `save` wrote. Raises WrongUse for a folder without it, or with a damaged file."""
        file, picture = Path(folder) / RESULT, Path(folder) / SHEET
        remedy = "give a folder that asddim tune, or Tuned.save, has written"
        check(file.is_file(), "folder", f"{folder}, without a {RESULT}", remedy)
        try:
            value = sealed(file)
        except DamagedFile as error:
            damaged = f"folder is {folder}, whose {RESULT} is damaged"
            raise WrongUse(f"{damaged}; run the same asddim tune again") from error
        older = f"{folder}, which an earlier version wrote"
        check("decision" in value, "folder", older, "its scheduler/ loads by from_pretrained")
        decision, sheet = value["decision"], picture.read_bytes() if picture.is_file() else b""
        pairs = ([Comparison(**one) for one in decision[n]] for n in ("comparisons", "objections"))
        value |= {"decision": Decision(decision["returned"], *pairs), "sheet": sheet}
        return cls(**value | {"setting": TunedFor(**value["setting"])})


def result(
    trials: Trials,
    samplers: Mapping[str, Sampler],
    decision: Decision,
    grids: Mapping[str, list[float]],
    *,
    skipped: dict[str, str],
    shown: Sequence[str],
    examples_of: int,
    needed: Callable[[int], int],
    origin: str = "",
    chosen_on: int = 0,
) -> Tuned:
    """The result of a decision among samplers by their trials.

    The sheet has the samplers that are `shown`, on the first `examples_of` prompts. `needed`
    prompts in all leave so many for a verdict. What the result lists of grids is timesteps.
    """
    setup, texts, returned = trials.setup, trials.run.prompts, decision.returned
    times = {name: setup.levels.whole(grid) for name, grid in grids.items()}
    if setup.current_grid is not None:
        times[CURRENT] = setup.levels.whole(setup.current_grid)
    sheet = examples(trials, {name: samplers[name] for name in shown}, examples_of)
    work = setup.work
    work.total = work.spent
    work.report("done")
    tuned = Tuned(
        name=origin if returned == CANDIDATE else returned,
        grid=times.get(returned),
        candidate=times.get(CANDIDATE),
        grids={name: times[name] for name in grids if name != CANDIDATE},
        skipped=skipped,
        decision=decision,
        setting=setup.described(),
        prompts=len(set(texts)),
        pictures=len(texts),
        chosen_on=chosen_on,
        evaluations=work.spent,
        scheduler_config=json.loads(samplers[returned].scheduler.to_json_string()),
        shown=list(texts[:examples_of]),
        sheet=sheet,
        _current=setup.run.pipe.scheduler if returned == CURRENT else None,
    )
    count = undecided(tuned)
    if count is None:
        return tuned
    advice = needed(max(count, LEAST))
    longer = advice / len(set(setup.run.prompts))
    seconds = work.seconds / work.drawn * work.spent * longer if work.drawn else None
    return replace(tuned, advice=advice, minutes=None if seconds is None else seconds / 60)


def undecided(tuned: Tuned) -> int | None:
    """How many prompts for the verdict would decide; None where it is decided.

    A sampler is worth more prompts if it seems better than every other that it does not win over.
    """
    if tuned.changed or tuned.decision.objections:
        return None
    pairs = tuned.decision.of(CANDIDATE)
    pairs = pairs or sorted(tuned.decision.comparisons, key=lambda one: one.difference)[:1]
    ties = [one for one in pairs if one.verdict != "win"]
    counts = [one.needed for one in ties if one.difference < 0 and one.needed is not None]
    return max(counts) if counts and len(counts) == len(ties) else None


def _write(file: Path, content: bytes) -> None:
    write_whole(file, lambda part: part.write_bytes(content))
