"""Each tiny pipeline of the zoo draws what its weights, its prompt and its seed say."""

import functools

import diffusers
import pytest
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

from tests.zoo import ZOO, draw

CLASSES = {
    "StableDiffusionPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline",
    "AnimateDiffPipeline",
    "CogVideoXPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "StableDiffusion3Pipeline",
    "AuraFlowPipeline",
    "Lumina2Pipeline",
    "FluxPipeline",
    "FluxKontextPipeline",
    "Flux2KleinPipeline",
    "ChromaPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
    "HunyuanVideoPipeline",
    "LTXPipeline",
    "WanPipeline",
    "StableDiffusionXLModularPipeline",
    "FluxModularPipeline",
}


@functools.cache
def built(name):
    return ZOO[name]()


@functools.cache
def drawn(name):
    return draw(*built(name))


def networks(pipe):
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


@pytest.mark.parametrize("name", ZOO)
def test_it_draws_what_its_seed_and_its_prompt_say(name):
    """A second pipeline, built afresh, draws the same: nothing in it is left to chance."""
    pipe, options = built(name)
    latents = drawn(name)
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()
    assert len(pipe.scheduler.timesteps) == (4 if "PNDM" in type(pipe.scheduler).__name__ else 3)
    assert torch.equal(draw(*ZOO[name]()), latents)
    assert not torch.equal(draw(pipe, options, seed=1), latents)
    assert not torch.equal(draw(pipe, options, prompt="two blue bags"), latents)


@pytest.mark.parametrize("name", ZOO)
def test_it_is_tiny_and_ready_to_draw(name):
    parts = networks(built(name)[0])
    assert sum(weight.numel() for part in parts for weight in part.parameters()) < 500_000
    assert not any(part.training for part in parts), "dropout would draw another picture each time"


def test_the_classes_are_diffusers_own():
    kinds = {type(built(name)[0]) for name in ZOO}
    assert {kind.__name__ for kind in kinds} == CLASSES
    assert all(getattr(diffusers, kind.__name__) is kind for kind in kinds)


@pytest.mark.parametrize(("name", "end"), [("ltx", 0.1), ("qwen-image", 0.02)])
def test_a_checkpoint_s_sigmas_end_where_its_config_says(name, end):
    drawn(name)
    assert built(name)[0].scheduler.sigmas[-2:].tolist() == pytest.approx([end, 0.0])


def test_both_experts_of_wan_draw():
    pipe, options = ZOO["wan-2.2"]()
    seen = []
    for number, expert in enumerate((pipe.transformer, pipe.transformer_2)):
        expert.register_forward_pre_hook(lambda *_, number=number: seen.append(number))
    draw(pipe, options)
    assert seen == [0, 0, 1, 1, 1, 1]


def test_qwen_s_template_is_cut_where_the_prompt_begins():
    pipe, _ = built("qwen-image")
    text = pipe.prompt_template_encode.format("a red boot")
    tokens = pipe.tokenizer(text).input_ids[pipe.prompt_template_encode_start_idx :]
    assert pipe.tokenizer.decode(tokens).startswith("a red boot<|im_end|>")


def test_hunyuan_s_template_is_cut_where_the_prompt_begins():
    tokenizer, template = built("hunyuan-video")[0].tokenizer, DEFAULT_PROMPT_TEMPLATE
    tokens = tokenizer(template["template"].format("a red boot")).input_ids
    assert tokenizer.decode(tokens[template["crop_start"] :]) == "a red boot<|eot_id|>"


def test_blocks_draw_what_the_pipeline_draws():
    """Modular SDXL and FLUX are other code with the same parts."""
    torch.testing.assert_close(drawn("modular-sdxl"), drawn("sdxl"), atol=1e-4, rtol=0)
    rows = drawn("flux-dev")
    latents = diffusers.FluxPipeline._unpack_latents(rows, 32, 32, vae_scale_factor=2)
    torch.testing.assert_close(drawn("modular-flux"), latents, atol=1e-5, rtol=0)
