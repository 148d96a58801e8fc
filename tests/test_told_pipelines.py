"""Decoupled time in real pipelines: what the networks are told, and that nothing else changes."""

import contextlib

import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionInpaintPipeline,
)

from asddim_lib import ASDDIMScheduler, UniPCGridScheduler
from asddim_lib.models.load import networks
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.solvers import own_scheduler
from tests import tiny
from tests.zoo import ZOO, draw


def inpaint():
    """Four channels: the kept part of the picture is noised again at every step."""
    pipe = StableDiffusionInpaintPipeline(**tiny.parts(), **tiny.PLAIN)
    return pipe, {**tiny.inpaint()[1], "strength": 0.8}


def sd3_img2img():
    pipe, how = tiny.sd3()
    made = StableDiffusion3Img2ImgPipeline(**pipe.components)
    return made, {**how, "image": tiny.PICTURE, "strength": 0.7}


PIPES = {**ZOO, "inpaint": inpaint, "sd3-img2img": sd3_img2img}


@contextlib.contextmanager
def told(pipe, instead=None):
    """What each call of a network is told, listed; or the times of such a list told instead."""
    found = []

    def hook(network, args, options):
        named = "timestep" in options
        own = options["timestep"] if named else args[1]
        found.append(own)
        if instead is None:
            return None
        other = instead[len(found) - 1]
        if named:
            return args, {**options, "timestep": other}
        return (args[0], other, *args[2:]), options

    guide = getattr(pipe, "controlnet", None)
    told_ones = [*networks(pipe), *([guide] if guide is not None else [])]
    handles = [n.register_forward_pre_hook(hook, with_kwargs=True) for n in told_ones]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def numbers(times):
    return np.array([float(torch.as_tensor(t).double().max()) for t in times])


@pytest.mark.parametrize("name", PIPES)
def test_a_pipeline_tells_its_networks_and_steps_as_ever(name):
    """The same picture as without it, where a hook tells the networks the other times."""
    pipe, options = PIPES[name]()
    own, kind = pipe.scheduler.config, own_scheduler(pipe.scheduler)
    ahead, plain = (kind.from_config(own, look_ahead=share) for share in (0.3, 0.0))
    pipe.scheduler = ahead
    with told(pipe) as lies:
        picture = draw(pipe, options)
    pipe.scheduler = plain
    with told(pipe) as truths:
        usual = draw(pipe, options)
    with told(pipe, instead=lies):
        again = draw(pipe, options)
    assert torch.equal(picture, again)
    assert not torch.equal(picture, usual)
    used = len(set(numbers(truths)))  # image-to-image leaves the first steps out
    calls = len(truths) // used
    times, other = (np.repeat(s.timesteps[-used:].numpy(), calls) for s in (plain, ahead))
    # A network is told t, t / 1000 or 1 - t / 1000: one line through both.
    slope, start = np.polyfit(times, numbers(truths), 1)
    np.testing.assert_allclose(numbers(lies), slope * other + start, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [ASDDIMScheduler, UniPCGridScheduler])
def test_a_run_draws_with_it_and_measures_without_it(kind):
    pipe, _ = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    run, grid = Run(pipe, ["a red boot"]), [900, 500, 100]
    own = pipe.scheduler.config
    ends, paths, names = [], [], []
    for share in (0.0, 0.3):
        pipe.scheduler = kind.from_config(own, look_ahead=share)
        ends.append(run.ends(grid))
        paths.append(run.path(4).samples)
        names.append(run.fingerprint)
        ends.append(run.prepared_with(kind).ends(grid))
    assert torch.equal(paths[0], paths[1])
    assert torch.equal(ends[1], ends[3])
    assert not torch.allclose(ends[0], ends[2], rtol=1e-2, atol=1e-2)
    assert names[0] != names[1]


@pytest.mark.parametrize("build", [tiny.sd, tiny.sd3])
def test_a_saved_pipeline_tells_the_same_times(build, tmp_path):
    pipe, options = build()
    kind = own_scheduler(pipe.scheduler)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, look_ahead=0.3)
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    assert again.scheduler.config["look_ahead"] == 0.3
    assert torch.equal(draw(again, options), draw(pipe, options))
