"""What a tuning hands out: a grid, the scheduler that holds it, and why."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from asddim_lib.files import seal
from asddim_lib.tune.verify import Acceptance


@dataclass(frozen=True)
class Tuned:
    """A tuned grid: timesteps, numbers of levels for a flow model too.

    `name` says where it comes from: a density of ours, moved or not, or the peer that the
    `candidate` did not win over. `rivals` are the peers' grids; `acceptance` compares the candidate
    with them on prompts that served no choice. `setting` is what the grid is for: model, solver,
    steps, guidance and options. `evaluations` counts the network's.
    """

    grid: list[int]
    name: str
    candidate: list[int]
    rivals: dict[str, list[int]]
    acceptance: Acceptance
    evaluations: int
    setting: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether the candidate won, and is handed out; otherwise the best peer is."""
        return self.acceptance.accepted

    @property
    def sigmas(self) -> list[float]:
        """The grid as a flow-matching pipeline takes it, by `sigmas=`: before the shift."""
        return [(t + 1) / 1000 for t in self.grid]

    def table(self) -> pd.DataFrame:
        """The candidate against each peer, the best peer first."""
        rows = [asdict(one) for one in self.acceptance.comparisons]
        return pd.DataFrame(rows).sort_values("loss", ignore_index=True)

    def summary(self) -> str:
        """One or two sentences: what is handed out, and how sure that is."""
        best = min(self.acceptance.comparisons, key=lambda one: one.loss)
        change, half = 100 * best.difference / best.loss, 100 * best.half / best.loss
        against = f"{change:+.1f} ± {half:.1f} % of its loss, over {self.setting['verified_on']}"
        if self.accepted:
            return f"{self.name} wins over the best peer, {best.peer}: {against} unseen prompts."
        text = f"The candidate, {self.candidate}, does not win over {best.peer}: {against} unseen"
        more = f" prompts. {best.peer} is handed out."
        if best.verdict == "tie" and best.difference < 0:
            more += f" About {best.needed:.0f} prompts would settle a difference as large."
        return text + more

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tune.json, sealed with its hash."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        seal(place / "tune.json", asdict(self))
