"""The best of one group beside the best of another."""

import numpy as np
import pandas as pd
import pytest

from asddim_lib import metrics
from asddim_lib.experiment import contest

MEANS = {"trailing": 5.0, "karras": 4.0, "beta": 4.5, "near": 3.5, "far": 6.0}


def records(changes=None, steps=(5, 10), prompts=40):
    """Distances of five methods on the same prompts, in two cells."""
    draw, rows = np.random.default_rng(0), []
    for count in steps:
        base = draw.normal(0, 1, prompts)
        for method, mean in {**MEANS, **(changes or {}).get(count, {})}.items():
            noise = base + draw.normal(mean, 0.1, prompts)
            rows += [
                {
                    "solver": "ddim",
                    "guidance_scale": 3.0,
                    "steps": count,
                    "method": method,
                    "index": index,
                    "distance": value,
                }
                for index, value in enumerate(noise)
            ]
    return pd.DataFrame(rows).sample(frac=1, random_state=1)  # in any order


def test_each_cell_pairs_the_nearest_of_both_groups():
    found = contest.best_against_best(
        records({10: {"near": 5.5, "beta": 3.9}}), ["far", "near"], ["karras", "beta"]
    ).set_index("steps")
    assert found["ours"].to_dict() == {5: "near", 10: "near"}
    assert found["peer"].to_dict() == {5: "karras", 10: "beta"}
    assert found["verdict"].to_dict() == {5: "win", 10: "loss"}
    for count, row in found.iterrows():
        cell = records({10: {"near": 5.5, "beta": 3.9}})
        wide = cell[cell["steps"] == count].pivot(index="index", columns="method")["distance"]
        pair = metrics.paired_difference(wide[row["ours"]], wide[row["peer"]])
        assert row["difference"] == pytest.approx(pair.difference)
        assert row["half"] == pytest.approx(pair.half)
        assert row["over trailing"] == pytest.approx(
            wide[row["ours"]].mean() / wide["trailing"].mean()
        )
        assert row["its distance"] == pytest.approx(wide[row["peer"]].mean())
    np.testing.assert_array_equal(found["p_adjusted"], metrics.holm(found["p_value"]))


def test_a_method_that_a_cell_lacks_is_passed_over_and_an_empty_group_refused():
    whole = records()
    part = whole[(whole["method"] != "near") | (whole["steps"] == 5)]
    found = contest.best_against_best(part, ["far", "near"], ["karras"]).set_index("steps")
    assert found["ours"].to_dict() == {5: "near", 10: "far"}
    with pytest.raises(ValueError, match=r"rivals is \['dmn'\]; use some of beta, far, karras"):
        contest.best_against_best(whole, ["near"], ["dmn"])


def test_verdicts_are_counted_in_words():
    table = pd.DataFrame({"verdict": ["win", "tie", "win", "loss"]})
    assert contest.counted(table) == "2 wins, 1 tie and 1 loss in 4 cells"
    assert contest.counted(table[:1]) == "1 win, 0 ties and 0 losses in 1 cell"
