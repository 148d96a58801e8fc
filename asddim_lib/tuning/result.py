"""What a tuning hands out: a grid, the scheduler that holds it, and why."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from asddim_lib import schedulers
from asddim_lib.cache import DamagedFile, seal, sealed, write_whole
from asddim_lib.errors import WrongUse, check
from asddim_lib.tuning.report import PICTURE_STEPS, change, markdown
from asddim_lib.tuning.verify import Acceptance, Comparison

FILES = ("tune.json", "report.md", "sheet.png", "scheduler/scheduler_config.json")


@dataclass(frozen=True)
class Tuned:
    """A tuned grid: timesteps, numbers of levels for a flow model too.

    `name` says where it comes from: a density of ours, moved or not, or the peer that the
    `candidate` did not win over. `rivals` are the peers' grids, and `left_out` says why others have
    none; `acceptance` compares the candidate with them on prompts that served no choice.
    `setting` is what the grid is for: model, solver, steps, guidance and options. `evaluations`
    counts the network's. `sheet` is a PNG of pictures side by side. Where it was asked for, `share`
    is the best `look_ahead` found, `told` its verdict against the same grid without it and the
    peers, and `look_ahead` what is handed out: the share, or 0 unless it wins.
    """

    grid: list[int]
    name: str
    candidate: list[int]
    rivals: dict[str, list[int]]
    left_out: dict[str, str]
    acceptance: Acceptance
    evaluations: int
    setting: dict[str, Any]
    scheduler_config: dict[str, Any]
    sheet: bytes = b""
    look_ahead: float = 0.0
    share: float = 0.0
    told: Acceptance | None = None

    @property
    def accepted(self) -> bool:
        """Whether the candidate won, and is handed out; otherwise the best peer is."""
        return self.acceptance.accepted

    @property
    def scheduler(self) -> Any:
        """A scheduler that holds the grid, for `pipe.scheduler`: it is saved with the pipeline.

        Call the pipeline with `num_inference_steps` of as many steps as the grid has.
        """
        kind = getattr(schedulers, self.scheduler_config["_class_name"])
        return kind.from_config(self.scheduler_config)

    @property
    def sigmas(self) -> list[float]:
        """The grid as a flow-matching pipeline takes it, by `sigmas=`: before the shift.

        Raises WrongUse for another kind of model, which takes the grid by `timesteps=`.
        """
        check(self.setting["flow"], "model", "no flow-matching one", "use grid, by timesteps=")
        size = self.setting["num_train_timesteps"]
        return [(t + 1) / size for t in self.grid]

    @property
    def pictures(self) -> float:
        """The cost in pictures of 50 steps of the same pipeline and guidance."""
        return self.evaluations / (PICTURE_STEPS * self.setting["evaluations_per_step"])

    def table(self) -> pd.DataFrame:
        """The candidate against each peer, the best peer first."""
        rows = [asdict(one) for one in self.acceptance.comparisons]
        return pd.DataFrame(rows).sort_values("loss", ignore_index=True)

    def summary(self) -> str:
        """What is handed out, and how sure that is, in a few sentences."""
        best = next(c for c in self.acceptance.comparisons if c.peer == self.acceptance.best)
        by = f"{_of(best, self.setting['relative'])}, over {self.setting['verified_on']} prompts"
        if self.accepted:
            return f"{self.name} wins over the best peer, {best.peer}: {by}."
        if self.candidate == self.rivals[best.peer]:
            return f"No grid was found that is better than {best.peer}, which is handed out."
        second = self.acceptance.check
        if best.verdict == "win" and second is not None:
            text = f"The candidate, {self.candidate}, wins over {best.peer} ({by}), but the second"
            text += f" encoder, {self.setting['check_encoder']}, sees it lose: {_of(second, True)}."
            return f"{text} {best.peer} is handed out."
        text = f"The candidate, {self.candidate}, does not win over {best.peer}: {by}. "
        text += f"{best.peer} is handed out."
        if best.difference < 0 and best.needed is not None:
            text += f" About {best.needed} prompts for the verdict would settle such a difference."
        return text

    def to_dict(self) -> dict[str, Any]:
        """All but the sheet, as JSON holds it."""
        return {name: part for name, part in asdict(self).items() if name != "sheet"}

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder: tune.json with its hash, report.md, sheet.png and scheduler/.

        A scheduler's `from_pretrained(folder, subfolder="scheduler")` loads the last. Raises
        OSError where a file could not be written.
        """
        place = Path(folder)
        (place / "scheduler").mkdir(parents=True, exist_ok=True)
        config = self.scheduler.to_json_string()
        write_whole(place / FILES[3], lambda part: part.write_text(config))
        if self.sheet:
            write_whole(place / FILES[2], lambda part: part.write_bytes(self.sheet))
        else:  # an older result's would be taken for this one's
            (place / FILES[2]).unlink(missing_ok=True)
        write_whole(place / FILES[1], lambda part: part.write_text(markdown(self)))
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
            remedy = "run the same asddim tune again: it is made again"
            damaged = f"folder is {folder}, whose {file.name} is damaged"
            raise WrongUse(f"{damaged}; {remedy}") from error
        value["acceptance"] = _acceptance(value["acceptance"])
        if value.get("told"):  # older files have none
            value["told"] = _acceptance(value["told"])
        return cls(**value, sheet=picture.read_bytes() if picture.is_file() else b"")


def _acceptance(found: dict[str, Any]) -> Acceptance:
    """A verdict as it was before it became JSON."""
    parts = [Comparison(**one) for one in found["comparisons"]]
    second = Comparison(**found["check"]) if found["check"] else None
    return Acceptance(found["accepted"], found["best"], parts, second)


def _of(one: Comparison, relative: bool) -> str:
    """A difference as a share of the peer's loss, or as it is where that is 0."""
    if relative:
        return f"{change(one, relative)} of its loss"
    if one.loss == 0:
        return f"{one.difference:+.3g} ± {one.half:.3g} on its loss of 0"
    share, half = (100 * value / abs(one.loss) for value in (one.difference, one.half))
    return f"{share:+.1f} ± {half:.1f} % of its loss"
