"""Rank correlations of goals with judges: exact where ranks are known, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.agreement import CHOICES, agreement, geometric_mean, mean
from tests.refusals import refuses

WHERE = {"guidance_scale": 3.0, "steps": 5, "solver": "ddim"}


def records(**columns):
    """Records of as many methods as a column has rows (methods × prompts)."""
    methods, prompts = next(iter(columns.values())).shape
    frame = pd.DataFrame(
        {
            **WHERE,
            "method": np.repeat([f"m{k}" for k in range(methods)], prompts),
            "index": np.tile(np.arange(prompts), methods),
        }
    )
    return frame.assign(**{name: values.ravel() for name, values in columns.items()})


def levels(*means, spread=0.0, prompts=20):
    noise = np.random.default_rng(0).normal(size=prompts)
    return np.array(means)[:, None] + spread * noise


def test_ranks_that_agree_have_1_and_ranks_that_are_turned_round_have_minus_1():
    goals = {"near": ("distance", mean), "score": ("clip", mean)}
    table = agreement(
        records(
            distance=levels(0.1, 0.2, 0.3, 0.4),
            clip=levels(0.6, 0.7, 0.8, 0.9),
            kid_share=levels(1.0, 2.0, 3.0, 4.0),
            right_all=levels(0.9, 0.8, 0.7, 0.6),
        ),
        goals,
        ["kid_share", "right_all"],
    ).set_index(["goal", "judge"])
    assert table.loc[("near", "kid_share"), "rho"] == pytest.approx(1)
    assert table.loc[("near", "right_all"), "rho"] == pytest.approx(1)
    assert table.loc[("score", "kid_share"), "rho"] == pytest.approx(-1)
    assert table.loc[("score", "right_all"), "rho"] == pytest.approx(-1)
    assert (table["low"] == table["high"]).all(), "all prompts are alike, so that no draw differs"
    assert (table["methods"] == 4).all()


def test_the_interval_shows_how_much_the_prompts_matter():
    quiet, loud = (
        agreement(
            records(
                distance=levels(1.0, 1.1, 1.2, 1.3) + wide * other(),
                kid_share=levels(1.0, 2.0, 3.0, 4.0),
            ),
            {"near": ("distance", mean)},
            ["kid_share"],
        ).iloc[0]
        for wide in (0.01, 0.5)
    )
    assert quiet["high"] - quiet["low"] < loud["high"] - loud["low"]
    assert loud["low"] <= loud["rho"] <= loud["high"]


def other():
    return np.random.default_rng(1).normal(size=(4, 20)) * 0.5


def test_one_far_picture_turns_the_mean_and_not_the_geometric_mean():
    distance = levels(0.1, 0.2, 0.3)
    distance[0, 3] = 30.0
    found = agreement(
        records(distance=distance, kid_share=levels(1.0, 2.0, 3.0)),
        {"mean": ("distance", mean), "geometric": ("distance", geometric_mean)},
        ["kid_share"],
    ).set_index("goal")["rho"]
    assert found["geometric"] == pytest.approx(1)
    assert found["mean"] < 0


def test_a_method_with_a_failed_picture_is_left_out():
    distance = levels(0.1, 0.2, 0.3, 9.0)
    distance[3, 0] = np.nan
    table = agreement(
        records(distance=distance, kid_share=levels(1.0, 2.0, 3.0, 0.0)),
        {"near": ("distance", mean)},
        ["kid_share"],
    )
    assert table.loc[0, "methods"] == 3
    assert table.loc[0, "rho"] == pytest.approx(1)


def test_too_few_methods_and_records_without_a_column_are_refused():
    two = records(distance=levels(0.1, 0.2), kid_share=levels(1.0, 2.0))
    with refuses("records"):
        agreement(two, {"near": ("distance", mean)}, ["kid_share"])
    with refuses("records"):
        agreement(two, CHOICES, ["kid_share"])


def test_the_correlation_is_scipy_s_also_with_ties():
    rng = np.random.default_rng(2)
    distance = np.round(rng.uniform(1, 3, size=(6, 8)))
    table = records(distance=distance, right_all=np.round(rng.uniform(size=(6, 8))))
    found = agreement(table, {"near": ("distance", mean)}, ["right_all"]).iloc[0]
    pair = (table.groupby("method")[name].mean() for name in ("distance", "right_all"))
    assert found["rho"] == pytest.approx(-stats.spearmanr(*pair).statistic)
