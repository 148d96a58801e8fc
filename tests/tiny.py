"""Real pipeline classes of diffusers, tiny and with random weights."""

import string

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from asddim_lib.models.load import data_folder

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unet(**changes):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DConditionModel(
        **{
            "sample_size": 32,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            **blocks,
            **changes,
        }
    ).eval()


def text(kind=CLIPTextModel, **changes):
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        **changes,
    )
    return kind(config).eval()


def autoencoder(*channels):
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=channels,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    ).eval()


def parts(**changes):
    words = CLIPTokenizer.from_pretrained(data_folder() / "model" / "tokenizer")
    return {
        "vae": autoencoder(8, 16),
        "unet": unet(),
        "text_encoder": text(),
        "tokenizer": words,
        "scheduler": DDIMScheduler(**SD),
        **changes,
    }


PLAIN = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd():
    return StableDiffusionPipeline(**parts(), **PLAIN), {}


def coarse():
    """Stable Diffusion whose pictures, as wide as the judge needs them, have 8 × 8 latents."""
    made = parts(vae=autoencoder(8, 8, 8, 16), unet=unet(sample_size=8))
    return StableDiffusionPipeline(**made, **PLAIN)


def easy():
    """Stable Diffusion with a network in closed form, ε = √(1 − ᾱ) x / (v ᾱ + 1 − ᾱ).

    It is that of normal data in two channels of the latents, v = 1, and of a single point in the
    others, v = 0: at the last σ it still removes noise, as a trained network does, and a random one
    does not.
    """
    pipe, _ = sd()
    bars, variances = pipe.scheduler.alphas_cumprod, torch.tensor([1.0, 1.0, 0.0, 0.0])

    def forward(sample, timestep, *_, **__):
        bar = bars[int(timestep)]
        total = variances.reshape(-1, 1, 1) * bar + 1 - bar
        return ((1 - bar) ** 0.5 * sample / total,)

    pipe.unet.forward = forward
    return pipe


def sdxl():
    wide = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 16,
        "cross_attention_dim": 32,
    }
    more = {
        "text_encoder_2": text(CLIPTextModelWithProjection, projection_dim=16),
        "tokenizer_2": parts()["tokenizer"],
        "unet": unet(**wide),
    }
    return StableDiffusionXLPipeline(**parts(**more), add_watermarker=False), {
        "height": 64,
        "width": 64,
    }


def sd3():
    torch.manual_seed(4)
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=4,
        attention_head_dim=8,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
    )
    made = parts()
    vae = AutoencoderKL(
        **{
            **made["vae"].config,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "shift_factor": 0.06,
        }
    )
    towers = [text(CLIPTextModelWithProjection, projection_dim=32) for _ in range(2)]
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -2.0) for letter in "▁" + string.ascii_letters),
    ]
    last = T5EncoderModel(
        T5Config(d_model=32, d_ff=32, d_kv=8, num_heads=2, num_layers=1, vocab_size=len(letters))
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=towers[0],
        tokenizer=made["tokenizer"],
        text_encoder_2=towers[1],
        tokenizer_2=made["tokenizer"],
        text_encoder_3=last,
        tokenizer_3=T5TokenizerFast(vocab=letters, extra_ids=0),
    ), {"height": 64, "width": 64}


def sdxl_base():
    pipe, how = sdxl()
    return pipe, {**how, "denoising_end": 0.7}


def img2img():
    return StableDiffusionImg2ImgPipeline(**parts(), **PLAIN), {"image": PICTURE, "strength": 0.6}


def inpaint():
    return StableDiffusionInpaintPipeline(**parts(unet=unet(in_channels=9)), **PLAIN), {
        "image": PICTURE,
        "mask_image": (PICTURE[:, :1] > 0.5).float(),
        "height": 64,
        "width": 64,
    }


def controlnet():
    made = parts()
    torch.manual_seed(3)
    guide = ControlNetModel.from_unet(made["unet"], conditioning_embedding_out_channels=(8, 16))
    return StableDiffusionControlNetPipeline(**made, controlnet=guide.eval(), **PLAIN), {
        "image": torch.rand(1, 3, 64, 64)
    }
