"""What a tuning returns: a scheduler, its grid, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import pandas as pd

from asddim_lib import schedulers
from asddim_lib.cache import DamagedFile, seal, sealed, write_whole
from asddim_lib.errors import WrongUse, check
from asddim_lib.schedulers.place import drawing
from asddim_lib.tuning.draw import Sampler, Setup, Trials
from asddim_lib.tuning.report import markdown, summary
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, LEAST, Comparison, Decision

FILES = ("tune.json", "report.md", "sheet.png", "scheduler/scheduler_config.json")
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
    the named ones, and `skipped` says why others were not drawn. `decision` compares all of them on
    prompts that served no choice. `setting` is what the result is for. `advice` is how many prompts
    would decide, and after how many minutes, where it is open. `evaluations` counts the network's.
    `sheet` is a PNG of pictures side by side.
    """

    name: str
    grid: list[int] | None
    candidate: list[int] | None
    grids: dict[str, list[int]]
    skipped: dict[str, str]
    decision: Decision
    setting: dict[str, Any]
    evaluations: int
    scheduler_config: dict[str, Any]
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
        if self._current is not None and not self.changed:
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
        flow, size = self.setting["flow"], self.setting["num_train_timesteps"]
        check(flow, "model", "no flow-matching one", "use grid, by timesteps=")
        remedy = "nothing changes: call the pipeline with num_inference_steps alone"
        check(self.grid is not None, "grid", None, remedy)
        return [(t + 1) / size for t in self.grid or []]

    def without_us(self) -> tuple[Any, dict[str, Any]] | None:
        """A diffusers scheduler and the call's arguments that draw the grid without this library.

        None where nothing changes, and where diffusers has no scheduler, or the pipeline no
        argument, that takes it. `DDIM` is drawn by Euler, the same method in other variables.
        """
        name, argument = STOCK.get(self.scheduler_config["_class_name"], ("", ""))
        config = self.scheduler_config
        clips = name.startswith("Euler") and (config["clip_sample"] or config["thresholding"])
        flow_dpm = self.setting["flow"] and argument == "timesteps"
        usable = argument in self.setting["takes"] and not clips and not flow_dpm
        if not (self.changed and usable):
            return None
        scheduler = drawing(getattr(diffusers, name), config)
        if name.startswith("Euler"):  # whose first sample then has DDIM's scale
            scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="leading")
        return scheduler, {argument: self.grid if argument == "timesteps" else self.sigmas}

    @property
    def pictures(self) -> float:
        """The cost in pictures of the current sampler."""
        return self.evaluations / self.setting["evaluations_per_picture"]

    def table(self) -> pd.DataFrame:
        """Each comparison that was made, in a row."""
        return pd.DataFrame([asdict(one) for one in self.decision.comparisons])

    def summary(self) -> str:
        """What is returned, and how sure that is, in a few sentences."""
        return summary(self)

    def report(self) -> str:
        """A page in Markdown: the verdict, every comparison, the setting, the costs, the use."""
        return markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """All but the sheet, as JSON holds it."""
        parts = {n: v for n, v in vars(self).items() if n not in ("sheet", "_current")}
        return parts | {"decision": asdict(self.decision)}

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder: tune.json with its hash, report.md, sheet.png and scheduler/.

        A scheduler's `from_pretrained(folder, subfolder="scheduler")` loads the last. Raises
        WrongUse for a folder with a result for another setting, and OSError where a file could not
        be written.
        """
        place = Path(folder)
        _check_same(place, self.setting)
        (place / "scheduler").mkdir(parents=True, exist_ok=True)
        config = json.dumps(self.scheduler_config, indent=2, sort_keys=True) + "\n"
        _write(place / FILES[3], config.encode())
        if self.sheet:
            _write(place / FILES[2], self.sheet)
        else:  # an older result's would be taken for this one's
            (place / FILES[2]).unlink(missing_ok=True)
        _write(place / FILES[1], self.report().encode())
        seal(place / FILES[0], self.to_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Tuned:
        """What `save` wrote. Raises WrongUse for a folder without it, or with a damaged file."""
        file, picture = (Path(folder) / name for name in (FILES[0], FILES[2]))
        remedy = "give a folder that asddim tune, or Tuned.save, has written"
        check(file.is_file(), "folder", f"{folder}, without a {file.name}", remedy)
        try:
            value = sealed(file)
        except DamagedFile as error:
            damaged = f"folder is {folder}, whose {file.name} is damaged"
            raise WrongUse(f"{damaged}; run the same asddim tune again") from error
        older = f"{folder}, which an earlier version wrote"
        check("decision" in value, "folder", older, "its scheduler/ loads by from_pretrained")
        said = value.pop("decision")
        pairs = [
            [Comparison(**one) for one in said[name]] for name in ("comparisons", "objections")
        ]
        sheet = picture.read_bytes() if picture.is_file() else b""
        return cls(**value, decision=Decision(said["returned"], *pairs), sheet=sheet)


def result(
    setup: Setup,
    trials: Trials,
    samplers: Mapping[str, Sampler],
    decision: Decision,
    grids: Mapping[str, list[int]],
    *,
    skipped: dict[str, str],
    sheet: tuple[bytes, dict[str, Any]],
    needed: Callable[[int], int],
    origin: str = "",
    chosen_on: int = 0,
) -> Tuned:
    """The result of a decision among samplers; `needed` prompts leave so many for a verdict."""
    setup.work.doing, setup.work.total = "done", setup.work.spent
    setup.work.report()
    returned = decision.returned
    texts = trials.run.prompts
    setting = setup.described() | sheet[1]
    setting |= {"chosen_on": chosen_on, "pictures": len(texts), "prompts": len(set(texts))}
    config = json.loads(samplers[returned].scheduler.to_json_string())
    tuned = Tuned(
        name=origin if returned == CANDIDATE else returned,
        grid=setup.current_grid if returned == CURRENT else list(grids[returned]),
        candidate=grids.get(CANDIDATE),
        grids={name: grid for name, grid in grids.items() if name != CANDIDATE},
        skipped=skipped,
        decision=decision,
        setting=setting,
        evaluations=setup.work.spent,
        scheduler_config=config,
        sheet=sheet[0],
        _current=setup.run.pipe.scheduler if returned == CURRENT else None,
    )
    count = undecided(tuned)
    if count is None:
        return tuned
    total, work = needed(max(count, LEAST)), setup.work
    times = total / len(set(setup.run.prompts))
    each = work.seconds / work.drawn if work.drawn else None
    minutes = None if each is None else each * work.spent * times / 60
    return replace(tuned, advice=total, minutes=minutes)


def undecided(tuned: Tuned) -> int | None:
    """How many prompts for the verdict would decide; None where it is decided.

    A sampler is worth more prompts if it seems better than every other that it does not win over.
    """
    if tuned.changed or tuned.decision.objections:
        return None
    pairs = (
        tuned.decision.of(CANDIDATE)
        or sorted(tuned.decision.comparisons, key=lambda one: one.difference)[:1]
    )
    ties = [one for one in pairs if one.verdict != "win"]
    if not ties or any(one.difference >= 0 or one.needed is None for one in ties):
        return None
    return max(one.needed or 0 for one in ties)


def _write(file: Path, content: bytes) -> None:
    write_whole(file, lambda part: part.write_bytes(content))


def _check_same(place: Path, setting: dict[str, Any]) -> None:
    """Raises WrongUse where a folder has the result of another setting."""
    file = place / FILES[0]
    if not file.is_file():
        return
    try:
        before = sealed(file).get("setting", {})
    except DamagedFile:
        return
    for name in ("model", "pipeline", "solver", "steps", "guidance_scale", "options", "goal"):
        same = before.get(name) == setting[name]
        what = f"{place}, which has a result for {name} {before.get(name)}"
        check(same, "folder", what, "name another folder, or remove this one")
