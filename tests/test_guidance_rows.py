"""A guidance plan on every pipeline of the zoo that is guided."""

import pytest
import torch

from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.models.load import networks
from tests import zoo
from tests.guided import Counted, at_scale
from tests.refusals import refuses
from tests.zoo.entry import ENTRIES, entry

#: Their guidance is a number that the network is given.
DISTILLED = ("flux-dev", "flux-kontext", "modular-flux", "hunyuan-video")
#: All their predictions are made in each step: others depend on the one without the prompt.
WHOLE = ("instruct-pix2pix", "sd15-pag")
GUIDED = [name for name in ENTRIES if name not in DISTILLED]


@pytest.mark.parametrize("name", GUIDED)
def test_a_constant_plan_is_the_plain_pipeline_bit_for_bit(name):
    one = entry(name)
    plain = zoo.draw(one.pipe, one.options)
    own, known = one.pipe.scheduler, set(vars(one.pipe.scheduler))
    with GuidancePlan.constant().on(one.pipe) as rows:
        first, second = (zoo.draw(one.pipe, one.options) for _ in range(2))
    assert torch.equal(plain, first)
    assert torch.equal(plain, second)
    assert rows.skipped == 0
    assert one.pipe.scheduler is own
    assert set(vars(own)) == known
    assert torch.equal(plain, zoo.draw(one.pipe, one.options))
    assert not any("forward" in vars(part) for part in networks(one.pipe))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("name", GUIDED)
def test_another_scale_is_the_pipeline_s_at_that_scale_and_rows_are_those_that_ran(name, scale):
    one = entry(name)
    bands = GuidancePlan(bands=((0.0, scale),))
    with Counted(one.pipe) as counted, bands.on(one.pipe) as rows:
        first = zoo.draw(one.pipe, one.options)  # which learns how the pipeline guides
        learning = rows.count
        second = zoo.draw(one.pipe, one.options)
    assert rows.count == counted.rows
    if (name, scale) != ("instruct-pix2pix", 1):  # it leaves out the picture's guidance as well
        wanted = at_scale(one, scale)
        for drawn in (first, second):
            assert (drawn - wanted).norm() <= 1e-4 * wanted.norm()
    if scale == 1 and name not in WHOLE:
        stated = name != "pixart-sigma"  # whose scale is fitted anew in each run
        assert (rows.count - learning < learning) == stated
        assert rows.skipped > 0
    else:
        assert rows.skipped == 0


@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_guidance_is_refused_in_one_line(name):
    one = entry(name)
    with refuses("pipe") as refusal, GuidancePlan.capped().on(one.pipe):
        zoo.draw(one.pipe, one.options)
    assert "distilled" in str(refusal.value)
    assert zoo.draw(one.pipe, one.options).isfinite().all()
