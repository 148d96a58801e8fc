"""The best of one group beside the best of another."""

import itertools

import numpy as np
import pandas as pd
import pytest

from asddim_lib import metrics
from experiments import contest, score

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


def judged():
    """Records with one measure of each kind: a ratio, and a share."""
    whole = records()
    return whole.assign(embedding=np.exp(whole["distance"]), kid_share=whole["distance"])


def test_a_method_stands_against_each_rival_by_each_measure():
    measures = ["embedding", "KID, real"]
    found = contest.standing(judged(), "near", ["trailing", "karras"], measures)
    assert len(found) == 2 * 2 * 2  # measures, rivals, cells
    assert set(found["verdict"]) == {"win"}
    for (measure, against, steps), row in found.groupby(["measure", "against", "steps"]):
        cell = judged()[judged()["steps"] == steps]
        wide = cell.pivot(index="index", columns="method", values="distance")
        test = "wilcoxon" if measure == "embedding" else "t"
        pair = metrics.paired_difference(wide["near"], wide[against], test)
        assert row["difference"].item() == pytest.approx(pair.difference)
        assert row["p_value"].item() == pytest.approx(pair.p_value)
    won, lost = "2\u00a0/\u00a00\u00a0/\u00a00", "0\u00a0/\u00a00\u00a0/\u00a02"
    expected = {"embedding": {"trailing": won, "karras": won}}
    expected["KID, real"] = expected["embedding"]
    assert contest.summed(found).to_dict() == expected
    others = contest.standing(judged(), "far", ["near"], measures)
    assert contest.summed(others).to_numpy().tolist() == [[lost, lost]]
    for _, part in found.groupby("measure"):  # all rivals and cells of a measure are one family
        np.testing.assert_array_equal(part["p_adjusted"], metrics.holm(part["p_value"]))


def test_a_rival_that_a_cell_lacks_has_no_row_there_and_an_unknown_name_is_refused():
    part = judged()[(judged()["method"] != "karras") | (judged()["steps"] == 5)]
    found = contest.standing(part, "near", ["karras", "trailing"], ["embedding"])
    assert list(zip(found["against"], found["steps"], strict=True)) == [
        ("karras", 5),
        ("trailing", 5),
        ("trailing", 10),
    ]
    table = contest.shown(found)
    assert list(table.index) == [("karras", 5), ("trailing", 5), ("trailing", 10)]
    assert list(table.index.names) == ["against", "steps"]
    change = 100 * np.expm1(found["difference"].iloc[0])
    assert table["embedding"].iloc[0] == f"{change:+.0f} %: win"
    for name in ("method", "rivals"):
        how = {"method": "near", "rivals": ["beta"], name: "dmn" if name == "method" else ["dmn"]}
        with pytest.raises(ValueError, match=rf"^{name} is \['dmn'\]; use some of .*trailing"):
            contest.standing(judged(), **how)


def test_several_methods_are_corrected_together():
    """Each alone would be corrected for its own cells only, and win too easily in their table."""
    found = contest.standing(judged(), ["near", "karras"], ["trailing"], ["embedding"])
    alone = [
        contest.standing(judged(), name, ["trailing"], ["embedding"]) for name in ("near", "karras")
    ]
    apart = pd.concat(alone, ignore_index=True)
    assert list(found["method"]) == list(apart["method"])
    pd.testing.assert_series_equal(found["p_value"], apart["p_value"])
    np.testing.assert_array_equal(found["p_adjusted"], metrics.holm(apart["p_value"]))
    assert (found["p_adjusted"] >= apart["p_adjusted"]).all()
    table = contest.shown(found, by=("method", "steps"))
    assert [name for name, _ in table.index] == ["near", "near", "karras", "karras"]


def test_each_method_stands_at_the_guidance_that_is_best_for_it():
    draw, rows = np.random.default_rng(0), []
    peak = {"near": 3.0, "beta": 5.0}  # the guidance at which each has the least embedding
    for method, scale, index in itertools.product(peak, (2.0, 3.0, 5.0), range(40)):
        value = 1 + abs(scale - peak[method]) + draw.uniform(0, 0.1)
        where = {"solver": "ddim", "steps": 5, "guidance_scale": scale, "index": index}
        rows.append({**where, "method": method, "embedding": value})
    found = contest.at_own_best(pd.DataFrame(rows), "embedding")
    assert found.groupby("method")["scale"].unique().map(list).to_dict() == {
        method: [scale] for method, scale in peak.items()
    }
    assert found.groupby("method")["index"].apply(sorted).map(list).tolist() == [[*range(40)]] * 2
    assert set(contest.standing(found, "near", ["beta"], ["embedding"])["verdict"]) == {"tie"}
    with pytest.raises(ValueError, match=r"^measure is fid; use one of embedding, "):
        contest.at_own_best(found, "fid")


def test_many_steps_stand_beside_few_of_each_count():
    whole = records()
    many = records({50: {"trailing": 3.0}}, steps=(50,)).query("method == 'trailing'")
    found = contest.beside(whole, many, "fifty")
    values = many.set_index("index")["distance"]
    for count in (5, 10):
        part = found[(found["method"] == "fifty") & (found["steps"] == count)]
        part = part.set_index("index")["distance"]
        pd.testing.assert_series_equal(part.sort_index(), values.sort_index())
    assert len(found) == len(whole) + 2 * len(many)
    pairs = score.paired(found, "fifty", "distance").set_index(["steps", "method"])
    assert pairs.loc[(5, "near"), "verdict"] == "loss"
    with pytest.raises(ValueError, match=r"^name is near; give one that the records lack"):
        contest.beside(whole, many, "near")
    with pytest.raises(ValueError, match=r"^other is with several pictures of a prompt; "):
        contest.beside(whole, whole, "fifty")


def test_a_choice_of_guidance_that_chance_makes_flatters_nobody():
    """All scales are alike, so what is chosen on one half must look average on the other."""
    draw = np.random.default_rng(1)
    index = np.arange(400)
    rows = [
        {"solver": "ddim", "steps": 5, "method": "near", "guidance_scale": scale, "index": i}
        for scale in np.arange(1.0, 21.0)
        for i in index
    ]
    records = pd.DataFrame(rows)
    records["embedding"] = draw.normal(5, 1, len(records))
    least = records.groupby("guidance_scale")["embedding"].mean().min()
    found = contest.at_own_best(records, "embedding")["embedding"].mean()
    assert least < 4.93 < found
