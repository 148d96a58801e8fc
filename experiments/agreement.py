"""How well a goal ranks grids as a judge does, by the records of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from asddim_lib.errors import check
from experiments.contest import better_of

#: A figure of each method from its records' values of one column (… × n).
Average = Callable[[np.ndarray], np.ndarray]


def mean(values: np.ndarray) -> np.ndarray:
    """The mean over pictures."""
    return values.mean(-1)


def geometric_mean(values: np.ndarray) -> np.ndarray:
    """The mean of logarithms, back from the logarithm: few far pictures weigh little in it."""
    return np.exp(np.log(values).mean(-1))


#: What a grid could be chosen by: a column of the records and how it is averaged.
CHOICES: dict[str, tuple[str, Average]] = {
    "latents": ("distance", mean),
    "latents, geometric": ("distance", geometric_mean),
    "embedding": ("embedding", mean),
    "embedding, geometric": ("embedding", geometric_mean),
    "CLIP score": ("clip", mean),
}
#: What a grid is judged by: KID from real pictures, KID from the model's own, and what is asked.
JUDGES = ("kid_share", "own_kid_share", "right_all")


def agreement(
    records: pd.DataFrame,
    goals: Mapping[str, tuple[str, Average]] = CHOICES,
    judges: Sequence[str] = JUDGES,
    resamples: int = 400,
    seed: int = 0,
) -> pd.DataFrame:
    """Spearman's rank correlation of each goal with each judge, over the methods of each setting.

    One row per guidance scale, step count, solver, goal and judge: `rho` is 1 where the goal ranks
    all methods as the judge does, and `low` to `high` is its 95 % interval, by percentiles over
    resamples of the prompts, the same for all methods. A correlation over few methods is rough in
    itself, which the interval does not show. A method with a picture that failed is left out.
    Raises WrongUse for fewer than 3 methods, and for records without a column.
    """
    columns = list(dict.fromkeys([*(name for name, _ in goals.values()), *judges]))
    for name in columns:
        check(name in records, "records", f"without {name}", "compare with a reference")
    rows = []
    for (scale, steps, solver), part in records.groupby(
        ["guidance_scale", "steps", "solver"], sort=False
    ):
        tables = _tables(part, columns)
        count = len(next(iter(tables.values())))
        check(count >= 3, "records", f"of {count} methods", "a ranking needs at least 3")
        where = {"guidance_scale": scale, "steps": steps, "solver": solver, "methods": count}
        for goal, (column, average) in goals.items():
            for judge in judges:
                pair = tables[column], tables[judge]
                sign = 1 if better_of(column) == better_of(judge) else -1
                found = _correlation(*pair, average, sign, resamples, seed)
                rows.append({**where, "goal": goal, "judge": judge, **found})
    return pd.DataFrame(rows)


def _tables(part: pd.DataFrame, columns: list[str]) -> dict[str, np.ndarray]:
    """Each column's values (methods × prompts), of methods without a picture that failed."""
    wide = {name: part.pivot(index="method", columns="index", values=name) for name in columns}
    sound = np.logical_and.reduce([table.notna().all(axis=1) for table in wide.values()])
    return {name: table[sound].to_numpy(np.float64) for name, table in wide.items()}


def _correlation(
    goal: np.ndarray, judge: np.ndarray, average: Average, sign: int, resamples: int, seed: int
) -> dict[str, float]:
    """Spearman's ρ over methods, and its interval over resamples of the prompts."""
    count = goal.shape[1]
    again = np.random.default_rng(seed).integers(0, count, (resamples, count))
    chosen = np.concatenate([np.arange(count)[None], again])  # the first is all prompts, once
    ranks = [
        stats.rankdata(figure, axis=0)
        for figure in (average(goal[:, chosen]), mean(judge[:, chosen]))
    ]
    one, other = (rank - rank.mean(0) for rank in ranks)
    with np.errstate(invalid="ignore"):  # NaN says that a figure is the same for all methods
        rho = sign * (one * other).sum(0) / np.sqrt((one**2).sum(0) * (other**2).sum(0))
    low, high = np.nanpercentile(rho[1:], [2.5, 97.5])
    return {"rho": float(rho[0]), "low": float(low), "high": float(high)}
