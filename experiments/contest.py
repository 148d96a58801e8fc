"""Methods against methods, cell by cell: one beside its rivals, or a group beside a group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from asddim_lib import metrics
from asddim_lib.errors import check
from experiments import score

#: What names a cell: the solver, the guidance scale and the number of steps.
CELL = ["solver", "guidance_scale", "steps"]
#: What grids are judged by: the records' column, and whether its logarithms are compared.
MEASURES = {
    "embedding": ("embedding", True),
    "looks": ("looks", True),
    "KID, real": ("kid_share", False),
    "KID, own fine": ("own_kid_share", False),
    "all right": ("right_all", False),
    "CLIP score": ("clip", False),
    "latents": ("distance", False),
}


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


def standing(
    records: pd.DataFrame,
    method: str | Sequence[str],
    rivals: Sequence[str],
    measures: Sequence[str] = (),
) -> pd.DataFrame:
    """Pairs one method, or several, with each of the rivals, in each cell, by some `MEASURES`.

    Without `measures`, by all that judge pictures: all but the distance of latents.
    One row per measure, method, rival and cell, with the columns of `score.paired` and `against`,
    the rival's name. Holm's correction is over all methods, rivals and cells of a measure, so a
    table of several methods comes from one call. A rival that a cell lacks has no row for it.
    Raises WrongUse for a name that the records do not hold.
    """
    methods = [method] if isinstance(method, str) else list(method)
    known = list(records["method"].unique())
    for argument, names in (("method", methods), ("rivals", list(rivals))):
        missing = [name for name in names if name not in known]
        check(not missing, argument, missing, f"use some of {', '.join(known)}")
    parts = []
    for measure in measures or [name for name in MEASURES if name != "latents"]:
        column, ratio = MEASURES[measure]
        rows = [_pairs(records, one, rival, column, ratio) for one in methods for rival in rivals]
        table = pd.concat([part for part in rows if len(part)], ignore_index=True)
        table.insert(0, "measure", measure)
        table["p_adjusted"] = metrics.holm(table["p_value"])
        better = score.better_of(column)
        table["verdict"] = [
            metrics.verdict(row.difference, row.half, row.p_adjusted, better)
            for row in table.itertuples()
        ]
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _pairs(
    records: pd.DataFrame, method: str, rival: str, column: str, ratio: bool
) -> pd.DataFrame:
    """The rows of `score.paired` for one method and one rival, in the cells that have both."""
    both = records[records["method"].isin([method, rival])]
    whole = both.groupby(CELL)["method"].transform("nunique") == 2
    pairs = score.paired(both[whole], rival, column, ratio=ratio)
    return pairs.assign(against=rival)


def beside(records: pd.DataFrame, other: pd.DataFrame, name: str) -> pd.DataFrame:
    """The records with one more method in every cell: other records, whatever cell they are of.

    So a grid of a few steps can be compared with one of many, prompt by prompt. Raises WrongUse
    where the records hold a method of that name, or the others two pictures of a prompt.
    """
    check(name not in set(records["method"]), "name", name, "give one that the records lack")
    twice = bool(other["index"].duplicated().any())
    check(not twice, "other", "with several pictures of a prompt", "give those of one cell")
    parts = [records]
    for cell, _ in records.groupby(CELL, sort=False):
        parts.append(other.assign(method=name, **dict(zip(CELL, cell, strict=True))))
    return pd.concat(parts, ignore_index=True)


def at_own_best(records: pd.DataFrame, measure: str = "all right") -> pd.DataFrame:
    """The records of each method at the guidance scale that is best for it, by a measure.

    A scale is chosen on one half of the prompts and serves the other, so that no method is
    flattered by the choice. `scale` is that scale, and `guidance_scale` says "own best" in every
    row. Solvers and step counts choose for themselves. Raises WrongUse for an unknown measure.
    """
    check(measure in MEASURES, "measure", measure, f"use one of {', '.join(MEASURES)}")
    column = MEASURES[measure][0]
    sign = 1 if score.better_of(column) == "higher" else -1
    parts = []
    for _, rows in records.groupby(["solver", "steps", "method"], sort=False):
        odd = rows["index"] % 2 == 1
        for serves in (odd, ~odd):
            means = rows[~serves].groupby("guidance_scale")[column].mean()
            best = (sign * means).idxmax()
            chosen = rows[serves & (rows["guidance_scale"] == best)]
            parts.append(chosen.assign(scale=best, guidance_scale="own best"))
    return pd.concat(parts, ignore_index=True)


def shown(standings: pd.DataFrame, by: Sequence[str] = ("against", "steps")) -> pd.DataFrame:
    """`standing`'s rows for people: a column per measure, each difference with its verdict.

    A ratio is shown in per cent.
    """
    percent = {measure for measure, (_, ratio) in MEASURES.items() if ratio}
    said = [
        f"{100 * np.expm1(row.difference):+.0f} %: {row.verdict}"
        if row.measure in percent
        else f"{_brief(row.difference, '+')} ± {_brief(row.half)}: {row.verdict}"
        for row in standings.itertuples()
    ]
    wide = standings.assign(said=said).pivot(index=list(by), columns="measure", values="said")
    order = list(dict.fromkeys(standings[by[0]]))
    wide = wide[[measure for measure in MEASURES if measure in wide]]
    return wide.reindex(order, level=by[0])


def summed(standings: pd.DataFrame) -> pd.DataFrame:
    """How many wins, ties and losses `standing` has, per rival and measure, such as "3 / 1 / 0".

    The spaces do not break: a narrow screen would make three lines of one entry.
    """
    counts = standings.groupby(["against", "measure"])["verdict"].value_counts()
    wide = counts.unstack(fill_value=0).reindex(columns=["win", "tie", "loss"], fill_value=0)
    said = wide.astype(str).agg("\u00a0/\u00a0".join, axis=1).unstack()
    measures = [measure for measure in MEASURES if measure in said]
    return said.loc[list(dict.fromkeys(standings["against"])), measures]


def _brief(value: float, sign: str = "") -> str:
    return f"{value:{sign}.0f}" if abs(value) >= 10 else f"{value:{sign}.2g}"


def counted(pairs: pd.DataFrame) -> str:
    """How many wins, ties and losses a table with a column `verdict` has, in words."""
    count = score.count_verdicts(pairs)
    words = {"win": "wins", "tie": "ties", "loss": "losses"}
    said = [f"{n} {kind if n == 1 else words[kind]}" for kind, n in count.items()]
    cells = f"{len(pairs)} cell" + ("" if len(pairs) == 1 else "s")
    return f"{', '.join(said[:-1])} and {said[-1]} in {cells}"
