"""A plan on Ideogram 4: two networks, of which one reads no text, and a schedule of its own."""

import itertools

import pytest
import torch

from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.pipeline.run import Run
from tests import tiny, zoo
from tests.guided import Counted
from tests.refusals import refuses
from tests.zoo.entry import entry

#: What its call may be given: one scale, or one for each of the three steps.
CALLS = {
    "scale": {"guidance_scale": 5.0},
    "scale of 1": {"guidance_scale": 1.0},
    "schedule": {"guidance_scale": None, "guidance_schedule": (7.0, 7.0, 3.0)},
    "schedule from 1": {"guidance_scale": None, "guidance_schedule": (1.0, 7.0, 3.0)},
    "tensor": {"guidance_scale": None, "guidance_schedule": torch.tensor([7.0, 7.0, 3.0])},
}


def drawn(one, **call):
    return zoo.draw(one.pipe, one.options, **call)


def scheduled(one, scales):
    """What the pipeline itself draws with these scales."""
    return drawn(one, guidance_scale=None, guidance_schedule=scales)


@pytest.mark.parametrize("call", CALLS)
def test_a_constant_plan_is_the_plain_pipeline_bit_for_bit(call):
    one = entry("ideogram-4")
    wanted = drawn(one, **CALLS[call])
    with GuidancePlan.constant().on(one.pipe) as rows:
        assert all(torch.equal(drawn(one, **CALLS[call]), wanted) for _ in range(2))
    assert (rows.count, rows.skipped) == (12, 0)


@pytest.mark.parametrize("before", CALLS)
@pytest.mark.parametrize("call", CALLS)
def test_a_list_is_the_pipeline_s_own_schedule_whatever_it_is_called_with(call, before):
    """Also after a run of another call, by which it was learned how the pipeline guides."""
    one, scales = entry("ideogram-4"), [4.0, 1.0, 2.0]
    wanted = scheduled(one, scales)
    with Counted(one.pipe) as counted, GuidancePlan.steps(scales).on(one.pipe) as rows:
        drawn(one, **CALLS[before])
        skipped = rows.skipped
        found = drawn(one, **CALLS[call])
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    assert rows.count == counted.rows == 12 - rows.skipped
    assert rows.skipped - skipped == (call == "scale")


def test_a_cap_lowers_its_schedule_where_a_step_does_not_bear_it():
    one, own = entry("ideogram-4"), (7.0, 1.5, 3.0)
    plain = scheduled(one, own)
    sigmas = one.pipe.scheduler.sigmas.double()
    levels = sigmas / (1 - sigmas)
    caps = [2 / (1 - float(b / a)) for a, b in itertools.pairwise(levels)]
    wanted = scheduled(one, [min(cap, scale) for cap, scale in zip(caps, own, strict=True)])
    with GuidancePlan.capped(2.0).on(one.pipe):
        found = scheduled(one, own)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm() < 1e-2 * (plain - wanted).norm()


def test_its_published_plan_is_its_published_schedule():
    one = entry("ideogram-4")
    wanted = drawn(one, guidance_scale=None, guidance_schedule=[7.0] * 11 + [3.0], **TWELVE)
    with GuidancePlan.named("ideogram-4").on(one.pipe):
        found = drawn(one, guidance_scale=5.0, **TWELVE)
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()


TWELVE = {"num_inference_steps": 12, "mu": 0.5, "std": 1.75}


def test_pictures_of_another_size_and_number_are_drawn_under_the_same_plan():
    one = entry("ideogram-4")
    how = [{"height": 64}, {"prompt": ["a red boot", "a blue bag"]}, {"max_sequence_length": 80}]
    wanted = [pictures(one, guidance_scale=2.0, **more) for more in how]
    with GuidancePlan(bands=((0.0, 2.0),)).on(one.pipe):
        found = [pictures(one, guidance_scale=5.0, **more) for more in ({}, *how)][1:]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def pictures(one, prompt=("a red boot",), **call):
    generators = [torch.Generator().manual_seed(seed) for seed, _ in enumerate(prompt)]
    how = {"generator": generators, "num_inference_steps": 3, "output_type": "latent"}
    return one.pipe(prompt=list(prompt), **how, **one.options | call).images


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_both_networks_are_asked_at_any_scale(scale):
    one = entry("ideogram-4")
    with Counted(one.pipe) as counted:
        drawn(one, guidance_scale=scale)
    run = Run(one.pipe, ["a red boot"], guidance_scale=scale, options=one.options)
    assert counted.rows == 3 * run.evaluations_per_step


# Relatives: other pipelines that set their scale after the network has answered


def test_a_scale_that_grows_in_the_run_is_followed():
    """CogVideoX's `use_dynamic_cfg`."""
    one = entry("cogvideox")
    plain, wanted = drawn(one, use_dynamic_cfg=True), drawn(one, guidance_scale=2.0)
    with GuidancePlan.constant().on(one.pipe):
        assert torch.equal(drawn(one, use_dynamic_cfg=True), plain)
    with GuidancePlan(bands=((0.0, 2.0),)).on(one.pipe):
        for _ in range(2):
            found = drawn(one, use_dynamic_cfg=True)
            assert (found - wanted).norm() <= 1e-4 * wanted.norm()


def test_a_scale_that_changes_first_within_a_later_step_is_refused():
    pipe, options = tiny.sd()
    seen = itertools.count()

    def change(*_):
        if next(seen) == 1:
            pipe._guidance_scale = 5.0

    pipe.unet.register_forward_hook(change)
    with GuidancePlan(bands=((0.0, 2.0),)).on(pipe), refuses("pipe"):
        zoo.draw(pipe, options)
