"""A guidance plan on every pipeline of the zoo that is guided."""

import functools

import pytest
import torch

from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.models.load import networks
from tests import zoo
from tests.refusals import refuses
from tests.zoo.entry import ENTRIES, entry
from tests.zoo.first import count

#: Their guidance is a number that the network is given.
DISTILLED = ("flux-dev", "flux-kontext", "modular-flux", "hunyuan-video")
#: All their predictions are made in each step: others depend on the one without the prompt.
WHOLE = ("instruct-pix2pix", "sd15-pag")
GUIDED = [name for name in ENTRIES if name not in DISTILLED]


def at_scale(one, scale, **how):
    """What the pipeline draws at a guidance scale of its own, u + scale · (c − u)."""
    options = one.options
    if "true_cfg_scale" in options:
        return zoo.draw(one.pipe, {**options, "true_cfg_scale": scale}, **how)
    if getattr(one.pipe, "guider", None) is not None:
        own, one.pipe.guider = one.pipe.guider, type(one.pipe.guider)(guidance_scale=scale)
        try:
            return zoo.draw(one.pipe, options, **how)
        finally:
            one.pipe.guider = own
    added = 1 if type(one.pipe).__name__.startswith("ZImage") else 0
    if "guidance_scale_2" in options:
        options = {**options, "guidance_scale_2": scale}
    return zoo.draw(one.pipe, options, guidance_scale=scale - added, **how)


class Counted:
    """The rows that networks really make: counted where they are made."""

    def __init__(self, pipe):
        self.parts, self.rows = networks(pipe), 0

    def __enter__(self):
        for part in self.parts:
            own = part.forward

            @functools.wraps(own)
            def forward(*args, _own=own, **kwargs):
                output = _own(*args, **kwargs)
                self.rows += count(output)
                return output

            part.forward = forward
        return self

    def __exit__(self, *_):
        for part in self.parts:
            del part.forward


@pytest.mark.parametrize("name", GUIDED)
def test_a_constant_plan_is_the_plain_pipeline_bit_for_bit(name):
    one = entry(name)
    plain = zoo.draw(one.pipe, one.options)
    with GuidancePlan.constant().on(one.pipe) as rows:
        first, second = (zoo.draw(one.pipe, one.options) for _ in range(2))
    assert torch.equal(plain, first)
    assert torch.equal(plain, second)
    assert rows.skipped == 0
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
        assert rows.count - learning < learning
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
