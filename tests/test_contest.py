"""The best of one group beside the best of another."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from asddim_lib import metrics
from asddim_lib.metrics.intervals import holm
from experiments import contest
from tests.refusals import refuses

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
    np.testing.assert_array_equal(found["p_adjusted"], holm(found["p_value"]))


def test_a_method_that_a_cell_lacks_is_passed_over_and_an_empty_group_refused():
    whole = records()
    part = whole[(whole["method"] != "near") | (whole["steps"] == 5)]
    found = contest.best_against_best(part, ["far", "near"], ["karras"]).set_index("steps")
    assert found["ours"].to_dict() == {5: "near", 10: "far"}
    with refuses("rivals"):
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
    for (_, against, steps), row in found.groupby(["measure", "against", "steps"]):
        cell = judged()[judged()["steps"] == steps]
        wide = cell.pivot(index="index", columns="method", values="distance")
        pair = metrics.paired_difference(wide["near"], wide[against])
        assert row["difference"].item() == pytest.approx(pair.difference)
        assert row["p_value"].item() == pytest.approx(pair.p_value)
    won, lost = "2\u00a0/\u00a00\u00a0/\u00a00", "0\u00a0/\u00a00\u00a0/\u00a02"
    expected = {"embedding": {"trailing": won, "karras": won}}
    expected["KID, real"] = expected["embedding"]
    assert contest.summed(found).to_dict() == expected
    others = contest.standing(judged(), "far", ["near"], measures)
    assert contest.summed(others).to_numpy().tolist() == [[lost, lost]]
    for _, part in found.groupby("measure"):  # all rivals and cells of a measure are one family
        np.testing.assert_array_equal(part["p_adjusted"], holm(part["p_value"]))


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
        with refuses(name):
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
    np.testing.assert_array_equal(found["p_adjusted"], holm(apart["p_value"]))
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
    with refuses("measure"):
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
    pairs = contest.paired(found, "fifty", "distance").set_index(["steps", "method"])
    assert pairs.loc[(5, "near"), "verdict"] == "loss"
    with refuses("name"):
        contest.beside(whole, many, "near")
    with refuses("other"):
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


# texts


def repeated():
    """Two methods on 200 pictures of 40 texts; the difference depends on the text alone."""
    draw = np.random.default_rng(0)
    change, base = draw.normal(0.15, 0.3, 40), draw.normal(5, 1, 200)
    where = {"solver": "ddim", "guidance_scale": 3.0, "steps": 5}
    about = {"index": range(200), "prompt": [f"text {i % 40}" for i in range(200)]}
    parts = [
        pd.DataFrame({**about, **where, "method": name, "distance": values})
        for name, values in (("base", base), ("near", base + np.tile(change, 5)))
    ]
    return pd.concat(parts), change


def test_pictures_of_one_text_count_as_one():
    rows, change = repeated()
    theirs = stats.ttest_1samp(change, 0)
    for table in (
        contest.paired(rows, "base", "distance"),
        contest.standing(rows, "near", ["base"], ["latents"]),
    ):
        assert table["p_value"].item() == pytest.approx(theirs.pvalue)
        low, high = theirs.confidence_interval(0.95)
        assert table["half"].item() == pytest.approx((high - low) / 2)
    plain = contest.paired(rows.drop(columns="prompt"), "base", "distance")
    assert plain["p_value"].item() < theirs.pvalue / 10
    assert contest.sample_size(rows) == "200 pictures of 40 prompts"
    pair = contest.pooled(pd.concat([rows, rows.assign(steps=8)]), "near", "base", "latents")
    assert pair.p_value == pytest.approx(theirs.pvalue)  # the same again is no more evidence


# families


@pytest.fixture
def family(tmp_path):
    """Two records of one family of three comparisons."""
    for name, steps in (("one", (5, 10)), ("two", (20,))):
        (tmp_path / name).mkdir()
        rows = records({20: {"near": 4.99}}, steps).assign(prompt="same text")
        rows["prompt"] = rows["index"].map("text {}".format)
        rows.to_parquet(tmp_path / name / "records.parquet")
    comparisons = {"trailing": ["near", "far"], "karras": ["near"]}
    said = {"records": ["one", "two"], "primary": "latents", "comparisons": comparisons}
    said["further"] = {"beta": ["near"]}
    (tmp_path / "families.yml").write_text(yaml.safe_dump({"both": said}))
    return contest.Family("both", tmp_path / "families.yml")


def test_every_table_of_a_family_has_the_same_verdict_of_the_same_pair(family):
    whole = family.by()
    for further, count in ((False, 3), (True, 1)):
        part = whole[(whole["against"] == "beta") == further]
        assert len(part) == 3 * count
        np.testing.assert_array_equal(part["p_adjusted"], holm(part["p_value"]))
    near = family.standing("near", ["trailing"], ["latents"])
    both = family.standing(["near", "far"], ["trailing"], ["latents"])
    pd.testing.assert_frame_equal(near, both[both["method"] == "near"])
    assert near["steps"].tolist() == [5, 10, 20]
    apart = contest.standing(family.records, "near", ["trailing"], ["latents"])
    np.testing.assert_array_equal(near["difference"], apart["difference"])
    assert (near["p_adjusted"] >= apart["p_adjusted"]).all()


def test_a_pair_turned_round_has_the_other_sign_and_the_other_verdict(family):
    near = family.standing("near", ["trailing"], ["latents"])
    turned = family.standing("trailing", ["near"], ["latents"])
    np.testing.assert_array_equal(turned["difference"], -near["difference"])
    np.testing.assert_array_equal(turned["p_adjusted"], near["p_adjusted"])
    said = {"win": "loss", "loss": "win", "tie": "tie"}
    assert turned["verdict"].tolist() == [said[one] for one in near["verdict"]]


def test_what_a_family_does_not_have_is_refused(family, tmp_path):
    with refuses("method"):
        family.standing("far", ["karras"], ["latents"])
    with refuses("name"):
        contest.Family("neither", tmp_path / "families.yml")


FAMILIES = Path(__file__).parents[1] / "results" / "families.yml"


@pytest.mark.parametrize("name", yaml.safe_load(FAMILIES.read_text()))
def test_a_family_of_the_book_names_what_its_records_hold(name):
    one = contest.Family(name, FAMILIES)
    known = set(one.records["method"])
    pairs = [pair for group in one.groups for pair in group]
    assert {name for pair in pairs for name in pair} <= known
    assert len({frozenset(pair) for pair in pairs}) == len(pairs), "a pair twice"
    assert contest.MEASURES[one.primary].column in one.records
    assert one.records["prompt"].notna().all()


def test_not_worse_by_more_than_a_margin_needs_the_whole_interval():
    """The mean may lie inside the margin while the interval does not."""
    draw = np.random.default_rng(3)
    right = draw.random(400) < 0.5
    rows = []
    for method, hits in (("fifty", right), ("same", right), ("few", right & (np.arange(400) > 20))):
        rows.append(
            pd.DataFrame(
                {
                    "solver": "ddim",
                    "guidance_scale": 3.0,
                    "steps": 5,
                    "method": method,
                    "index": range(400),
                    "right_all": hits.astype(float),
                    "kid_share": 1 + 0.1 * draw.normal(size=400),
                }
            )
        )
    table = pd.concat(rows)
    margins = {"all right": 0.02, "KID, real": 0.1}
    same = contest.not_worse(table, "same", "fifty", margins).set_index("measure")
    assert same["within"].tolist() == [True, True]
    assert same.loc["all right", "worse"] == 0
    pair = metrics.paired_difference(
        table[table["method"] == "same"]["kid_share"],
        table[table["method"] == "fifty"]["kid_share"],
    )
    assert same.loc["KID, real", "worse"] == pytest.approx(pair.difference + pair.half)
    few = contest.not_worse(table, "few", "fifty", {"all right": 0.04}).iloc[0]
    assert -few["difference"] < 0.04 < few["worse"]
    assert not few["within"]
