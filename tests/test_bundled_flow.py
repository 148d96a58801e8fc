"""The bundled flow-matching model: its format, its path, and what it draws."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from asddim_lib import ASFlowScheduler, calibrate, load_pipeline
from asddim_lib.paper import ddim_step
from asddim_lib.pipeline.run import Run
from experiments.attributes import attributes_right, judge_features

PROMPT = "a red boot on a white ground"
FEW_ZEROS = {"max_sequence_length": 1}


@pytest.fixture(scope="module")
def flow():
    return load_pipeline("bundled-flow")


def test_it_has_stable_diffusion_3_s_own_format(flow):
    assert type(flow) is StableDiffusion3Pipeline
    assert flow.text_encoder_3 is None
    assert flow.scheduler.config["shift"] > 1


def test_euler_on_our_grid_is_ddim_on_the_same_sigmas(flow):
    run = Run(flow, [PROMPT], [3], 3.0, options=FEW_ZEROS)
    path = run.path(8)
    alphas = 1 / (1 + path.sigmas(run.schedule) ** 2)
    samples = [*path.samples, path.end]
    for k in range(len(path)):
        landed, _ = ddim_step(samples[k].double(), path.noises[k].double(), *alphas[k : k + 2])
        apart = (landed - samples[k + 1].double()).norm() / landed.norm()
        assert apart < 1e-4, k  # σ of pure noise is cut at 4096, which float32 rounds


def test_a_quick_profile_costs_no_more_than_a_picture_of_50_steps(flow):
    profile = calibrate(
        flow, [PROMPT], guidance_scale=3.0, num_steps=32, estimator="path", **FEW_ZEROS
    )
    run = Run(flow, [PROMPT], [0], 3.0, options=FEW_ZEROS)
    assert profile.evaluations <= 50 * run.evaluations_per_step
    flow.scheduler, own = (
        ASFlowScheduler.from_config(
            flow.scheduler.config, allocation="equidistributed", profile=profile.to_dict()
        ),
        flow.scheduler,
    )
    drawn = run.pictures(num_inference_steps=8)
    flow.scheduler = own
    assert drawn.finite.all()


def test_it_draws_what_is_asked(flow):
    """Eight pictures of one garment: more than half have its colour and ground."""
    prompts = [f"a {c} bag on a {g} ground" for c in ("red", "blue") for g in ("white", "tan")] * 2
    run = Run(flow, prompts, range(8), 3.0, options=FEW_ZEROS)
    features = judge_features(run.pictures(num_inference_steps=12).images)
    wanted = {
        "colour_a": [prompt.split()[1] for prompt in prompts],
        "garment_a": ["bag"] * 8,
        "ground": [prompt.split()[5] for prompt in prompts],
        "colour_b": [""] * 8,
        "garment_b": [""] * 8,
        "count": [1] * 8,
        "relation": ["none"] * 8,
    }
    right = attributes_right(features, wanted)
    assert right["colour_a"].float().mean() > 0.5
    assert right["ground"].float().mean() > 0.5


def test_t5_s_zeros_change_little(flow):
    few, many = (
        Run(flow, [PROMPT], [5], 3.0, options={"max_sequence_length": count}).ends(
            [999, 749, 499, 249]
        )
        for count in (1, 256)
    )
    assert (few - many).norm() < 0.3 * few.norm()
    assert torch.isfinite(many).all()
