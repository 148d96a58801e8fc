"""A recipe for N evaluations: its forms, its verdict, its file, and the search on the zoo."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from asddim_lib import Recipe, find_recipe
from asddim_lib.cache import sealed
from asddim_lib.cli import app
from asddim_lib.errors import WrongUse
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.metrics.kid import kid_shares
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning import candidates, find, frontier
from asddim_lib.tuning.acceptance import NOT_WORSE, accept, beats, not_worse, pairs_of
from asddim_lib.tuning.forms import Builder, Form
from asddim_lib.tuning.verify import CANDIDATE, CURRENT
from experiments import attributes
from experiments.recipes import draw_recipes
from experiments.records import read_records
from tests import zoo
from tests.planted import WORDS
from tests.refusals import refuses
from tests.zoo.entry import entry
from tests.zoo.first import counted


@pytest.fixture
def builder(small):
    return Builder(Run(small, WORDS[:2], guidance_scale=7.5))


FORMS = st.builds(
    Form,
    scale=st.sampled_from([2.0, 4.0]),
    high=st.sampled_from([float("inf"), 8.0, 2.0]),
    low=st.sampled_from([0.0, 0.3]),
    c=st.sampled_from([None, 2.0]),
    grid=st.sampled_from(["trailing", "karras", "beta"]),
)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(form=FORMS, rows=st.integers(4, 30))
def test_a_form_has_the_most_steps_that_its_evaluations_allow(builder, form, rows):
    recipe = builder.recipe(form, rows)
    assert recipe.rows <= rows
    assert recipe.steps == rows or builder.rows(form, recipe.steps + 1) > rows
    assert recipe.rows == sum(1 + (scale > 1) for scale in builder.scales(form, recipe.steps))


@pytest.mark.parametrize("rows", [6, 10, 17, 40])
def test_each_split_of_a_form_spends_its_evaluations_and_guides_in_one_stretch(builder, rows):
    splits = list(builder.splits(Form(scale=4.0), rows))
    assert splits
    for form in splits:
        recipe = builder.recipe(form, rows)
        guided = np.array(builder.scales(form, recipe.steps)) > 1
        assert recipe.rows in (rows, rows - 1)
        assert recipe.steps > rows // 2
        assert np.abs(np.diff(guided.astype(int))).sum() <= 2
        assert not guided[0]


def test_the_evaluations_of_a_recipe_are_those_that_are_made(builder):
    pipe = builder.run.pipe
    for form in (Form(scale=4.0), Form(scale=4.0, high=5.0), Form(c=2.0, low=0.3)):
        recipe = builder.recipe(form, 9)
        with recipe.on(pipe) as call:
            pipe(WORDS[0], output_type="latent", **call)  # in which it learns how pipe guides
            with counted(pipe) as made:
                pipe(WORDS[0], output_type="latent", **call)
        assert sum(made) == recipe.rows


def test_kid_without_the_pairs_of_one_prompt_is_the_plain_one_without_those_rows():
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 5, generator=draw, dtype=torch.float64) for n in (4, 6))
    skip = torch.zeros(4, 6, dtype=torch.bool)
    assert torch.equal(kid_shares(x, y, skip=skip), kid_shares(x, y))
    skip[:, 4:] = True
    kernel = kid_shares(x, y) - kid_shares(x, y)  # zeros of the right shape
    fewer = kid_shares(x, y[:4], reference_kernel=torch.tensor(0.0, dtype=torch.float64))
    left = kid_shares(x, y, reference_kernel=torch.tensor(0.0, dtype=torch.float64), skip=skip)
    torch.testing.assert_close(left + kernel, fewer)


# The verdict


def equal(seed, names, count=48, measures=3):
    """Losses of recipes that are equally good, and depend on each other by their prompts."""
    draw = np.random.default_rng(seed)
    shared = draw.standard_normal((measures, count))
    return {
        name: {
            f"m{k}": torch.tensor(shared[k] + draw.standard_normal(count)) for k in range(measures)
        }
        for name in names
    }


def test_recipes_that_are_no_better_replace_the_current_one_at_most_at_the_level():
    names = (CURRENT, "constant", "capped", CANDIDATE)
    wrong = [accept(equal(seed, names), "constant")[0] != CURRENT for seed in range(500)]
    assert np.mean(wrong) < 0.05 + 2 * (0.05 * 0.95 / 500) ** 0.5


def test_a_better_candidate_is_returned_and_one_that_only_ties_with_a_baseline_is_not():
    losses = equal(0, (CURRENT, "constant", CANDIDATE))
    losses[CANDIDATE]["m0"] = losses[CANDIDATE]["m0"] - 3
    assert accept(losses, "constant")[0] == CANDIDATE
    losses["constant"]["m0"] = losses["constant"]["m0"] - 3
    assert accept(losses, "constant")[0] == "constant"
    assert accept(losses, CURRENT)[0] == CURRENT
    losses["constant"]["m1"] = losses["constant"]["m1"] + 1  # worse by another measure
    del losses[CANDIDATE]
    assert accept(losses, "constant")[0] == CURRENT


def test_a_measure_by_which_it_is_worse_forbids_a_win():
    losses = equal(1, ("a", "b"))
    losses["a"]["m0"] = losses["a"]["m0"] - 3
    assert beats(pairs_of("a", "b", losses)) < 0.05
    losses["a"]["m2"] = losses["a"]["m2"] + 1
    assert beats(pairs_of("a", "b", losses)) == 1


@pytest.mark.parametrize("worse", [-0.5, 0.0, 0.5])
def test_not_worse_is_an_interval_inside_the_margin(worse):
    """The level of the test: at the margin itself, it passes at most so often."""
    passed = 0
    for seed in range(400):
        draw = np.random.default_rng(seed)
        before = torch.tensor(draw.standard_normal(200))
        after = before + 0.4 + worse + torch.tensor(draw.standard_normal(200))
        (test,) = not_worse("a", "b", {"a": {"m": after}, "b": {"m": before}}, margin=0.4)
        passed += test.verdict == NOT_WORSE
    assert passed / 400 == pytest.approx({-0.5: 1, 0.0: 0.025, 0.5: 0}[worse], abs=0.02)


def test_the_ladder_stops_at_the_first_number_that_is_not_shown(small, few, monkeypatch):
    tried = []

    def judged(search, run, recipe):
        tried.append(recipe.rows)
        return {"m": torch.linspace(-1, 1, 10) + (2 if recipe.rows < 11 else 0)}

    monkeypatch.setattr(candidates.Search, "verdict", judged)
    outcome = find_recipe(
        small,
        WORDS[:21],
        evaluations=40,
        aim="cheaper",
        margin=1.0,
        guidance_scale=4.0,
        encoder="bundled",
        clip="bundled",
        batch_size=7,
    )
    most = [40, 32, 20, 16, 12, 10]
    assert [most - rows in (0, 1) for most, rows in zip(most, tried, strict=True)] == [True] * 6
    assert outcome.returned == "12 evaluations"
    assert outcome.recipe.rows in (11, 12)
    assert "not worse" in outcome.summary()
    assert {"12 evaluations", "10 evaluations"} <= set(outcome.recipes)


# The search


@pytest.fixture
def few(monkeypatch):
    """A search of few forms: what it finds is of no account here."""
    monkeypatch.setattr(candidates, "solvers_of", lambda builder: [None])
    monkeypatch.setattr(candidates, "GRIDS", ())
    monkeypatch.setattr(candidates, "FLOW_GRIDS", ())
    monkeypatch.setattr(candidates, "SLOW", 4)
    scales = lambda run, others=(): [run.guidance_scale or 3.0]  # noqa: E731
    monkeypatch.setattr(candidates, "scales_of", scales)
    monkeypatch.setattr(find, "scales_of", scales)
    monkeypatch.setattr(find, "solvers_of", lambda builder: [None])


def brightness(images, prompts):
    return images.flatten(1).float().mean(1)


ZOO = ["sd15", "sdxl", "sd3", "qwen-image", "wan-2.1"]
AGAIN = """
import sys, torch
from asddim_lib import Recipe
from tests import zoo
from tests import zoo
from tests.zoo.entry import entry
made = entry(sys.argv[1])
call = Recipe.load(sys.argv[2]).apply(made.pipe)
torch.save(zoo.draw(made.pipe, made.options, seed=7, **call), sys.argv[3])
"""


@pytest.mark.parametrize("name", ZOO)
def test_a_recipe_is_found_saved_and_draws_the_same_in_another_process(name, few, tmp_path):
    made = entry(name)
    own = made.pipe.scheduler
    outcome = find_recipe(
        made.pipe,
        WORDS[:14],
        evaluations=6,
        guidance_scale=made.guidance,
        encoder="bundled",
        clip="bundled",
        options=made.options,
        batch_size=7,
    )
    assert made.pipe.scheduler is own
    assert set(outcome.recipes) >= {CURRENT, "constant", "second order", "capped", "interval"}
    assert all(recipe.rows <= 6 for recipe in outcome.recipes.values())
    recipe = outcome.recipes.get(CANDIDATE, outcome.recipes["interval"])
    recipe.save(tmp_path / "recipe")
    given = [name, str(tmp_path / "recipe"), str(tmp_path / "there.pt")]
    subprocess.run([sys.executable, "-c", AGAIN, *given], check=True, capture_output=True)
    with recipe.on(made.pipe) as call:
        here = zoo.draw(made.pipe, made.options, seed=7, **call)
    assert made.pipe.scheduler is own
    assert torch.equal(here, torch.load(tmp_path / "there.pt"))


def search(pipe, folder, **how):
    scorers = {"brightness": brightness}
    return find_recipe(
        pipe,
        WORDS[:14],
        guidance_scale=4.0,
        scorers=scorers,
        encoder="bundled",
        clip="bundled",
        batch_size=7,
        folder=folder,
        **{"evaluations": 6, **how},
    )


def test_a_search_that_is_stopped_ten_times_ends_at_the_same_recipe(small, few, tmp_path):
    class Stopped(Exception):
        pass

    whole = search(small, tmp_path / "whole")
    for limit in sorted(np.random.default_rng(0).uniform(0, whole.evaluations - 20, 10)):

        def stop(doing, spent, total, limit=limit):
            if spent > limit:
                raise Stopped

        with pytest.raises(Stopped):
            search(small, tmp_path / "parts", progress=stop)
    with counted(small) as made:
        parts = search(small, tmp_path / "parts")
    assert sum(made) < whole.evaluations
    assert parts.report() == whole.report()
    assert parts.recipe == whole.recipe


@pytest.mark.parametrize("aim", [{}, {"aim": "cheaper", "evaluations": 12, "margin": 1e6}])
def test_the_cost_is_said_before_anything_is_drawn_and_is_enough(aim, small, few, tmp_path):
    said = []
    with counted(small) as made:

        def note(doing, spent, total):
            said.append((spent, total, sum(made)))

        outcome = search(small, tmp_path, progress=note, **aim)
    assert said[0][0] == said[0][2] == 0
    assert said[0][1] >= outcome.evaluations


def test_wanted_pictures_are_at_the_scale_whose_slow_pictures_fit_their_prompts(small, monkeypatch):
    monkeypatch.setattr(candidates, "SLOW", 4)
    fits = {7.0: 0.5, 3.0: 0.9, 6.0: 0.7}

    def look(measures, run, steps):
        count = len(run.prompts)
        score = torch.full((count,), fits[run.guidance_scale])
        detail = torch.randn(count, 18)
        return {"CLIP score": score, "seen": torch.randn(count, 4), "fine detail": detail}

    monkeypatch.setattr(candidates.Measures, "look", look)
    run = Run(small, WORDS[:9], range(9), 7.0)
    measures = find.measures_of(small, "bundled", "bundled", None, {})
    one = candidates.Search(Builder(run), measures, candidates.Work())
    assert "scale 3" in one.want(run, None)
    assert one.measures.wanted["seen"].shape == (9, 4)
    assert list(one.measures.asked) == WORDS[:9]


@pytest.mark.parametrize(("gain", "drawn"), [(0.0, False), (3.0, True)])
def test_baselines_that_decide_nothing_are_not_drawn(gain, drawn, small, few, monkeypatch):
    """A choice that fails against the current setting is not compared with the others."""
    noise = torch.linspace(-1, 1, 40, dtype=torch.float64)

    def judged(search, run, recipe):
        better = gain if "below" in recipe.name else 0.0
        return {"m": noise.roll(recipe.steps) - better}

    monkeypatch.setattr(candidates.Search, "verdict", judged)
    others = {"constant": Form(4.0), "capped": Form(4.0, c=2.0)}
    monkeypatch.setattr(find, "baselines", lambda *given: others)
    monkeypatch.setattr(find, "candidate", lambda *given: Form(4.0, high=2.0))
    monkeypatch.setattr(candidates.Search, "race", lambda *given: others["constant"])
    given = {"guidance_scale": 4.0, "clip": "bundled", "encoder": "bundled"}
    outcome = find_recipe(small, WORDS[:14], evaluations=12, **given)
    assert ("capped" in outcome.losses) == drawn
    assert outcome.returned == (CANDIDATE if drawn else CURRENT)
    assert set(outcome.recipes) == {CURRENT, "constant", "capped", CANDIDATE}
    assert "capped" in outcome.report() or not drawn
    every = find_recipe(small, WORDS[:14], evaluations=12, every=True, **given)
    assert set(every.losses) == set(every.recipes)
    assert every.returned == outcome.returned


@pytest.mark.parametrize(
    ("scale", "near"), [(2.0, [2.0, 3.0]), (4.0, [3.0, 4.0, 7.5]), (7.5, [4.0, 7.5])]
)
def test_scales_around_one_are_its_neighbours(scale, near):
    assert candidates.around(scale, [7.5, 2.0, 3.0, 4.0]) == near


def test_its_folder_is_for_one_setting_and_its_files_say_what_was_found(small, few, tmp_path):
    outcome = search(small, tmp_path)
    (tmp_path / "recipes" / "of-an-earlier-search").mkdir(parents=True)
    outcome.save(tmp_path)
    said = json.loads((tmp_path / "tune.json").read_text())["value"]
    assert said["returned"] == outcome.returned
    assert len(said["pairs"]) == len(outcome.table())
    loaded = Recipe.load(tmp_path)
    assert loaded == outcome.recipe
    assert loaded.call == outcome.recipe.call
    code = outcome.report(str(tmp_path)).split("```python")[1].split("```")[0]
    names = {"pipe": small, "prompt": WORDS[0]}
    try:
        exec(code, names)
    finally:
        if loaded.plan != GuidancePlan.constant():
            GuidancePlan.remove(small)
    assert names["image"].size
    names = {name.replace(" ", "-") for name in outcome.recipes}
    assert {place.name for place in (tmp_path / "recipes").iterdir()} == names
    for name in outcome.recipes:
        assert Recipe.load(tmp_path / "recipes" / name.replace(" ", "-")) == outcome.recipes[name]
    with refuses("folder"):
        find_recipe(small, WORDS[:14], evaluations=8, encoder="bundled", folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("evaluations", {"evaluations": 3}),
        ("evaluations", {"evaluations": 8.0}),
        ("evaluations", {"evaluations": 6, "aim": "cheaper"}),
        ("aim", {"aim": "faster"}),
        ("margin", {"margin": 0.0}),
        ("margin", {"margin": float("nan")}),
        ("prompts", {"evaluations": 12, "aim": "cheaper"}),
        ("prompts", {"prompts": WORDS[:9]}),
        ("pipe", {"guidance_scale": 0.5}),
        ("pipe", {"guidance_scale": 1.0}),
        ("reference", {"reference": "nowhere"}),
        ("clip", {"clip": "nowhere"}),
        ("encoder", {"encoder": "nowhere"}),
        ("brightness", {"scorers": {"brightness": lambda images, prompts: torch.zeros(1, 2)}}),
    ],
)
def test_wrong_input_is_one_line_that_names_it(name, wrong, small, few):
    how = {"prompts": WORDS[:14], "evaluations": 6, "guidance_scale": 4.0, "encoder": "bundled"}
    with refuses(name):
        find_recipe(small, **{"clip": "bundled", **how, **wrong})


def test_a_recipe_that_cannot_be_put_on_leaves_the_pipeline_as_it_was(small, builder):
    own = small.scheduler
    recipe = builder.recipe(Form(c=2.0), 8)
    with GuidancePlan.capped().on(small):
        inner = small.scheduler
        with refuses("pipe"):
            recipe.apply(small)
        assert small.scheduler is inner
    assert small.scheduler is own


@pytest.mark.parametrize("damage", ["{", "{}", "[]"])
def test_a_damaged_or_missing_recipe_is_said(builder, damage, tmp_path):
    with refuses("folder"):
        Recipe.load(tmp_path)
    builder.recipe(Form(scale=3.0), 8).save(tmp_path)
    assert Recipe.load(tmp_path).call == {"num_inference_steps": 4, "guidance_scale": 3.0}
    (tmp_path / "recipe.json").write_text(damage)
    with pytest.raises(WrongUse):
        Recipe.load(tmp_path)


def test_the_command_writes_a_folder_that_generate_draws_with(
    preloaded_small, few, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["recipe", "--evaluations", "6", "--guidance-scale", "4", "--count", "14", "--json"]
    encoders = ["--encoder", "bundled", "--clip", "bundled"]
    done = CliRunner().invoke(app, [*words, *encoders])
    assert done.exit_code == 0, done.exception
    value = json.loads(done.stdout)
    assert value["call"] == Recipe.load("recipe").call
    assert {"second", "measure", "verdict"} <= set(value["rows"][0])
    drawn = CliRunner().invoke(app, ["generate", "a red boot", "a.png", "--model", "recipe"])
    assert drawn.exit_code == 0, drawn.exception
    assert f"{len(sealed(tmp_path / 'recipe' / 'tune.json')['pairs'])}" == str(len(value["rows"]))
    assert (tmp_path / "a.png").is_file()


def test_several_numbers_give_a_frontier_whose_points_draw(
    preloaded_small, few, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["recipe", "--evaluations", "8,6", "--guidance-scale", "4", "--count", "14", "--json"]
    encoders = ["--encoder", "bundled", "--clip", "bundled"]
    planned = CliRunner().invoke(app, [*words, *encoders, "--plan"])
    assert planned.exit_code == 0, planned.exception
    assert set(json.loads(planned.stdout)["evaluations"]) == {"6", "8"}
    assert not list((tmp_path / "recipe").glob("drawn/*"))
    done = CliRunner().invoke(app, [*words, *encoders])
    assert done.exit_code == 0, done.exception
    points = json.loads((tmp_path / "recipe" / "frontier.json").read_text())
    assert {point["of"] for point in points} == {6, 8}
    for point in points:
        recipe = Recipe.load(tmp_path / "recipe" / point["folder"])
        assert recipe.rows == point["evaluations"]
        assert recipe.name == point["recipe"]
    saved = sealed(tmp_path / "recipe" / "8" / "tune.json")
    one = next(p for p in points if (p["of"], p["method"], p["measure"]) == (8, "capped", "KID"))
    assert one["value"] == saved["losses"]["capped"]["KID"]
    assert one["half"] == saved["halves"]["capped"]["KID"]
    page = (tmp_path / "recipe" / "frontier.md").read_text()
    assert all(point["folder"] in page for point in points)
    assert (tmp_path / "recipe" / "frontier.png").stat().st_size > 5000
    assert frontier.NAME == "frontier"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evaluations", ["--evaluations", "eight"]),
        ("evaluations", ["--evaluations", "3"]),
        ("evaluations", ["--evaluations", "100,50", "--aim", "cheaper", "--margin", "1"]),
        ("aim", ["--aim", "best"]),
        ("margin", ["--margin", "-1"]),
        ("prompts", ["--evaluations", "100", "--aim", "cheaper", "--count", "60"]),
    ],
)
def test_the_command_refuses_wrong_numbers_before_it_loads_a_model(name, words, tmp_path):
    done = CliRunner().invoke(app, ["recipe", "--out", str(tmp_path / "r"), *words])
    assert isinstance(done.exception, WrongUse)
    assert name in str(done.exception)


# The record of unseen prompts


def test_a_record_has_what_the_judge_sees_of_each_recipes_pictures(small, few, tmp_path):
    outcome = search(small, None)
    outcome.save(tmp_path / "found")
    table = load_prompts("bundled", 3)
    records = draw_recipes(small, table, [tmp_path / "found"], tmp_path / "out", batch_size=2)
    assert set(records["method"]) == set(outcome.recipes) - {CURRENT}
    for name, part in records.groupby("method"):
        recipe = outcome.recipes[name]
        noise = [torch.Generator().manual_seed(seed) for seed in range(3)]
        with recipe.on(small) as call:
            images = small(list(table["prompt"]), generator=noise, output_type="pt", **call).images
        pictures = (255 * images).round().to(torch.uint8)
        features = attributes.judge_features(pictures)
        right = attributes.attributes_right(features, {n: list(table[n]) for n in table})
        assert list(part["right_all"]) == right["all"].tolist()
        real = attributes.reference_features()
        shares = kid_shares(features, real, attributes.reference_kernel())
        np.testing.assert_allclose(part["kid_share"], shares, rtol=0.02)
        assert set(part["nfe"]) == {recipe.rows}
    again = draw_recipes(small, table, [tmp_path / "found"], tmp_path / "out", batch_size=2)
    pd.testing.assert_frame_equal(records, again)
    pd.testing.assert_frame_equal(
        read_records(tmp_path / "out").drop(columns="guidance_plan"), records
    )
