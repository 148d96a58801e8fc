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
from asddim_lib.metrics.intervals import Better, holm
from experiments.records import by_plan, read_records

#: What names a cell: the solver, the guidance scale and the number of steps.
CELL = ["solver", "guidance_scale", "steps"]
FAMILIES_FILE = Path("results/families.yml")


class Criterion(NamedTuple):
    """A column of the records, its better direction, and whether logarithms are compared."""

    column: str
    better: Better
    ratio: bool = False


MEASURES = {
    "embedding": Criterion("embedding", "lower", ratio=True),
    "looks": Criterion("looks", "lower", ratio=True),
    "KID, real": Criterion("kid_share", "lower"),
    "KID, own fine": Criterion("own_kid_share", "lower"),
    "all right": Criterion("right_all", "higher"),
    "CLIP score": Criterion("clip", "higher"),
    "spread": Criterion("spread", "higher"),
    "latents": Criterion("distance", "lower"),
}
#: The measures that judge pictures one by one.
PICTURES = [name for name in MEASURES if name not in ("latents", "spread")]


def better_of(column: str) -> Better:
    """The direction in which a column of the records improves. Raises WrongUse for another."""
    known: dict[str, Better] = {one.column: one.better for one in MEASURES.values()}
    known["seconds"] = "lower"
    remedy = f"use one of {', '.join(known)}, or say which direction is better"
    check(column in known or column.startswith("right_"), "key", column, remedy)
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
    criterion = Criterion(key, better or better_of(key), ratio)
    _check_methods(records, baseline=[baseline])
    pairs = [(name, baseline) for name in records["method"].unique() if name != baseline]
    table = _compared(records, pairs, criterion).drop(columns="against")
    return table.sort_values(CELL, kind="stable", ignore_index=True)


def standing(
    records: pd.DataFrame,
    method: str | Sequence[str],
    rivals: Sequence[str],
    measures: Sequence[str] = (),
) -> pd.DataFrame:
    """Compares one method, or several, with each rival in each cell, by some `MEASURES`.

    By default by all `PICTURES`. One row per measure, method, rival and cell that has both, with
    the columns of `paired`, and `against`, the rival's name. Holm's correction is over all rows of
    a measure. Raises WrongUse for a name that the records do not have.
    """
    methods = _listed(method)
    _check_methods(records, method=methods, rivals=rivals)
    pairs = [(one, rival) for one in methods for rival in rivals]
    return pd.concat([_by(records, pairs, measure) for measure in measures or PICTURES])


def _listed(method: str | Sequence[str]) -> list[str]:
    return [method] if isinstance(method, str) else list(method)


def _check_methods(records: pd.DataFrame, **arguments: Sequence[str]) -> None:
    known = list(records["method"].unique())
    for argument, names in arguments.items():
        missing = ", ".join(name for name in names if name not in known)
        check(not missing, argument, missing, f"use some of {', '.join(known)}")


def _measure(name: str) -> Criterion:
    check(name in MEASURES, "measure", name, f"use one of {', '.join(MEASURES)}")
    return MEASURES[name]


def _by(records: pd.DataFrame, pairs: Sequence[tuple[str, str]], measure: str) -> pd.DataFrame:
    table = _compared(records, pairs, _measure(measure))
    table.insert(0, "measure", measure)
    return table


def _compared(
    records: pd.DataFrame, pairs: Sequence[tuple[str, str]], criterion: Criterion
) -> pd.DataFrame:
    """A row per pair of methods and cell that has both, corrected over all rows (Holm)."""
    tables = [(cell, _wide(part, criterion)) for cell, part in records.groupby(CELL)]
    texts = _texts(records)
    rows = []
    for method, rival in pairs:
        for cell, wide in tables:
            if method in wide and rival in wide:
                both = wide[[method, rival]].dropna()
                labels = texts.loc[both.index].to_numpy()
                pair = metrics.paired_difference(both[method], both[rival], labels)
                rows.append((*cell, method, rival, *pair))
    columns = [*CELL, "method", "against", *metrics.Paired._fields]
    table = pd.DataFrame(rows, columns=columns)
    adjusted = holm(table["p_value"].astype(float))
    verdicts = [
        metrics.verdict(row.difference, row.half, p_value, criterion.better)
        for row, p_value in zip(table.itertuples(), adjusted, strict=True)
    ]
    return table.assign(p_adjusted=adjusted, verdict=verdicts)


def _wide(records: pd.DataFrame, criterion: Criterion, index: Any = "index") -> pd.DataFrame:
    """The values that are compared: a row per picture, a column per method."""
    wide = records.pivot(index=index, columns="method", values=criterion.column).astype(float)
    return np.log(wide) if criterion.ratio else wide


def _texts(records: pd.DataFrame) -> pd.Series:
    """The cluster of each picture, by its index: the prompt's text, if the records have it."""
    first = records.drop_duplicates("index").set_index("index", drop=False)
    return first["prompt" if "prompt" in first else "index"]


class Family:
    """The comparisons of one record that are corrected together, whatever table prints them.

    `primary` is the measure that decides; all others are secondary. Each measure is corrected over
    all `comparisons` in all cells (Holm), and over all `further` ones. `records` are the pictures'.
    """

    def __init__(self, name: str, file: Path = FAMILIES_FILE) -> None:
        """Reads the family `name` of `file`. Raises WrongUse for one that it does not have."""
        families = yaml.safe_load(file.read_text())
        check(name in families, "name", name, f"use one of {', '.join(families)}")
        family: dict[str, Any] = families[name]
        self.name, self.primary = name, str(family["primary"])
        folders = [file.parent / folder for folder in family["records"]]
        parts = [by_plan(read_records(folder)) for folder in folders]
        self.records = pd.concat(parts, ignore_index=True)
        self.groups = [
            [(method, rival) for rival, names in family.get(key, {}).items() for method in names]
            for key in ("comparisons", "further")
        ]
        self._tables: dict[str, list[pd.DataFrame]] = {}

    def by(self, measure: str = "") -> pd.DataFrame:
        """Every comparison by a measure, by default the primary one: rows as `standing`'s."""
        return pd.concat(self._corrected(measure or self.primary), ignore_index=True)

    def _corrected(self, measure: str) -> list[pd.DataFrame]:
        """A table for each group of comparisons that are corrected together."""
        if measure not in self._tables:
            self._tables[measure] = [_by(self.records, one, measure) for one in self.groups if one]
        return self._tables[measure]

    def standing(
        self, method: str | Sequence[str], rivals: Sequence[str], measures: Sequence[str] = ()
    ) -> pd.DataFrame:
        """The rows of `standing` for these methods and rivals, corrected over the whole family.

        Raises WrongUse for a pair that the family does not have.
        """
        pairs, parts = [pair for group in self.groups for pair in group], []
        for measure in measures or PICTURES:
            table = self.by(measure)
            for pair in [(one, rival) for one in _listed(method) for rival in rivals]:
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
        first, *others = map(len, self._corrected(self.primary))
        further = f" ({others[0]} further ones among themselves)" if others else ""
        return (
            f"{sample_size(self.records)}. The primary measure is {self.primary}; any other is "
            f"secondary. Each is corrected over {first} comparisons of this record{further}."
        )


def _turned(rows: pd.DataFrame) -> pd.DataFrame:
    """The same comparisons with the method and its rival exchanged."""
    return rows.assign(
        method=rows["against"],
        against=rows["method"],
        difference=-rows["difference"],
        verdict=rows["verdict"].map({"win": "loss", "tie": "tie", "loss": "win"}),
    )


def sample_size(records: pd.DataFrame) -> str:
    """How many pictures a cell of the records has, and of how many prompts, in words."""
    return f"{records['index'].nunique():,} pictures of {_texts(records).nunique():,} prompts"


def best_against_best(
    records: pd.DataFrame, mine: Sequence[str], rivals: Sequence[str], over: str = "trailing"
) -> pd.DataFrame:
    """Compares, in each cell, the nearest of `mine` with the nearest of `rivals`.

    Nearest is the least mean `distance` on the very records compared, so a group of several methods
    is flattered by the choice. One row per cell: `ours` and `peer` are the methods' names,
    `distance` and `its distance` their means, `over …` the first over the mean of the method
    `over`, and the columns of `paired` are corrected over all cells. Raises WrongUse for records in
    which a cell has none of a group.
    """
    parts, names = [], []
    for _, cell in records.groupby(CELL):
        mean = cell.groupby("method")["distance"].mean()
        best = []
        for argument, group in (("mine", mine), ("rivals", rivals)):
            known = mean[[method for method in group if method in mean]]
            check(len(known) > 0, argument, list(group), f"use some of {', '.join(mean.index)}")
            best.append(known.idxmin())
        names.append((*best, *mean[best], mean[best[0]] / mean[over]))
        for method, label in zip(best, ("ours", "peer"), strict=True):
            parts.append(cell[cell["method"] == method].assign(method=label))
    pairs = paired(pd.concat(parts), "peer", "distance")
    about = pd.DataFrame(
        names, columns=["ours", "peer", "distance", "its distance", f"over {over}"]
    )
    return pd.concat([pairs[CELL], about, pairs.drop(columns=CELL)], axis=1)


def pooled(records: pd.DataFrame, method: str, rival: str, measure: str) -> metrics.Paired:
    """The difference of two methods by a measure, as one mean over all cells that have both.

    A prompt's pictures in different cells depend on each other: they are of one cluster.
    """
    both = records[records["method"].isin([method, rival])]
    wide = _wide(both, _measure(measure), [*CELL, "index"]).dropna()
    labels = _texts(records).loc[wide.index.get_level_values("index")]
    return metrics.paired_difference(wide[method], wide[rival], labels.to_numpy())


def beside(records: pd.DataFrame, other: pd.DataFrame, name: str) -> pd.DataFrame:
    """The records with one more method in every cell: other records, whatever cell they are of.

    So a grid of a few steps can be compared with one of many, prompt by prompt. Raises WrongUse
    where the records have a method of that name, or the others two pictures of a prompt.
    """
    check(name not in set(records["method"]), "name", name, "give one that the records lack")
    twice = bool(other["index"].duplicated().any())
    check(not twice, "other", "with several pictures of a prompt", "give those of one cell")
    parts = [records]
    for cell in records[CELL].drop_duplicates().itertuples(index=False):
        parts.append(other.assign(method=name, **dict(zip(CELL, cell, strict=True))))
    return pd.concat(parts, ignore_index=True)


def not_worse(
    records: pd.DataFrame, method: str, rival: str, margins: dict[str, float]
) -> pd.DataFrame:
    """Whether a method is worse than another by less than a margin, fixed before, in each cell.

    `margins` are by names of `MEASURES`, in their units. A row per measure and cell has the columns
    of `paired`; `worse` is the end of the 95 % interval at which the method is worst, counted as
    positive where it is worse, and `within` whether that is below the margin.
    """
    _check_methods(records, method=[method], rival=[rival])
    parts = []
    for measure, margin in margins.items():
        table = _by(records, [(method, rival)], measure)
        sign = 1 if _measure(measure).better == "lower" else -1
        worse = sign * table["difference"] + table["half"]
        parts.append(table.assign(margin=margin, worse=worse, within=worse < margin))
    return pd.concat(parts, ignore_index=True)


def at_own_best(records: pd.DataFrame, measure: str = "all right") -> pd.DataFrame:
    """The records of each method at the guidance scale that is best for it, by a measure.

    A scale is chosen on one half of the prompts and serves the other, so that no method is
    flattered by the choice. `scale` is that scale, and `guidance_scale` says "own best" in every
    row. Solvers and step counts choose for themselves. Raises WrongUse for an unknown measure.
    """
    column, better, _ = _measure(measure)
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
    entries = [
        f"{100 * np.expm1(row.difference):+.0f} %: {row.verdict}"
        if MEASURES[row.measure].ratio
        else f"{_brief(row.difference, '+')} ± {_brief(row.half)}: {row.verdict}"
        for row in standings.itertuples()
    ]
    wide = standings.assign(entry=entries).pivot(index=list(by), columns="measure", values="entry")
    order = list(dict.fromkeys(standings[by[0]]))
    return wide[[measure for measure in MEASURES if measure in wide]].reindex(order, level=by[0])


def _brief(value: float, sign: str = "") -> str:
    return f"{value:{sign}.0f}" if abs(value) >= 10 else f"{value:{sign}.2g}"


def summed(standings: pd.DataFrame) -> pd.DataFrame:
    """How many wins, ties and losses `standing` has, per rival and measure, such as "3 / 1 / 0".

    The spaces do not break: a narrow screen would make three lines of one entry.
    """
    counts = standings.groupby(["against", "measure"])["verdict"].value_counts()
    wide = counts.unstack(fill_value=0).reindex(columns=["win", "tie", "loss"], fill_value=0)
    entries = wide.astype(str).agg("\u00a0/\u00a0".join, axis=1).unstack()
    measures = [measure for measure in MEASURES if measure in entries]
    return entries.loc[list(dict.fromkeys(standings["against"])), measures]


def count_verdicts(rows: pd.DataFrame) -> dict[str, int]:
    """The numbers of wins, ties and losses in rows with a column `verdict`, in this order."""
    return {name: int((rows["verdict"] == name).sum()) for name in ("win", "tie", "loss")}


def counted(pairs: pd.DataFrame) -> str:
    """How many wins, ties and losses a table with a column `verdict` has, in words."""
    nouns = {"win": "wins", "tie": "ties", "loss": "losses"}
    wins, ties, losses = (
        f"{n} {name if n == 1 else nouns[name]}" for name, n in count_verdicts(pairs).items()
    )
    return f"{wins}, {ties} and {losses} in {len(pairs)} cell{'' if len(pairs) == 1 else 's'}"
