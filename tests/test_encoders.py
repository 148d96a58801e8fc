"""Image encoders, pictures decoded with a derivative, and what an encoder sees of an error."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from asddim_lib import calibrate
from asddim_lib.metrics.encoders import encoder_for, load_encoder
from asddim_lib.pipeline.decoding import decode, feature_directions
from asddim_lib.pipeline.run import Run
from tests import tiny
from tests.refusals import refuses

BLOCKS = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
PICTURES = (255 * interpolate(BLOCKS, (48, 64), mode="bilinear")).round().byte()
SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
SHAPE = {**SIZES, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
PROMPTS = ["a red boot", "two blue bags"]


def clip(folder):
    text = CLIPTextConfig(**SIZES, num_attention_heads=2, vocab_size=99)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=CLIPVisionConfig(**SHAPE).to_dict()
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder)


def siglip(folder):
    SiglipVisionModel(SiglipVisionConfig(**SHAPE)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(folder)


def dinov2(folder):
    small = {name: size for name, size in SHAPE.items() if name != "intermediate_size"}
    Dinov2Model(Dinov2Config(**small)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder)


KINDS = {"clip": clip, "siglip": siglip, "dinov2": dinov2}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny CLIP with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    clip(folder)
    return load_encoder(str(folder))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_embedding_is_what_the_model_s_own_processor_leads_to(kind, tmp_path):
    """Up to the rounding of the processor, which resizes whole levels of grey."""
    torch.manual_seed(0)
    KINDS[kind](tmp_path)
    encoder = load_encoder(str(tmp_path))
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in PICTURES]
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    embed = getattr(encoder.network, "get_image_features", encoder.network)
    expected = embed(pixel_values=pixels).pooler_output
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(encoder(PICTURES), expected, atol=0.006, rtol=0)
    assert (expected[0] - expected[1]).norm() > 0.02


def test_numbers_and_bytes_have_the_same_embedding_and_a_video_its_mean(encoder):
    torch.testing.assert_close(encoder(PICTURES / 255), encoder(PICTURES))
    video = torch.stack([PICTURES, PICTURES.flip(0)])
    expected = encoder(PICTURES).mean(0)
    torch.testing.assert_close(encoder(video), torch.stack([expected, expected]))


def test_an_embedding_has_a_derivative(encoder):
    pictures = (PICTURES[:1] / 255).requires_grad_()
    target = torch.linspace(-1, 1, 512)
    (gradient,) = torch.autograd.grad((encoder(pictures) * target).sum(), pictures)
    nudge = 0.05 * gradient / gradient.norm()
    above, below = ((encoder(pictures + s * nudge) * target).sum().item() for s in (1, -1))
    assert (above - below) / 0.1 == pytest.approx(gradient.norm().item(), rel=0.02)


def test_what_is_no_encoder_is_named(tmp_path):
    with refuses("encoder"):
        load_encoder("nowhere")
    with refuses("device"):
        load_encoder("bundled", "moon")


def test_a_bundled_model_has_the_bundled_encoder(pipe, encoder):
    assert encoder_for(pipe).name == "bundled"
    assert encoder_for(pipe, encoder) is encoder


def test_decoding_leaves_the_pipeline_and_torch_as_they_were():
    pipe, _ = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    pipe.watermark = mark = object()
    own = pipe.scheduler
    run = Run(pipe, PROMPTS, guidance_scale=2.0)
    ends = torch.randn(2, 4 * 32 * 32, requires_grad=True)
    with torch.no_grad():
        assert not decode(run, ends).requires_grad
        assert not torch.is_grad_enabled()
    assert decode(run, ends).requires_grad
    assert torch.is_grad_enabled()
    assert pipe.scheduler is own
    assert pipe.watermark is mark
    with refuses("ends"):
        decode(run, ends[:1])


def test_directions_carry_an_error_as_the_embedding_moves(encoder):
    """⟨direction, e⟩ is the change of ⟨u, f⟩ for the u of the prompt's seed, whatever the batch."""
    pipe, _ = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    run = Run(pipe, PROMPTS, seeds=(3, 8), guidance_scale=2.0)
    ends = torch.randn(2, 4 * 32 * 32, generator=torch.Generator().manual_seed(0))
    directions = feature_directions(run, ends, encoder, 2)
    alone = feature_directions(run.part(slice(1, 2)), ends[1:], encoder, 2)
    torch.testing.assert_close(directions[:, 1:], alone, rtol=1e-3, atol=1e-6)
    error = 0.02 * torch.randn(ends.shape, generator=torch.Generator().manual_seed(1))
    change = (encoder(decode(run, ends + error)) - encoder(decode(run, ends - error))) / 2
    for i, seed in enumerate(run.seeds):
        drawn = torch.randn(2, 512, generator=torch.Generator().manual_seed(2**32 + seed))
        np.testing.assert_allclose(directions[:, i] @ error[i], drawn @ change[i], rtol=0.05)


def test_a_profile_of_what_is_seen_says_by_whom_and_what_it_cost(encoder, tmp_path):
    """It counts what the network was asked, and comes from a cache as it was."""
    pipe, _ = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    rows = []
    how = {"guidance_scale": 2.0, "num_steps": 4, "estimator": "path", "feature_probes": 2}
    profile = calibrate(pipe, PROMPTS, encoder=encoder, cache=tmp_path, **how)
    again = calibrate(pipe, PROMPTS, encoder=encoder, cache=tmp_path, **how)
    assert again == profile
    assert profile.local_error["encoder"] == encoder.name
    assert "adjoint" not in profile.local_error
    hook = pipe.unet.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    both = calibrate(pipe, PROMPTS, encoder=encoder, adjoint_probes=1, **how)
    hook.remove()
    # A sweep's backward pass counts as two more evaluations than its forward pass.
    sweeps = 5 * 3 * 4
    assert both.evaluations == sum(rows) + 2 * sweeps
    alone = calibrate(pipe, PROMPTS, **{**how, "feature_probes": 0}, adjoint_probes=1)
    assert both.local_error["adjoint"] == alone.local_error["adjoint"]
    assert both.local_error["feature"] == profile.local_error["feature"]
