"""The live model's own scripts compute what the library does: node runs both."""

import json

import live
import live_models
import live_record
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from asddim_lib import ASDDIMScheduler, load_pipeline
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


MODULES = ("judge", "prompt", "sample")
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


@pytest.mark.parametrize("name", MODELS)
def test_any_grid_s_steps_are_the_scheduler_s(pipes, known, name):
    """With a network that is a formula, so that many grids can be tried."""
    levels, config = known["models"][name]["levels"], pipes[name].scheduler.config
    rng = np.random.default_rng(2)
    noise = torch.linspace(-2, 2, 8, dtype=torch.float64)
    runs = [
        [sorted(rng.choice(1000, 1 + k % 20, replace=False).tolist(), reverse=True), scale]
        for k, scale in enumerate([0.0, 1.0, 3.0, 7.5] * 10)
    ]
    script = """async ([levels, noise, runs]) => {
      const evaluate = (x, t) =>
        [x.map((v) => Math.sin(v / 4)), x.map((v) => Math.cos(v / 4 + t / 1000))];
      const ends = [];
      for (const [grid, guidance] of runs)
        ends.push([...(await m.sample({ noise, grid, levels, guidance, evaluate }))]);
      return ends;
    }"""
    ends = node(script, [levels, noise.tolist(), runs])
    for (grid, guidance), ours in zip(runs, ends, strict=True):
        if name == "unet":
            scheduler = ASDDIMScheduler.from_config(config)
            scheduler.set_timesteps(timesteps=grid)
        else:
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
            scheduler.set_timesteps(sigmas=[(t + 1) / 1000 for t in grid])
        x = noise
        for t in scheduler.timesteps:
            without, with_prompt = (x / 4).sin(), (x / 4 + t / 1000).cos()
            guided = without + guidance * (with_prompt - without)
            x = scheduler.step(guided if guidance > 1 else with_prompt, t, x).prev_sample
        # The page keeps float32 between steps, which a small ᾱ at the first makes larger.
        torch.testing.assert_close(torch.tensor(ours).double(), x, rtol=1e-4, atol=1e-4)


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
