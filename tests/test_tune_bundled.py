"""`tune` on the bundled models, with the samplers that users have: each is drawn by itself."""

import diffusers
import numpy as np
import pytest
import torch

from asddim_lib import load_pipeline, tune
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.goals import Goal
from asddim_lib.tuning.proposals import Plan
from asddim_lib.tuning.verify import CURRENT, LEAST

STEPS = 3
SEED = 40
PLAN = Plan(1, 3, sweeps=0, path_prompts=0, trials=0, reference_steps=6, baselines=("trailing",))
#: A user's sampler, and its model, arguments and calls of the network.
SAMPLERS = [
    ("PNDMScheduler", "bundled", {"skip_prk_steps": True}, 4),
    ("EulerAncestralDiscreteScheduler", "bundled", {}, 3),
    ("DPMSolverMultistepScheduler", "bundled", {"use_karras_sigmas": True}, 3),
    ("UniPCMultistepScheduler", "bundled", {}, 3),
    ("FlowMatchEulerDiscreteScheduler", "bundled-flow", {}, 3),
]


class Alike(Goal):
    """Sees whole pictures, and prefers none."""

    name = "alike"
    relative = False

    def __init__(self):
        self.looks = []

    def look(self, run: Run, steps: int):
        images = run.pictures(num_inference_steps=steps).images
        self.looks.append((run.scheduler, run.prompts, images))
        return {"seen": images.flatten(1).float()}

    def losses(self, seen, fine):
        return torch.zeros(len(seen))


@pytest.fixture(scope="module")
def flow():
    made = load_pipeline("bundled-flow")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(("name", "model", "config", "calls"), SAMPLERS, ids=lambda v: str(v))
def test_a_user_s_sampler_is_named_drawn_by_itself_and_returned(
    name, model, config, calls, pipe, flow
):
    own, options = (flow, {"max_sequence_length": 1}) if model == "bundled-flow" else (pipe, {})
    before, kind = own.scheduler, getattr(diffusers, name)
    own.scheduler = mine = kind.from_config(before.config, **config)
    prompts = list(dict.fromkeys(load_prompts("bundled-tune", 40)["prompt"]))[: LEAST + 1]
    goal, how = Alike(), {"guidance_scale": 2.0, "options": options}
    try:
        found = tune(own, prompts, steps=STEPS, goal=goal, plan=PLAN, seed=SEED, **how)
        assert found.scheduler is own.scheduler is mine
        noise = [torch.Generator().manual_seed(SEED + n) for n in range(1, LEAST + 1)]
        direct = own(
            prompts[1:],
            num_inference_steps=STEPS,
            guidance_scale=2.0,
            generator=noise,
            output_type="np",
            **options,
        ).images
    finally:
        own.scheduler = before
    assert (found.name, found.changed) == (CURRENT, False)
    assert found.setting.current == name
    assert found.setting.evaluations_per_picture == 2 * calls
    assert name in found.summary()
    assert name in found.report()
    drawn = [images for scheduler, _, images in goal.looks if type(scheduler) is kind]
    assert len(drawn) == 1
    shown = (255 * direct).round().astype(np.uint8)
    assert np.array_equal(drawn[0].movedim(1, -1).numpy(), shown)
