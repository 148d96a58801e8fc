"""The live model's own scripts compute what the library does: node runs both."""

import json
import math

import live
import live_models
import live_record
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from asddim_lib import ASDDIMScheduler, GuidancePlan, Recipe, load_pipeline
from asddim_lib.guidance import law
from asddim_lib.levels import Levels, sigma_of
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.forms import Builder, Form
from experiments.attributes import attributes_right, load_judge
from tests import pages
from training.compositions import COLOURS, COUNTS, GARMENTS, GROUNDS, RELATIONS


def node(script, given):
    """What a script returns for `given`; it finds the functions of all modules in `m`."""
    names = [(live.SCRIPTS / f"{name}.js").as_uri() for name in MODULES]
    whole = f"""import {{ readFileSync }} from "node:fs";
      const m = {{}};
      for (const name of {json.dumps(names)}) Object.assign(m, await import(name));
      const answer = await ({script})(JSON.parse(readFileSync(0)));
      console.log(JSON.stringify(answer));"""
    return pages.node(whole, given, "--input-type=module")


MODULES = ("judge", "plan", "prompt", "race", "sample")
MODELS = live_models.MODELS


@pytest.fixture(scope="module")
def pipes():
    return {name: load_pipeline(model.pipeline) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def known():
    return live_record.knowledge()


@pytest.mark.parametrize("name", MODELS)
def test_every_prompt_and_its_tokens_are_the_library_s(pipes, known, name):
    pipe, table = pipes[name], known["models"][name]["tokens"]
    tokenizers = [pipe.tokenizer, getattr(pipe, "tokenizer_2", pipe.tokenizer)]
    rng = np.random.default_rng(0)
    choices = []
    for k in range(300):
        garment, second = (str(g) for g in rng.choice(list(GARMENTS), 2, replace=False))
        colour, other = (str(c) for c in rng.choice(list(COLOURS), 2))
        parts = {"garment": garment, "garmentB": second, "colour": colour, "colourB": other}
        shared = {"ground": str(rng.choice(list(GROUNDS))), "relation": RELATIONS[k % 3]}
        choices.append({**parts, **shared, "count": int(rng.integers(1, 1 + len(COUNTS)))})
    script = """([choices, table]) =>
      ["", ...choices.map(m.caption)].map((text) => [text, m.tokens(text, table)])"""
    empty, *found = node(script, [choices, table])
    assert empty == ["", pipe.tokenizer("", padding="max_length").input_ids]
    for choice, (text, ids) in zip(choices, found, strict=True):
        assert text == live_record.prompt_of(choice)
        for tokenizer in tokenizers:
            assert ids == tokenizer(text, padding="max_length").input_ids


def some_grids(rng, count=20):
    """Grids of one step to twenty, with a mask of guided steps for each."""
    for k in range(count):
        grid = sorted(rng.choice(1000, 1 + k % 20, replace=False).tolist(), reverse=True)
        yield grid, (rng.random(len(grid)) < 0.6).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_any_plan_s_steps_are_the_scheduler_s(pipes, known, name):
    """With a network that is a formula, so that many can be tried. Rows are what it is asked."""
    levels, config = known["models"][name]["levels"], pipes[name].scheduler.config
    noise = torch.linspace(-2, 2, 8, dtype=torch.float64)
    runs = [
        [grid, [scale if one else 1.0 for one in guided]]
        for scale in (1.0, 3.0, 7.5)
        for grid, guided in some_grids(np.random.default_rng(2))
    ]
    script = """async ([levels, noise, runs]) => {
      let rows;
      const evaluate = (x, t, guided) => {
        rows += guided ? 2 : 1;
        const within = x.map((v) => Math.cos(v / 4 + t / 1000));
        return guided ? [within, x.map((v) => Math.sin(v / 4))] : [within];
      };
      const ends = [];
      for (const [grid, scales] of runs) {
        rows = 0;
        const end = await m.sample({ noise, grid, levels, scales, evaluate });
        ends.push([[...end], rows, m.cost(scales)]);
      }
      return ends;
    }"""
    ends = node(script, [levels, noise.tolist(), runs])
    for (grid, scales), (ours, rows, cost) in zip(runs, ends, strict=True):
        if name == "unet":
            scheduler = ASDDIMScheduler.from_config(config)
            scheduler.set_timesteps(timesteps=grid)
        else:
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
            scheduler.set_timesteps(sigmas=[(t + 1) / 1000 for t in grid])
        x = noise
        for t, scale in zip(scheduler.timesteps, scales, strict=True):
            without, with_prompt = (x / 4).sin(), (x / 4 + t / 1000).cos()
            guided = without + scale * (with_prompt - without)
            x = scheduler.step(guided, t, x).prev_sample
        # The page keeps float32 between steps, which a small ᾱ at the first makes larger.
        torch.testing.assert_close(torch.tensor(ours).double(), x, rtol=1e-4, atol=1e-4)
        assert rows == cost == sum(2 if scale > 1 else 1 for scale in scales)


@pytest.mark.parametrize("name", MODELS)
def test_plans_and_factors_are_the_library_s(pipes, known, name):
    """The reader's plan, the cap and the recipe, on any grid and at any scale."""
    model, found = known["models"][name], Recipe.load(MODELS[name].recipe)
    own = Levels.from_diffusers(pipes[name].scheduler)
    cases = [
        (grid, guided, scale)
        for scale in (1.0, 1.5, 3.0, 7.5)
        for grid, guided in some_grids(np.random.default_rng(3))
    ]
    script = """([{ levels, recipe }, cases]) => cases.map(([grid, guided, scale]) => {
      const plans = [{ scale, guided }, { scale, cap: 2 }, recipe];
      return plans.map((plan) => {
        const scales = m.scalesOf(levels, grid, plan);
        const factors = m.stepsOf(levels, grid).map(({ ratio }, k) => m.factor(scales[k], ratio));
        return [scales, factors, factors.map(m.stable)];
      });
    })"""
    answers = node(script, [model, cases])
    for (grid, guided, scale), ours in zip(cases, answers, strict=True):
        sigmas = own.sigmas_at(grid)
        if own.kind == "flow":
            sigmas = sigma_of(np.minimum(sigmas, 1.0))
        plans = [
            (GuidancePlan.steps([scale if one else 1.0 for one in guided]), scale),
            (GuidancePlan.capped(), scale),
            (found.plan, found.guidance_scale),
        ]
        for (plan, at), (scales, factors, stable) in zip(plans, ours, strict=True):
            np.testing.assert_allclose(scales, plan.at(sigmas, at), rtol=1e-4)
            for k, factor in enumerate(factors):
                ratio = sigmas[k + 1] / sigmas[k] if np.isfinite(sigmas[k]) else 0.0
                assert factor == pytest.approx(law.propagation(ratio, scales[k])[0, 0], abs=1e-4)
                assert stable[k] == (factor >= -1 - 1e-9)
            assert plan != GuidancePlan.capped() or all(stable)


@pytest.mark.parametrize("name", MODELS)
def test_a_race_spends_what_a_search_would(pipes, known, name):
    """The cap and the recipe have as many even steps as `find_recipe` gives them in the budget."""
    model, found = known["models"][name], Recipe.load(MODELS[name].recipe)
    run = Run(pipes[name], ["a red boot"], guidance_scale=MODELS[name].guidance)
    builder = Builder(run)
    high, low = (math.inf, 0.0) if found.plan.bands is None else published_bands(found.plan)
    forms = [Form(c=2.0), Form(scale=found.guidance_scale, high=high, low=low)]
    choice = {"grid": [999, 500, 100], "guided": [True, False, True]}
    choice |= {"guidance": MODELS[name].guidance}
    script = """([choice, model, budgets]) => budgets.map((budget) => {
      const all = m.racers({ ...choice, budget }, model);
      return all.map(({ grid, scales }) => [grid, m.cost(scales), m.written(scales)]);
    })"""
    budgets = [6, 9, 10, 17, 30]
    answers = node(script, [choice, model, budgets])
    for budget, (own, *others) in zip(budgets, answers, strict=True):
        assert own == [[999, 500, 100], 5, "G·G"]
        for form, (grid, cost, plan) in zip(forms, others, strict=True):
            theirs = builder.recipe(form, budget)
            assert grid == model["grids"]["even"][str(theirs.steps)]
            assert cost == theirs.rows <= budget
            assert plan.count("G") == theirs.rows - theirs.steps
    ten = answers[2][2]
    assert len(ten[0]) == found.steps
    assert ten[1] == found.rows == live_record.BUDGET


def published_bands(plan):
    (high, _), (low, _), _ = plan.bands
    return high, low


def test_the_page_s_claims_are_so(known):
    """Which steps it says are striped, and what the recipes do in ten evaluations."""
    text = (live.BOOK / "chapters" / "live.md").read_text()
    script = """({ unet, transformer }) => {
      const even = unet.grids.even[5], steps = m.stepsOf(unet.levels, even);
      const striped = [7.5, 3, 2].map((scale) =>
        steps.map(({ ratio }) => (m.stable(m.factor(scale, ratio)) ? "." : "/")).join(""));
      const choice = { grid: even, guided: [], guidance: 6, budget: 10 };
      return [striped, ...[unet, transformer].map((one) => m.racers(choice, one)[2].scales)];
    }"""
    striped, unet, transformer = node(script, known["models"])
    assert striped == ["/////", "..../", "....."]
    assert unet == [3] * 5
    assert transformer == [1, 1, 3, 3, 3, 3]
    bands = known["models"]["transformer"]["recipe"]["bands"]
    assert bands == [[5.42, 1], [0.28, None], [0, 1]]
    for said in (
        "with five steps of the UNet at guidance 7.5. All steps are striped",
        "At 3 only the last step is striped, at 2 none",
        "six steps, of which four are guided",
        "recipe leaves out the first two",
        "For the UNet it is guidance 3 in each step",
        r"it is guidance 3 where $0.28<\sigma\le5.42$, and none elsewhere",
        f"{len(live_record.SEEDS)} starting noises".replace("8", "eight"),
        f"{live_models.FINE} even steps",
    ):
        assert said in text


def test_a_race_s_result_is_text_that_says_everything():
    script = """(marks) => {
      const plan = (name, title, scales, k) => ({ name, title, scales, marks: marks[k] });
      const all = [
        plan("Your plan", "at 7.5", [7.5, 1, 7.5], 0),
        plan("The cap", "at 7.5, capped", [2, 3], 1),
        plan("The recipe", "at 3", [1, 3, 1], 2),
      ];
      return [m.result(all, { budget: 6 }, "UNet", "a red boot", "https://a.b/c"), m.verdict(all)];
    }"""
    text, said = node(script, [[[], ["ground"]], [[], []], [["count"], ["count"]]])
    assert text.splitlines() == [
        "A budget of 6 evaluations, UNet, “a red boot”",
        "✓✗ 1 of 2 correct. Your plan: G·G at 7.5, 5 evaluations",
        "✓✓ 2 of 2 correct. The cap: GG at 7.5, capped, 4 evaluations",
        "✗✗ 0 of 2 correct. The recipe: ·G· at 3, 4 evaluations",
        "https://a.b/c",
    ]
    assert said == "You trail: your plan draws 1 of 2 correct, the cap 2, the recipe 0."


def test_the_judge_s_words_are_the_library_s(known):
    """On features drawn at random, in most of which the judge sees something else."""
    heads = list(known["judge"]["heads"])
    features = torch.from_numpy(4 * np.random.default_rng(1).standard_normal((40, 192)))
    choices = [
        {**live_record.START, "relation": RELATIONS[k % 3], "count": 1 + k % 4} for k in range(40)
    ]
    with torch.no_grad():
        logits = load_judge().logits(features.float())
    said = torch.cat([features, *[logits[head].double() for head in heads]], 1).tolist()
    rows = [live_record.scene_of(choice).as_row() for choice in choices]
    right = attributes_right(features, {head: [row[head] for row in rows] for head in heads})
    script = """([said, judge, choices]) => [
      choices.map((choice, k) => m.wrong(said[k], judge, choice)),
      said.map((one) => m.featureDistance(one, said[0], judge)),
    ]"""
    found, far = node(script, [said, known["judge"], choices])
    for k, wrong in enumerate(found):
        assert wrong == [head for head in heads if not right[head][k]]
    assert len({len(wrong) for wrong in found}) > 2, "always the same would prove nothing"
    expected = (features - features[0]).norm(dim=1) / live_record.features_spread()
    np.testing.assert_allclose(far, expected, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_starting_noise_is_what_the_pipeline_starts_from(pipes, known, name):
    pipe, first = pipes[name], []
    options = {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "latent"}

    def keep(own, step, timestep, values):
        first.append(values["latents"])
        return values

    class Still(type(pipe.scheduler)):
        """Leaves the latents as they begin."""

        def step(self, model_output, timestep, sample, **options):
            return (sample,)

    pipe.scheduler = Still.from_config(pipe.scheduler.config)
    for seed in known["seeds"]:
        generator = torch.Generator().manual_seed(seed)
        pipe("", generator=generator, callback_on_step_end=keep, **options)
        assert torch.equal(first.pop(), live_record.starting_noise(seed))
