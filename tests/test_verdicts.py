"""Verdicts of a table of pairs, and what summaries say of shares and distances."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from asddim_lib import metrics
from asddim_lib.metrics.intervals import holm
from asddim_lib.models.prompts import load_prompts
from experiments import contest, fine
from experiments import score as scoring
from experiments.intervals import proportion_interval
from tests.refusals import refuses


def records(changes, key="distance", seed=3):
    """Records of 60 prompts: a baseline, and methods that change its `key` by such a mean."""
    draw = np.random.default_rng(seed)
    base = draw.normal(5, 2, 60)
    values = {"base": base} | {
        name: base + draw.normal(mean, 0.2, 60) for name, mean in changes.items()
    }
    rows = [
        {
            "guidance_scale": 3.0,
            "steps": 5,
            "solver": "ddim",
            "method": name,
            "index": i,
            key: value,
        }
        for name, column in values.items()
        for i, value in enumerate(column)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("key", "nearer"), [("distance", "win"), ("clip", "loss")])
def test_a_table_of_pairs_says_who_wins(key, nearer):
    table = contest.paired(records({"less": -0.5, "same": 0.0, "more": 0.5}, key), "base", key)
    said = dict(zip(table["method"], table["verdict"], strict=True))
    other = {"win": "loss", "loss": "win"}[nearer]
    assert said == {"less": nearer, "same": "tie", "more": other}
    assert contest.count_verdicts(table) == {"win": 1, "tie": 1, "loss": 1}
    np.testing.assert_array_equal(table["p_adjusted"], holm(table["p_value"]))
    assert (table["p_adjusted"] >= table["p_value"]).all()


def test_of_many_methods_that_change_nothing_none_wins():
    """At 0.05 each, ten of these 200 would differ."""
    table = contest.paired(records(dict.fromkeys(map(str, range(200)), 0.0)), "base", "distance")
    assert contest.count_verdicts(table) == {"win": 0, "tie": 200, "loss": 0}
    assert 2 <= (table["p_value"] < 0.05).sum() <= 25


def test_a_column_without_a_direction_is_refused_until_one_is_given():
    rows = records({"less": -0.5}, "nfe")
    with refuses("key"):
        contest.paired(rows, "base", "nfe")
    assert list(contest.paired(rows, "base", "nfe", "lower")["verdict"]) == ["win"]


def test_a_summary_never_says_0_plus_minus_0_of_a_share():
    judged = pd.DataFrame({"right_all": [False] * 64, "clip": 0.5})
    figures = scoring.figures(judged)
    low, high = proportion_interval(0, 64)
    assert (figures["right"], figures["right_low"], figures["right_high"]) == (0, low, high)
    assert figures["right_ci"] == high > 0.05


# what metrics refuse


def test_the_distance_of_one_prompt_is_refused():
    goal = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])  # about its mean, 0, the spread is 5
    distance = metrics.relative_distance(goal + torch.tensor([0.0, 2.0]), goal)
    torch.testing.assert_close(distance, torch.tensor([0.4, 0.4]))
    with refuses("goal"):
        metrics.relative_distance(goal[:1], goal[:1])


def test_distances_of_failed_pictures_are_no_numbers():
    goal, latents = torch.randn(3, 4), torch.randn(3, 4)
    latents[1, 0] = math.nan
    two = metrics.relative_distance(latents[[0, 2]], goal[[0, 2]]).numpy()
    found = fine._distances(latents, goal)
    assert math.isnan(found[1])
    np.testing.assert_array_equal(found[[0, 2]], two)
    latents[2, 0] = math.inf
    assert np.isnan(fine._distances(latents, goal)).all()
    with refuses("goal"):
        fine._distances(latents[:1], goal[:1])


def test_a_prompt_longer_than_clip_s_context_is_refused_or_cut_alike_by_both_functions():
    images = torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model, processor = metrics.load_clip()
    limit = model.config.text_config.max_position_embeddings
    words = [" ".join(["red"] * n) for n in (limit - 2, limit - 1)]  # beside start and end tokens
    fits, long = ([load_prompts("bundled", 1)["prompt"][0], prompt] for prompt in words)
    lengths = [len(processor.tokenizer(prompt)["input_ids"]) for prompt in words]
    assert lengths == [limit, limit + 1]
    for score in (metrics.clip_cosine, metrics.clip_score):
        with refuses("prompt"):
            score(images, long)
    cosine = metrics.clip_cosine(images, fits)  # cut to its limit, the longer one is the other
    np.testing.assert_array_equal(metrics.clip_cosine(images, long, truncate=True), cosine)
    score = metrics.clip_score(images, long, truncate=True)
    assert score == pytest.approx(float(cosine.mean()), abs=1e-5)
