"""Comparisons of methods on the same prompts and noise, and their verdicts.

A verdict depends on what is corrected together. `Family` has the comparisons of one record, as
`results/families.yml` fixes them, for every table of the book that prints one of them. `paired` and
`standing` correct over the rows of one call: a user's own table, or one that occurs once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from asddim_lib import metrics
from asddim_lib.errors import check
from asddim_lib.metrics.intervals import Better
from experiments.records import read_records

#: What names a cell: the solver, the guidance scale and the number of steps.
CELL = ["solver", "guidance_scale", "steps"]
FAMILIES = Path("results/families.yml")


class Measure(NamedTuple):
    """A column of the records, its better direction, and whether logarithms are compared."""

    column: str
    better: Better
    ratio: bool = False


MEASURES = {
    "embedding": Measure("embedding", "lower", ratio=True),
    "looks": Measure("looks", "lower", ratio=True),
    "KID, real": Measure("kid_share", "lower"),
    "KID, own fine": Measure("own_kid_share", "lower"),
    "all right": Measure("right_all", "higher"),
    "CLIP score": Measure("clip", "higher"),
    "latents": Measure("distance", "lower"),
}


def better_of(column: str) -> Better:
    """The direction in which a column of the records improves. Raises WrongUse for another."""
    known = {measure.column: measure.better for measure in MEASURES.values()}
    known["seconds"] = "lower"
    right = column in known or column.startswith("right_")
    remedy = f"use one of {', '.join(known)}, or say which direction is better"
    check(right, "key", column, remedy)
    return known.get(column, "higher")


def paired(
    records: pd.DataFrame,
    baseline: str,
    key: str,
    better: Better | None = None,
    ratio: bool = False,
) -> pd.DataFrame:
    """Each method's difference from the baseline in the column `key`, a row per cell.

    `difference` is the mean, `half` the half-width of its 95 % t interval, `p_value` that of the t
    test, `p_adjusted` the same by Holm's correction over all rows returned, and `verdict` the
    method's "win", "tie" or "loss". With `ratio`, logarithms are compared. Pictures of one prompt
    text are a cluster, and pairs of which one failed are left out. Raises WrongUse for an unknown
    baseline, or a `key` whose direction is not known and not given.
    """
    direction = better or better_of(key)
    known = list(records["method"].unique())
    check(baseline in known, "baseline", baseline, f"use one of {', '.join(known)}")
    pairs = [(name, baseline) for name in known if name != baseline]
    table = _decided(_differences(records, pairs, key, ratio), direction)
    return table.sort_values(CELL, kind="stable", ignore_index=True).drop(columns="against")


def standing(
    records: pd.DataFrame,
    method: str | Sequence[str],
    rivals: Sequence[str],
    measures: Sequence[str] = (),
) -> pd.DataFrame:
    """Pairs one method, or several, with each of the rivals, in each cell, by some `MEASURES`.

    Without `measures`, by all that judge pictures: all but the distance of latents. One row per
    measure, method, rival and cell, with the columns of `paired` and `against`, the rival's name.
    Holm's correction is over all methods, rivals and cells of a measure. A cell that lacks a method
    has no row for it. Raises WrongUse for a name that the records do not hold.
    """
    methods = [method] if isinstance(method, str) else list(method)
    known = list(records["method"].unique())
    for argument, names in (("method", methods), ("rivals", list(rivals))):
        missing = [name for name in names if name not in known]
        check(not missing, argument, missing, f"use some of {', '.join(known)}")
    pairs = [(one, rival) for one in methods for rival in rivals]
    return pd.concat([_by(records, pairs, measure) for measure in measures or PICTURES])


#: The measures that judge pictures.
PICTURES = [name for name in MEASURES if name != "latents"]


def _by(records: pd.DataFrame, pairs: Sequence[tuple[str, str]], measure: str) -> pd.DataFrame:
    """The pairs of methods compared by a measure, and corrected for each other."""
    check(measure in MEASURES, "measure", measure, f"use one of {', '.join(MEASURES)}")
    column, better, ratio = MEASURES[measure]
    table = _decided(_differences(records, pairs, column, ratio), better)
    table.insert(0, "measure", measure)
    return table


def _differences(
    records: pd.DataFrame, pairs: Sequence[tuple[str, str]], column: str, ratio: bool
) -> pd.DataFrame:
    """A row per pair of methods and cell that has both, without a verdict."""
    tables = []
    for cell, part in records.groupby(CELL):
        wide = part.pivot(index="index", columns="method", values=column).astype(float)
        tables.append((dict(zip(CELL, cell, strict=True)), np.log(wide) if ratio else wide))
    texts = None
    if "prompt" in records:
        texts = records.drop_duplicates("index").set_index("index")["prompt"]
    rows = []
    for method, rival in pairs:
        for cell, wide in tables:
            if method not in wide or rival not in wide:
                continue
            both = wide[[method, rival]].dropna()
            labels = None if texts is None else texts.loc[both.index].to_numpy()
            pair = metrics.paired_difference(both[method], both[rival], labels)
            rows.append({**cell, "method": method, "against": rival, **pair._asdict()})
    return pd.DataFrame(rows, columns=[*CELL, "method", "against", *metrics.Paired._fields])


def _decided(table: pd.DataFrame, better: Better) -> pd.DataFrame:
    """The table with `p_adjusted`, by Holm's correction over its rows, and `verdict`."""
    adjusted = metrics.holm(table["p_value"].astype(float))
    said = [
        metrics.verdict(row.difference, row.half, p_value, better)
        for row, p_value in zip(table.itertuples(), adjusted, strict=True)
    ]
    return table.assign(p_adjusted=adjusted, verdict=said)


class Family:
    """The comparisons of one record that are corrected together, whatever table prints them.

    `primary` is the measure that decides; all others are secondary. Each measure is corrected over
    all `comparisons` in all cells (Holm), and over all `further` ones. `records` are the pictures'.
    """

    def __init__(self, name: str, file: Path = FAMILIES) -> None:
        """Reads the family `name` of `file`. Raises WrongUse for one that it does not have."""
        families = yaml.safe_load(file.read_text())
        check(name in families, "name", name, f"use one of {', '.join(families)}")
        said: dict[str, Any] = families[name]
        self.name, self.primary = name, str(said["primary"])
        folders = [file.parent / folder for folder in said["records"]]
        self.records = pd.concat([read_records(folder) for folder in folders], ignore_index=True)
        self.groups = [
            [(method, rival) for rival, names in said.get(key, {}).items() for method in names]
            for key in ("comparisons", "further")
        ]
        self._tables: dict[str, pd.DataFrame] = {}

    def by(self, measure: str = "") -> pd.DataFrame:
        """Every comparison by a measure, by default the primary one: rows as `standing`'s."""
        measure = measure or self.primary
        if measure not in self._tables:
            tables = [_by(self.records, pairs, measure) for pairs in self.groups if pairs]
            self._tables[measure] = pd.concat(tables, ignore_index=True)
        return self._tables[measure]

    def standing(
        self, method: str | Sequence[str], rivals: Sequence[str], measures: Sequence[str] = ()
    ) -> pd.DataFrame:
        """The rows of `standing` for these methods and rivals, corrected over the whole family.

        Raises WrongUse for a pair that the family does not have.
        """
        methods = [method] if isinstance(method, str) else list(method)
        pairs, parts = [pair for group in self.groups for pair in group], []
        for measure in measures or PICTURES:
            table = self.by(measure)
            for pair in ((one, rival) for one in methods for rival in rivals):
                known = pair in pairs or pair[::-1] in pairs
                names = f"{' against '.join(pair)}, not in the family {self.name!r}"
                check(known, "method", names, "use contest.standing, or add it to the family")
                one, rival = pair if pair in pairs else pair[::-1]
                rows = table[(table["method"] == one) & (table["against"] == rival)]
                parts.append(rows if pair in pairs else _turned(rows))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def note(self) -> str:
        """What the tables of this family rest on, for the line below one."""
        sizes = [len(_differences(self.records, pairs, "index", False)) for pairs in self.groups]
        further = f" ({sizes[1]} further ones among themselves)" if sizes[1] else ""
        return (
            f"{sample_size(self.records)}. The primary measure is {self.primary}; any other is "
            f"secondary. Each is corrected over {sizes[0]} comparisons of this record{further}."
        )


def _turned(rows: pd.DataFrame) -> pd.DataFrame:
    """The same comparisons with the method and its rival exchanged."""
    turned = {"win": "loss", "tie": "tie", "loss": "win"}
    return rows.assign(
        method=rows["against"],
        against=rows["method"],
        difference=-rows["difference"],
        verdict=rows["verdict"].map(turned),
    )


def sample_size(records: pd.DataFrame) -> str:
    """How many pictures a cell of the records has, and of how many prompts, in words."""
    pictures = records["index"].nunique()
    texts = records["prompt"].nunique() if "prompt" in records else pictures
    return f"{pictures:,} pictures of {texts:,} prompts"


def best_against_best(
    records: pd.DataFrame, mine: Sequence[str], rivals: Sequence[str], over: str = "trailing"
) -> pd.DataFrame:
    """Pairs, in each cell, the nearest of `mine` with the nearest of `rivals` on the same prompts.

    Nearest is the least mean `distance` on the very records compared, so a group of several methods
    is flattered by the choice. One row per cell: `ours` and `peer` are the methods' names,
    `distance` and `its distance` their means, `over` and its column "over …" the first over the
    mean of that method, and the columns of `paired` are corrected for all cells. Raises WrongUse
    for records in which a cell has none of a group.
    """
    parts, about = [], []
    for _, cell in records.groupby(CELL):
        mean = cell.groupby("method")["distance"].mean()
        best = []
        for name, group in (("mine", mine), ("rivals", rivals)):
            known = mean[[method for method in group if method in mean]]
            check(len(known) > 0, name, list(group), f"use some of {', '.join(mean.index)}")
            best.append(known.idxmin())
        about.append((*best, *mean[best], mean[best[0]] / mean[over]))
        for method, label in zip(best, ("ours", "peer"), strict=True):
            parts.append(cell[cell["method"] == method].assign(method=label))
    pairs = paired(pd.concat(parts), "peer", "distance")
    columns = ["ours", "peer", "distance", "its distance", f"over {over}"]
    names = pd.DataFrame(about, columns=columns)
    return pd.concat([pairs[CELL], names, pairs.drop(columns=CELL)], axis=1)


def pooled(records: pd.DataFrame, method: str, rival: str, measure: str) -> metrics.Paired:
    """The difference of two methods by a measure, as one mean over all cells that have both.

    A prompt's pictures in different cells depend on each other: they are of one cluster.
    """
    column, _, ratio = MEASURES[measure]
    both = records[records["method"].isin([method, rival])]
    wide = both.pivot(index=[*CELL, "index"], columns="method", values=column).astype(float)
    wide = (np.log(wide) if ratio else wide).dropna()
    index = wide.index.get_level_values("index")
    texts = records.drop_duplicates("index").set_index("index")
    labels = texts["prompt"].loc[index] if "prompt" in texts else index
    return metrics.paired_difference(wide[method], wide[rival], np.asarray(labels))


def beside(records: pd.DataFrame, other: pd.DataFrame, name: str) -> pd.DataFrame:
    """The records with one more method in every cell: other records, whatever cell they are of.

    So a grid of a few steps can be compared with one of many, prompt by prompt. Raises WrongUse
    where the records hold a method of that name, or the others two pictures of a prompt.
    """
    check(name not in set(records["method"]), "name", name, "give one that the records lack")
    twice = bool(other["index"].duplicated().any())
    check(not twice, "other", "with several pictures of a prompt", "give those of one cell")
    parts = [records]
    for cell in records[CELL].drop_duplicates().itertuples(index=False):
        parts.append(other.assign(method=name, **dict(zip(CELL, cell, strict=True))))
    return pd.concat(parts, ignore_index=True)


def at_own_best(records: pd.DataFrame, measure: str = "all right") -> pd.DataFrame:
    """The records of each method at the guidance scale that is best for it, by a measure.

    A scale is chosen on one half of the prompts and serves the other, so that no method is
    flattered by the choice. `scale` is that scale, and `guidance_scale` says "own best" in every
    row. Solvers and step counts choose for themselves. Raises WrongUse for an unknown measure.
    """
    check(measure in MEASURES, "measure", measure, f"use one of {', '.join(MEASURES)}")
    column, better, _ = MEASURES[measure]
    sign = 1 if better == "higher" else -1
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
    said = [
        f"{100 * np.expm1(row.difference):+.0f} %: {row.verdict}"
        if MEASURES[row.measure].ratio
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


def count_verdicts(rows: pd.DataFrame) -> dict[str, int]:
    """The numbers of wins, ties and losses in rows with a column `verdict`, in this order."""
    counts = rows["verdict"].value_counts()
    return {name: int(counts.get(name, 0)) for name in ("win", "tie", "loss")}


def counted(pairs: pd.DataFrame) -> str:
    """How many wins, ties and losses a table with a column `verdict` has, in words."""
    words = {"win": "wins", "tie": "ties", "loss": "losses"}
    said = [f"{n} {name if n == 1 else words[name]}" for name, n in count_verdicts(pairs).items()]
    cells = f"{len(pairs)} cell" + ("" if len(pairs) == 1 else "s")
    return f"{', '.join(said[:-1])} and {said[-1]} in {cells}"
