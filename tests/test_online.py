"""Online allocation on the bundled model.

K holds, every evaluation is counted, and nothing depends on the batch.
"""

import itertools

import numpy as np
import pytest
import torch

from asddim_lib import ASDDIMScheduler, calibrate
from experiments.online import online
from tests.refusals import refuses
from tests.zoo import ZOO
from tests.zoo import draw as drawn

PROMPTS = ["a red boot on a white ground", "two blue bags on a tan ground"]
HOW = {"guidance_scale": 3.0, "output_type": "latent"}


@pytest.fixture
def combined(pipe):
    """The bundled pipeline with a scheduler that online allocation takes."""
    config = pipe.scheduler.config
    pipe.scheduler = ASDDIMScheduler.from_config(config, allocation="combined")
    return pipe


def draw(pipe, prompts, steps=9, seeds=(0, 1), **how):
    """Latents, the record, and how many samples the network saw."""
    sizes = []
    with online(pipe, **how) as record:
        hook = pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        generators = [torch.Generator().manual_seed(s) for s in seeds[: len(prompts)]]
        latents = pipe(prompts, num_inference_steps=steps, generator=generators, **HOW).images
        hook.remove()
    return latents, record, sum(sizes)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("estimator", ["vjp", "difference"])
def test_k_holds_and_every_evaluation_is_counted(combined, per_image, estimator):
    original = combined.scheduler
    how = {"per_image": per_image, "estimator": estimator, "every": 3}
    _, record, samples = draw(combined, PROMPTS, **how)
    assert len(record.grids) == (2 if per_image else 1)
    for grid in record.grids:
        assert len(grid) == 9
        assert grid[0] == 999
        assert all(a > b for a, b in itertools.pairwise(grid))
    assert list(record.measured) == [0, 3, 6]
    # A backward pass counts as two evaluations of each half of the batch.
    backward = 3 * 2 * (2 if estimator == "vjp" else 0)
    assert record.nfe == samples / 2 + backward
    assert combined.scheduler is original


def test_the_record_is_of_what_was_drawn(combined):
    latents, record, _ = draw(combined, PROMPTS[:1], every=3)
    generator = [torch.Generator().manual_seed(0)]
    again = combined(PROMPTS[:1], timesteps=record.grids[0], generator=generator, **HOW).images
    torch.testing.assert_close(again, latents, rtol=1e-3, atol=1e-3)


def test_an_image_does_not_depend_on_its_batch(combined):
    together, both, _ = draw(combined, PROMPTS, per_image=True)
    alone, one, _ = draw(combined, PROMPTS[1:], per_image=True, seeds=(1,))
    assert both.grids[1] == one.grids[0]
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)


def test_online_allocation_is_near_a_profile_of_the_same_sample(combined):
    profile = calibrate(combined, PROMPTS[:1], guidance_scale=3.0, num_steps=20, probes=2)
    config = combined.scheduler.config
    combined.scheduler = ASDDIMScheduler.from_config(config, profile=profile.to_dict())
    combined.scheduler.set_timesteps(9)
    calibrated = np.array(combined.scheduler.timesteps)
    _, record, _ = draw(combined, PROMPTS[:1], every=2, probes=2)
    plain = ASDDIMScheduler.from_config(config, allocation="noise")
    plain.set_timesteps(9)
    distance = np.abs(np.array(record.grids[0]) - calibrated).mean()
    assert distance < 0.25 * np.abs(np.array(plain.timesteps) - calibrated).mean()


def test_wrong_use_is_named(combined):
    with refuses("estimator"), online(combined, estimator="power"):
        pass
    with refuses("every"), online(combined, every=0):
        pass
    config = combined.scheduler.config
    combined.scheduler = ASDDIMScheduler.from_config(config, allocation="noise")
    with refuses("pipe.scheduler"), online(combined):
        pass


@pytest.mark.parametrize("name", ["pixart-sigma", "cogvideox"])
def test_a_network_that_is_told_the_time_by_a_name_is_refused(name):
    pipe, options = ZOO[name]()
    config = pipe.scheduler.config
    pipe.scheduler = ASDDIMScheduler.from_config(config, allocation="combined")
    with refuses("pipe"), online(pipe):
        drawn(pipe, options)
    networks = pipe.transformer._forward_hooks, pipe.transformer._forward_pre_hooks
    assert not any(networks), "the hooks are off again"


@pytest.mark.parametrize(("name", "value"), [("probes", 0), ("seed", 2**64), ("profile", "p.json")])
def test_wrong_numbers_are_refused_before_the_pipeline_is_called(combined, name, value):
    with refuses(name), online(combined, **{name: value}):
        pass
