"""Group against group: the best of some methods beside the best of others, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from asddim_lib.errors import check
from asddim_lib.experiment import score

#: What names a cell: the solver, the guidance scale and the number of steps.
CELL = ["solver", "guidance_scale", "steps"]


def best_against_best(
    records: pd.DataFrame, mine: Sequence[str], rivals: Sequence[str], over: str = "trailing"
) -> pd.DataFrame:
    """Pairs, in each cell, the nearest of `mine` with the nearest of `rivals` on the same prompts.

    Nearest is the least mean `distance` on the very records compared, so a group of several methods
    is flattered by the choice. One row per cell: `ours` and `peer` are the methods' names,
    `distance` and `its distance` their means, `over` and its column "over …" the first over the
    mean of that method, and the columns of `score.paired` are corrected for all cells.

    Raises WrongUse for records in which a cell has none of a group.
    """
    parts, about = [], []
    for _, cell in records.groupby(CELL, sort=False):
        mean = cell.groupby("method")["distance"].mean()
        best = []
        for name, group in (("mine", mine), ("rivals", rivals)):
            known = mean[[method for method in group if method in mean]]
            check(len(known) > 0, name, list(group), f"use some of {', '.join(mean.index)}")
            best.append(known.idxmin())
        about.append((*best, *mean[best], mean[best[0]] / mean[over]))
        for method, label in zip(best, ("ours", "peer"), strict=True):
            parts.append(cell[cell["method"] == method].assign(method=label))
    pairs = score.paired(pd.concat(parts), "peer", "distance")
    columns = ["ours", "peer", "distance", "its distance", f"over {over}"]
    names = pd.DataFrame(about, columns=columns)
    return pd.concat([pairs[CELL], names, pairs.drop(columns=CELL)], axis=1)


def counted(pairs: pd.DataFrame) -> str:
    """How many wins, ties and losses a table with a column `verdict` has, in words."""
    count = score.count_verdicts(pairs)
    words = {"win": "wins", "tie": "ties", "loss": "losses"}
    said = [f"{n} {kind if n == 1 else words[kind]}" for kind, n in count.items()]
    cells = f"{len(pairs)} cell" + ("" if len(pairs) == 1 else "s")
    return f"{', '.join(said[:-1])} and {said[-1]} in {cells}"
