"""A step's network calls made again, with ControlNets and guiders; and where that is refused."""

import logging

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from diffusers.guiders import ClassifierFreeGuidance

from asddim_lib import calibrate
from asddim_lib.calibration import record
from asddim_lib.models import calls
from asddim_lib.pipeline import manifest as fingerprint
from asddim_lib.pipeline.run import Run
from tests import tiny
from tests.refusals import refuses
from tests.zoo import flow, modular, unet
from tests.zoo.first import counted

PROMPTS = ["a red boot", "a blue bag"]
SMALL = {"height": 32, "width": 32}


def plain(build=tiny.sd):
    pipe, options = build()
    pipe.set_progress_bar_config(disable=True)
    return pipe, options


def two_controlnets():
    """Two ControlNets of which each has its own picture and weight."""
    pipe, _ = tiny.controlnet()
    guides = [pipe.controlnet, tiny.controlnet()[0].controlnet]
    for number, guide in enumerate(guides):
        torch.manual_seed(number)
        for layer in (guide.controlnet_cond_embedding.conv_out, guide.controlnet_mid_block):
            torch.nn.init.normal_(layer.weight, std=0.3)
    made = {**pipe.components, "controlnet": guides}
    pictures = [tiny.PICTURE[..., :32, :32], 1 - tiny.PICTURE[..., :32, :32]]
    scales = {"controlnet_conditioning_scale": [1.0, 0.5]}
    pipe = StableDiffusionControlNetPipeline(**made, requires_safety_checker=False)
    return pipe, {"image": pictures, **scales, **SMALL}


def g_by(estimator, pipe, options, guidance=3.0):
    how = {"guidance_scale": guidance, "num_steps": 3, "estimator": estimator}
    return calibrate(pipe, PROMPTS[:1], **how, **options).g


def test_two_controlnets_are_called_again_with_the_sample():
    pipe, options = plain(two_controlnets)
    derived = g_by("jvp", pipe, options)
    np.testing.assert_allclose(derived, g_by("difference", pipe, options), rtol=1e-3)
    assert all(not part._forward_hooks for part in (pipe.unet, pipe.controlnet))


def test_a_controlnet_s_part_of_the_derivative_is_seen():
    """With its answers held as they were, g is another one."""
    pipe, options = plain(two_controlnets)
    whole, forward, kept = g_by("jvp", pipe, options), pipe.controlnet.forward, {}

    def hold(sample, timestep, *rest, **more):
        if int(timestep) not in kept:
            kept[int(timestep)] = forward(sample, timestep, *rest, **more)
        return kept[int(timestep)]

    pipe.controlnet.forward = hold
    with torch.no_grad():
        held = g_by("jvp", pipe, options)
    assert not np.allclose(whole, held, rtol=1e-3)


def test_a_batch_has_its_own_part_of_what_is_given_for_each_prompt():
    """Of a tensor, too. What is given for all of them, such as one per ControlNet, is not cut."""
    pipe, _ = plain(tiny.img2img)
    how = {"guidance_scale": 3.0, "num_steps": 4, "estimator": "path", "strength": 0.6}
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = [*PROMPTS, "a pink shirt"]
    together = calibrate(pipe, prompts, image=pictures, **how)
    apart = calibrate(pipe, prompts, image=pictures, batch_size=2, **how)
    np.testing.assert_allclose(together.g, apart.g, rtol=1e-4)


def test_a_network_that_answers_otherwise_when_it_is_asked_again_is_refused():
    pipe, _ = plain()
    forward, asked = pipe.unet.forward, []

    def drift(*args, **kwargs):
        asked.append(1)
        return (forward(*args, **kwargs)[0] * (1 + 0.1 * len(asked)),)

    pipe.unet.forward = drift
    with refuses("pipe"):
        g_by("vjp", pipe, SMALL)


def test_a_path_that_stops_before_its_end_is_refused():
    """Its last sample is at another level than the path says."""
    pipe, options = plain(tiny.sdxl_base)
    with refuses("denoising_end"):
        record(pipe, PROMPTS[:1], num_steps=4, **options)

    pipe, _ = plain()
    calls_so_far = []

    def stop(*_):
        calls_so_far.append(1)
        pipe._interrupt = len(calls_so_far) == 2

    pipe.unet.register_forward_hook(stop)
    with refuses("pipe"):
        record(pipe, PROMPTS[:1], num_steps=4, **SMALL)


# modular pipelines


@pytest.fixture
def modular_sdxl():
    return plain(modular.modular_sdxl)


def test_a_guider_guides_the_recorder_s_last_step_too(modular_sdxl):
    """Before, it stopped at the number of steps it was told, and the next call failed."""
    pipe, options = modular_sdxl
    own, run = pipe.guider, Run(pipe, PROMPTS, options=options)
    paths = []
    for _ in range(2):
        with counted(pipe) as rows:
            paths.append(run.path(4))
        assert rows == [2] * 2 * 5, "two prompts, twice at each of five points"
    assert torch.equal(paths[0].end, paths[1].end)
    assert pipe.guider is own
    theirs, more = plain(unet.sdxl)
    same = Run(theirs, PROMPTS, guidance_scale=modular.GUIDANCE, options=more).path(4)
    torch.testing.assert_close(paths[0].noises, same.noises, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("guider", "rows"),
    [
        (ClassifierFreeGuidance(guidance_scale=1.0), 1),
        (ClassifierFreeGuidance(guidance_scale=4.0, use_original_formulation=True), 2),
    ],
)
def test_a_guider_says_what_a_step_costs_and_combines(modular_sdxl, guider, rows):
    pipe, options = modular_sdxl
    pipe.guider = guider
    run = Run(pipe, PROMPTS[:1], options=options)
    assert run.evaluations_per_step == rows
    derived = g_by("jvp", pipe, options, None)
    np.testing.assert_allclose(derived, g_by("difference", pipe, options, None), rtol=1e-3)
    assert run.evaluations_per_step == rows


def test_a_fingerprint_has_a_guider_s_settings_and_not_its_step(modular_sdxl):
    pipe, options = modular_sdxl
    before = fingerprint.of_pipeline(pipe)
    record(pipe, PROMPTS[:1], guidance_scale=None, num_steps=2, **options)
    Run(pipe, PROMPTS[:1], options=options).ends([900, 300])
    assert fingerprint.of_pipeline(pipe) == before
    pipe.guider.disable()
    off = fingerprint.of_pipeline(pipe)
    pipe.guider = ClassifierFreeGuidance(guidance_scale=4.0)
    assert len({before, off, fingerprint.of_pipeline(pipe)}) == 3


def test_a_modular_pipeline_s_arguments_are_its_blocks():
    known = calls.parameters(plain(modular.modular_flux)[0])
    assert {"prompt", "sigmas", "guidance_scale", "num_inference_steps"} <= set(known)
    assert known["guidance_scale"].default == 3.5
    assert "guidance_scale" not in calls.parameters(plain(modular.modular_sdxl)[0])


def test_asking_a_modular_pipeline_for_its_shift_logs_no_error(caplog):
    pipe, options = plain(modular.modular_flux)
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        found = Run(pipe, PROMPTS[:1], options=options).mu
    finally:
        logger.removeHandler(caplog.handler)
    assert found == Run(*[plain(flow.flux)[0], PROMPTS[:1]], options=plain(flow.flux)[1]).mu
    assert not [line for line in caplog.records if line.levelno >= logging.ERROR]
