"""How often the rule of `tune` replaces a sampler, simulated: wrongly, and where one is better.

python -m tests.simulate_tune [RUNS]

Prints a table. Where nothing is better than the current sampler, `replaced` is the rate of errors;
where the candidate is better than all, it is the power. Both have a 95 % interval. `before` is the
rule of version 0.2, which tested its candidate against the baseline of the least sample mean alone.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from asddim_lib.metrics.intervals import ALPHA, holm
from asddim_lib.tuning.verify import CANDIDATE, CURRENT
from experiments.intervals import proportion_interval

Noise = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
RUNS = 2000
#: Prompts of a verdict.
COUNTS = (24, 64)


def normal(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(size)


def heavy(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Student's t of 3 degrees of freedom, of variance 1."""
    return rng.standard_t(3, size) / 3**0.5


def skewed(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Some pictures come out as another scene: a gamma distribution of skewness 1, variance 1."""
    return (rng.gamma(4.0, 1.0, size) - 4) / 2


@dataclass(frozen=True)
class Scenario:
    """Mean loss and noise (standard deviation) of each sampler, beside what prompts share.

    `copies` are near copies of the candidate: worse by `mean`, with noise of their own alone.
    `better` says whether the candidate is better than all.
    """

    name: str
    samplers: dict[str, tuple[float, float]]
    copies: tuple[tuple[str, float, float], ...] = ()
    noise: Noise = normal
    better: bool = False

    def losses(self, rng: np.random.Generator, runs: int, count: int) -> dict[str, np.ndarray]:
        """Each sampler's losses (runs × prompts)."""
        size = (runs, count)
        shared = rng.standard_normal(size)
        found = {
            name: mean + shared + spread * self.noise(rng, size)
            for name, (mean, spread) in self.samplers.items()
        }
        for name, mean, spread in self.copies:
            found[name] = found[CANDIDATE] + mean + spread * self.noise(rng, size)
        return found


def level(sd: float) -> tuple[float, float]:
    """A sampler as good as the rest, whose pairs have a standard deviation of about `sd`."""
    return 0.0, sd / 2**0.5


FOUR = {name: level(0.4) for name in ("a", "b", "c", "d")}
COPY = (("parent", 0.02, 0.02),)
EQUAL = {CURRENT: level(0.4), **FOUR, CANDIDATE: level(0.4)}
NOBODY = [
    Scenario("all equal", EQUAL),
    Scenario("heavy tails", EQUAL, noise=heavy),
    Scenario("skewed", EQUAL, noise=skewed),
    Scenario("copy", {CURRENT: (0.0, 0.6), CANDIDATE: (0.0, 0.0)}, COPY),
    Scenario("copy, heavy", {CURRENT: (0.0, 0.6), CANDIDATE: (0.0, 0.0)}, COPY, heavy),
    Scenario("copy, skewed", {CURRENT: (0.0, 0.6), CANDIDATE: (0.0, 0.0)}, COPY, skewed),
    Scenario("copy, more", {CURRENT: (0.0, 0.6), **FOUR, CANDIDATE: (0.0, 0.0)}, COPY),
    Scenario(
        "one as good", {CURRENT: level(0.4), "a": level(0.4), "b": (9, 0.3), CANDIDATE: (9, 0.3)}
    ),
    Scenario(
        "two as good", {CURRENT: level(0.4), "a": level(0.4), "b": (9, 0.3), CANDIDATE: level(0.4)}
    ),
    Scenario("only it", {CURRENT: level(0.4), "a": (9, 0.3), "b": (9, 0.3), CANDIDATE: level(0.4)}),
    Scenario(
        "only it, skewed", {CURRENT: level(0.4), "a": (9, 0.3), CANDIDATE: level(0.4)}, noise=skewed
    ),
    Scenario(
        "unequal noise", {CURRENT: (0, 0.1), "a": (0, 0.4), "b": (0, 0.9), CANDIDATE: (0, 0.1)}
    ),
    Scenario(
        "noisy current", {CURRENT: (0, 0.9), "a": (0, 0.1), "b": (0, 0.4), CANDIDATE: (0, 0.1)}
    ),
    Scenario(
        "noisy candidate, skewed",
        {CURRENT: (0, 0.05), "a": (9, 0.1), CANDIDATE: (0, 0.9)},
        noise=skewed,
    ),
    Scenario(
        "noisy current, skewed",
        {CURRENT: (0, 0.9), "a": (9, 0.1), CANDIDATE: (0, 0.05)},
        noise=skewed,
    ),
]


def better(by: float, sd: float = 0.4) -> dict[str, tuple[float, float]]:
    """A candidate that is better than four baselines and the current sampler."""
    return {CURRENT: level(sd), **{n: level(sd) for n in FOUR}, CANDIDATE: (-by, sd / 2**0.5)}


BETTER = [
    *(Scenario(f"better by {by:g}", better(by), better=True) for by in (0.15, 0.25, 0.4)),
    *(
        Scenario(f"better by {by:g}, heavy", better(by), noise=heavy, better=True)
        for by in (0.15, 0.25, 0.4)
    ),
    *(
        Scenario(f"better by {by:g}, skewed", better(by), noise=skewed, better=True)
        for by in (0.15, 0.25, 0.4)
    ),
    Scenario(
        "better by 0.25 than one",
        {CURRENT: level(0.4), "a": (0.5, 0.3), "b": (0.6, 0.3), CANDIDATE: (-0.25, 0.28)},
        better=True,
    ),
    Scenario(
        "better, unequal noise",
        {CURRENT: (0, 0.1), "a": (0, 0.3), "b": (0, 0.6), CANDIDATE: (-0.4, 0.1)},
        better=True,
    ),
    Scenario("better, copy", {CURRENT: (0, 0.6), CANDIDATE: (-0.4, 0.0)}, COPY, better=True),
]


def replaced(losses: dict[str, np.ndarray]) -> np.ndarray:
    """Whether `tune` replaces the current sampler, for losses (runs × n): as `decide`, at once."""
    count = losses[CURRENT].shape[1]
    limit = stats.t.ppf(1 - ALPHA / 2, count - 1) / count**0.5

    def wins(first: str, second: str) -> np.ndarray:
        change = losses[first] - losses[second]
        return change.mean(1) < -limit * change.std(1, ddof=1)

    baselines = [name for name in losses if name != CANDIDATE]
    hits = [
        np.logical_and.reduce([wins(name, other) for other in baselines if other != name])
        for name in losses
        if name != CURRENT
    ]
    return np.logical_or.reduce(hits)


def replaced_before(losses: dict[str, np.ndarray]) -> np.ndarray:
    """The same by the rule before: a win over the baseline of the least sample mean.

    A win is a t interval without 0 and a p of Wilcoxon's test that stays below 5 % after Holm's
    correction for all baselines.
    """
    rest = [values for name, values in losses.items() if name != CANDIDATE]
    change = losses[CANDIDATE] - np.stack(rest)  # baselines × runs × n
    count = change.shape[-1]
    half = stats.t.ppf(1 - ALPHA / 2, count - 1) * change.std(-1, ddof=1) / count**0.5
    adjusted = np.stack([holm(p) for p in wilcoxon(change).T], 1)
    won = (change.mean(-1) < -half) & (adjusted < ALPHA)
    best = np.stack([values.mean(-1) for values in rest]).argmin(0)
    return won[best, np.arange(len(best))]


def wilcoxon(change: np.ndarray) -> np.ndarray:
    """The exact two-sided p of Wilcoxon's signed-rank test along the last axis, without ties."""
    count = change.shape[-1]
    ranks = np.abs(change).argsort(-1).argsort(-1) + 1
    ways = np.ones(1)  # of each sum of positive ranks
    for rank in range(1, count + 1):
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    above = np.cumsum(ways[::-1])[::-1] / 2.0**count
    total = (ranks * (change > 0)).sum(-1)
    total = np.maximum(total, count * (count + 1) // 2 - total)
    return np.minimum(2 * above[total], 1)


def rate(
    scenario: Scenario,
    count: int,
    runs: int,
    rule: Callable[[dict[str, np.ndarray]], np.ndarray] = replaced,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The share of runs in which a rule replaces the current sampler, and its 95 % interval."""
    hits = int(rule(scenario.losses(np.random.default_rng([seed, count]), runs, count)).sum())
    return (hits / runs, *proportion_interval(hits, runs))


def main(runs: int = RUNS) -> None:
    print(f"{'scenario':28s}  n   replaced   95 % interval     before   ({runs} runs)")
    worst = {}
    for title, scenarios in (("nothing is better", NOBODY), ("the candidate is better", BETTER)):
        print(f"-- {title}")
        for scenario in scenarios:
            for count in COUNTS:
                now, low, high = rate(scenario, count, runs)
                before, *_ = rate(scenario, count, runs, replaced_before)
                interval = f"{low:6.1%} to {high:6.1%}"
                row = f"{scenario.name:28s} {count:2d}   {now:7.1%}   {interval}   {before:7.1%}"
                print(row, flush=True)
                if scenarios is NOBODY:
                    worst[row] = now, before
    now, before = (max(rates[place] for rates in worst.values()) for place in (0, 1))
    print(f"largest rate of errors: {now:.1%}; by the rule before, {before:.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
