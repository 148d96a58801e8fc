"""Which sampler `tune` returns: the user's own, unless another wins over it and every baseline.

Samplers draw the same prompts from the same noise. One wins over another if the 95 % t interval of
the mean paired difference lies below 0. To replace the current sampler, one must win over it and
over every other baseline. Such an intersection of tests needs no correction: it falls in error at
most as often as the test against the one baseline that is truly as good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.metrics.intervals import Verdict, paired_difference, prompts_needed, verdict

#: The pipeline as the user has it.
CURRENT = "current"
#: What `tune` proposes.
CANDIDATE = "candidate"
#: Distinct prompts that a verdict needs: a t interval of fewer says little.
LEAST = 7


@dataclass(frozen=True)
class Comparison:
    """One sampler against another: the mean paired difference of their losses, and the verdict.

    `loss` is the second one's mean; `difference` is the first's less the second's, ± `half`. All
    are of logarithms where the goal's losses are `relative`. `needed` is how many prompts would
    show a difference as large as this one in four of five tries; None where there is none.
    """

    first: str
    second: str
    loss: float
    difference: float
    half: float
    p_value: float
    verdict: Verdict
    needed: int | None


@dataclass(frozen=True)
class Decision:
    """Which sampler is `returned`, and why.

    `comparisons` are those of the candidate with every baseline, of every named baseline with the
    current sampler, and of a baseline that is returned with the others. `objections` are losses
    that a second encoder sees, for which a sampler that won was not returned.
    """

    returned: str
    comparisons: list[Comparison]
    objections: list[Comparison] = field(default_factory=list)

    def of(self, first: str) -> list[Comparison]:
        """One sampler's comparisons."""
        return [one for one in self.comparisons if one.first == first]

    @property
    def needed(self) -> int | None:
        """How many prompts of a verdict would decide; None where it is decided.

        A sampler is worth more prompts if it seems better than every other that it does not win
        over: the candidate, or without one the best of the named grids.
        """
        pairs = self.of(CANDIDATE) or sorted(self.comparisons, key=lambda one: one.difference)[:1]
        ties = [one for one in pairs if one.verdict != "win"]
        counts = [one.needed for one in ties if one.difference < 0 and one.needed is not None]
        decided = self.returned != CURRENT or bool(self.objections)
        return None if decided or not ties or len(counts) < len(ties) else max(counts)


def compared(first: str, second: str, losses: Mapping[str, Tensor]) -> Comparison:
    """One sampler's losses (n) against another's."""
    change = np.asarray(losses[first] - losses[second], np.float64)
    pair = paired_difference(losses[first], losses[second])
    loss, needed = float(losses[second].mean()), prompts_needed(change)
    return Comparison(first, second, loss, *pair, verdict(*pair, "lower"), needed)


def decide(losses: Mapping[str, Tensor], checked: Mapping[str, Tensor] | None = None) -> Decision:
    """Which sampler replaces the current one, if any, by the losses (n) of each.

    The names are CURRENT, baselines, and mostly CANDIDATE, whose choice saw none of these prompts.
    The candidate comes first: a named baseline replaces the current sampler only where the
    candidate does not. `checked` are losses by a second encoder. Whoever loses there to the current
    sampler or a baseline is not returned. Raises WrongUse without a current sampler.
    """
    check(CURRENT in losses, "losses", ", ".join(losses), f"give those of {CURRENT}")
    baselines = [name for name in losses if name != CANDIDATE]
    challengers = [name for name in (CANDIDATE, *baselines) if name in losses and name != CURRENT]
    comparisons, objections, returned = [], [], CURRENT
    for name in challengers:
        others = [other for other in baselines if other != name]
        pairs = [compared(name, other, losses) for other in others]
        won = returned == CURRENT and all(pair.verdict == "win" for pair in pairs)
        if won and checked is not None:
            seen = [compared(name, other, checked) for other in others]
            objected = [pair for pair in seen if pair.verdict == "loss"]
            objections += objected
            won = not objected
        returned = name if won else returned
        whole = won or name == CANDIDATE
        comparisons += pairs if whole else [p for p in pairs if p.second == CURRENT]
    return Decision(returned, comparisons, objections)


def by_text(losses: Tensor, texts: Sequence[str]) -> Tensor:
    """The mean loss of each distinct text, in the order of the first: pictures of one text depend.

    Losses are (n), one for each of `texts`; the result has one for each text.
    """
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    return losses.new_tensor([float(losses[rows].mean()) for rows in places.values()])
