"""The ways of guiding: known by what arrives at the scheduler, and what they cost."""

import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.guiders import ClassifierFreeGuidance, SkipLayerGuidance

from asddim_lib.guidance.formula import formula_of, guidance_scales
from asddim_lib.models import calls
from asddim_lib.pipeline.run import Run
from tests.refusals import refuses
from tests.tiny import PLAIN, parts, unet
from tests.zoo import ZOO
from tests.zoo.first import built, counted, stopped

SCALE, OTHER = 4.5, 1.7
#: Pipelines, as far as guidance looks at them.
PLAINEST = SimpleNamespace()
RESCALED = SimpleNamespace(guidance_rescale=0.7)
EDITING = SimpleNamespace(guidance_scale=SCALE, image_guidance_scale=OTHER)
PERTURBED = SimpleNamespace(guidance_scale=SCALE, pag_scale=OTHER)
GUIDED = SimpleNamespace(guider=ClassifierFreeGuidance(guidance_scale=SCALE, guidance_rescale=0.3))


def spread(x):
    return x.std(dim=list(range(1, x.ndim)), keepdim=True)


def toward(a, b, scale=SCALE):
    """Classifier-free guidance from a, without the prompt, to b, with it."""
    return (1 - scale) * a + scale * b


def rescaled(a, b, share=0.7):
    """The guided output with its standard deviation drawn to that with the prompt (Lin et al.)."""
    guided = toward(a, b)
    return guided * (share * spread(b) / spread(guided) + 1 - share)


def kept(a, b):
    """The guided output, as long as that with the prompt along the last axis."""
    guided = toward(a, b)
    return guided * (b.pow(2).sum(-1, True) / guided.pow(2).sum(-1, True)).sqrt()


#: By the pipelines' own words: what they are, how many outputs a step has, and what they make.
WAYS = {
    "none": (PLAINEST, 1, lambda p: p[0]),
    "plain": (PLAINEST, 2, lambda p: toward(p[0], p[1])),
    "swapped": (PLAINEST, 2, lambda p: toward(p[1], p[0])),
    "added": (PLAINEST, 2, lambda p: p[0] + SCALE * (p[0] - p[1])),  # Z-Image, Krea 2
    "rescaled": (RESCALED, 2, lambda p: rescaled(p[0], p[1])),
    "rescaled-swapped": (RESCALED, 2, lambda p: rescaled(p[1], p[0])),
    "plain-beside-rescale": (RESCALED, 2, lambda p: toward(p[0], p[1])),
    "norm-kept": (PLAINEST, 2, lambda p: kept(p[0], p[1])),
    "norm-kept-swapped": (PLAINEST, 2, lambda p: kept(p[1], p[0])),  # Qwen-Image, Lumina 2
    "pix2pix": (
        EDITING,
        3,  # with both, with the picture, with neither
        lambda p: SCALE * p[0] + (OTHER - SCALE) * p[1] + (1 - OTHER) * p[2],
    ),
    "perturbed": (PERTURBED, 3, lambda p: toward(p[0], p[1]) + OTHER * (p[1] - p[2])),
    "guider": (GUIDED, 2, lambda p: rescaled(p[1], p[0], 0.3)),
}


def outputs(count, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 2, 4, 6, 5, generator=generator).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("way", WAYS)
def test_a_known_way_is_recognized_and_makes_others_alike(way, sign, dtype):
    pipe, count, make = WAYS[way]
    scales = [7.5, SCALE]  # the call's default, and what was given
    first = outputs(count, dtype=dtype)
    found = formula_of(pipe, scales, first, sign * make(first), "do else")
    others = outputs(count, seed=1)
    torch.testing.assert_close(found.combine(others), sign * make(others), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pipe", "count", "make"),
    [
        (PLAINEST, 1, lambda p: 1.01 * p[0]),
        (PLAINEST, 2, lambda p: 0.3 * p[0] + 0.9 * p[1]),
        (PLAINEST, 2, lambda p: rescaled(p[0], p[1])),  # the pipeline says nothing of it
        (RESCALED, 2, lambda p: rescaled(p[0], p[1], 0.6)),
        (PLAINEST, 2, lambda p: toward(p[0], p[1])[:1]),
        (PLAINEST, 3, lambda p: toward(p[0], p[1])),
        (EDITING, 3, lambda p: toward(p[0], p[1]) + OTHER * (p[1] - p[2])),
        (PERTURBED, 3, lambda p: SCALE * p[0] + (OTHER - SCALE) * p[1] + (1 - OTHER) * p[2]),
        (PLAINEST, 4, lambda p: p[0]),
        (GUIDED, 2, lambda p: toward(p[1], p[0])),
        (SimpleNamespace(guider=SkipLayerGuidance(skip_layer_guidance_layers=[0])), 2, sum),
    ],
)
def test_an_unknown_mixture_is_refused_in_one_line(pipe, count, make):
    first = outputs(count)
    with refuses("pipe"):
        formula_of(pipe, [7.5, SCALE], first, make(first), "do else")


@pytest.mark.parametrize("order", [1, -1])
def test_a_scale_that_nothing_states_is_fitted(order):
    first, others = outputs(2), outputs(2, seed=1)
    found = formula_of(PLAINEST, [7.5], first, toward(*first[::order], 1.37), "do else")
    assert found.scale == pytest.approx(1.37)
    assert (found.without, found.prompt) == ((0, 1) if order == 1 else (1, 0))
    torch.testing.assert_close(found.combine(others), toward(*others[::order], 1.37))


def test_scales_are_what_the_call_was_given_and_what_the_pipeline_holds():
    def call(guidance_scale=5.0, true_cfg_scale=None, height=64):
        raise NotImplementedError

    class Pipe:
        __call__ = staticmethod(call)
        _guidance_scale, _guidance_scale_2 = 3.0, 2.0

    assert guidance_scales(Pipe(), {"true_cfg_scale": 4}) == [3.0, 2.0, 5.0, 4.0]
    assert guidance_scales(Pipe(), {"guidance_scale": None}) == [3.0, 2.0]


# what a step costs


def rows_of(run):
    """The rows of the network's calls before the scheduler's first step."""
    everything = slice(0, len(run.prompts))
    scheduler = run.pipe.scheduler
    how = {"num_inference_steps": 3, "output_type": "latent"}
    with torch.no_grad(), counted(run.pipe) as rows, stopped(scheduler):
        run.call(everything, scheduler, run.generators(everything), **how)
    return sum(rows)


def served(name, scale):
    """Whether a pipeline makes use of a guidance scale, by its own documentation."""
    if name == "modular-sdxl":  # its guider has it
        return scale is None
    return name != "qwen-image" or scale != 3.0  # it has true_cfg_scale instead


@pytest.mark.parametrize("scale", [None, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("name", ZOO)
def test_evaluations_per_step_are_the_rows_of_the_network_s_calls(name, scale):
    pipe, options = built(name)
    how = {"guidance_scale": scale, "options": options}
    if not served(name, scale):
        with refuses("guidance_scale"):
            Run(pipe, ["a red boot"], **how)
        return
    run = Run(pipe, ["a red boot", "two blue bags"], **how)
    assert run.evaluations_per_step == rows_of(run) > 0


@pytest.mark.parametrize("name", ["qwen-image", "flux-dev", "hunyuan-video"])
@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({"true_cfg_scale": 4.0, "negative_prompt": ""}, 2),  # an empty one is one, too
        ({"true_cfg_scale": 4.0, "negative_prompt": "grey"}, 2),
        ({"true_cfg_scale": 4.0, "negative_prompt": None}, 1),
        ({"true_cfg_scale": 1.0, "negative_prompt": "grey"}, 1),
    ],
    ids=str,
)
def test_true_guidance_costs_two_rows_where_there_is_a_negative_prompt(name, changes, each):
    pipe, options = built(name)
    run = Run(pipe, ["a red boot"], options={**options, **changes})
    assert run.evaluations_per_step == rows_of(run) == each


def test_a_network_that_is_told_the_scale_is_asked_once():
    """A latent consistency model."""
    pipe = StableDiffusionPipeline(**parts(unet=unet(time_cond_proj_dim=8)), **PLAIN)
    pipe.set_progress_bar_config(disable=True)
    run = Run(pipe, ["a red boot"], guidance_scale=7.5)
    assert run.evaluations_per_step == rows_of(run) == 1


def test_the_pipelines_that_guide_from_a_scale_of_0_are_all_known():
    """By diffusers' own source: each class whose guidance begins there, and no other."""
    folder, found = Path(diffusers.__file__).parent / "pipelines", set()
    for file in folder.rglob("pipeline_*.py"):
        text = file.read_text()
        if re.search(r"return self\._guidance_scale > 0(\.0)?\n", text):
            found |= set(re.findall(r"^class (\w+Pipeline)\b", text, re.MULTILINE))
    assert len(found) > 3
    assert all(name.startswith(calls.FROM_ZERO) for name in found)
    assert {p for p in calls.FROM_ZERO if any(n.startswith(p) for n in found)} == {*calls.FROM_ZERO}


def test_perturbed_attention_alone_is_known():
    """Without a guidance scale above 1, a step has the prompt's output and the perturbed one."""
    pipe, first, others = built("sd15-pag")[0], outputs(2), outputs(2, seed=1)

    def alone(p):
        return p[0] + OTHER * (p[0] - p[1])

    scales = guidance_scales(pipe, {"guidance_scale": 1.0, "pag_scale": OTHER})
    found = formula_of(pipe, scales, first, alone(first), "do else")
    torch.testing.assert_close(found.combine(others), alone(others), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "scale", "remedy"),
    [
        ("qwen-image", 4, "give None or 1, and true_cfg_scale with a negative_prompt"),
        ("modular-sdxl", 4, "give None, and set pipe.guider"),
        ("sd15", -1, "give a number of at least 0"),
        ("sd15", float("nan"), "give a number of at least 0"),
    ],
)
def test_a_scale_that_is_of_no_use_is_one_line(name, scale, remedy):
    pipe, options = built(name)
    with refuses("guidance_scale"):
        Run(pipe, ["a red boot"], guidance_scale=scale, options=options)


def test_a_pipeline_without_guidance_is_given_none():
    class Unguided:
        def __call__(self, prompt, num_inference_steps=4):
            raise NotImplementedError

    calls.check_guidance(Unguided(), None)
    calls.check_guidance(Unguided(), 1.0)
    with refuses("guidance_scale"):
        calls.check_guidance(Unguided(), 4)
