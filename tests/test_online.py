"""Online allocation on the bundled model.

K holds, every evaluation is counted, and nothing depends on the batch.
"""

import itertools

import numpy as np
import pytest
import torch

from asddim_lib import ASDDIMScheduler, calibrate, load_pipeline
from asddim_lib.measure.online import online

PROMPTS = ["a red boot on a white ground", "two blue bags on a tan ground"]


@pytest.fixture
def pipe():
    made = load_pipeline()
    made.scheduler = ASDDIMScheduler.from_config(made.scheduler.config, allocation="combined")
    return made


def draw(pipe, prompts, steps=9, seeds=(0, 1), **how):
    calls = []
    with online(pipe, **how) as record:
        count = pipe.unet.register_forward_pre_hook(
            lambda network, args: calls.append(len(args[0]))
        )
        generators = [torch.Generator().manual_seed(s) for s in seeds[: len(prompts)]]
        images = pipe(
            prompts,
            num_inference_steps=steps,
            generator=generators,
            guidance_scale=3.0,
            output_type="latent",
        ).images
        count.remove()
    return images, record, sum(calls)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("estimator", ["vjp", "difference"])
def test_k_holds_and_every_evaluation_is_counted(pipe, per_image, estimator):
    original = pipe.scheduler
    _, record, calls = draw(pipe, PROMPTS, per_image=per_image, estimator=estimator, every=3)
    assert len(record.grids) == (2 if per_image else 1)
    for grid in record.grids:
        assert len(grid) == 9
        assert grid[0] == 999
        assert all(a > b for a, b in itertools.pairwise(grid))
    assert list(record.measured) == [0, 3, 6]
    backward = (
        3 * 2 * (2 if estimator == "vjp" else 0)
    )  # a backward pass counts as two evaluations of each half of the batch
    assert record.nfe == calls / 2 + backward
    assert pipe.scheduler is original
    assert not pipe.unet._forward_hooks


def test_the_record_is_of_what_was_drawn(pipe):
    images, record, _ = draw(pipe, PROMPTS[:1], every=3)
    pipe.scheduler.set_timesteps(timesteps=record.grids[0])
    again = pipe.scheduler
    own, pipe.scheduler.set_timesteps = (
        again.set_timesteps,
        lambda *a, **k: None,
    )  # the recorded grid stays
    drawn = pipe(
        PROMPTS[:1],
        num_inference_steps=9,
        generator=[torch.Generator().manual_seed(0)],
        guidance_scale=3.0,
        output_type="latent",
    ).images
    pipe.scheduler.set_timesteps = own
    torch.testing.assert_close(drawn, images, rtol=1e-3, atol=1e-3)


def test_an_image_does_not_depend_on_its_batch(pipe):
    together, both, _ = draw(pipe, PROMPTS, per_image=True)
    alone, one, _ = draw(pipe, PROMPTS[1:], per_image=True, seeds=(1,))
    assert both.grids[1] == one.grids[0]
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-3)


def test_calibrated_on_the_same_sample_reproduces_online(pipe):
    profile = calibrate(pipe, PROMPTS[:1], guidance_scale=3.0, num_steps=40, probes=8)
    pipe.scheduler = ASDDIMScheduler.from_config(
        pipe.scheduler.config, allocation="combined", profile=profile.to_dict()
    )
    pipe.scheduler.set_timesteps(9)
    _, record, _ = draw(pipe, PROMPTS[:1], every=2, probes=8)
    flat = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="noise")
    flat.set_timesteps(9)
    found, calibrated, without = (
        np.array(g)
        for g in (record.grids[0], pipe.scheduler.timesteps.tolist(), flat.timesteps.tolist())
    )
    assert np.abs(found - calibrated).mean() < 0.25 * np.abs(without - calibrated).mean()


def test_wrong_use_is_named(pipe):
    with pytest.raises(ValueError, match="estimator is power"), online(pipe, estimator="power"):
        pass
    with pytest.raises(ValueError, match="every is 0"), online(pipe, every=0):
        pass
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="noise")
    with pytest.raises(ValueError, match="scheduler is"), online(pipe):
        pass
