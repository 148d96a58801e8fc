"""Pictures by transformers that multistep DPM-Solver++ draws: PixArt-Σ and Sana."""

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from tests import tiny
from tests.zoo import words

SIZE = {"height": 32, "width": 32, "use_resolution_binning": False}


def pixart_sigma():
    """Twice as many channels come out as go in: the pipeline drops the learned variance."""
    text_encoder, tokenizer = words.t5()
    torch.manual_seed(4)
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        use_additional_conditions=False,
    )
    pipe = PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=tiny.parts()["vae"],
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(),
    )
    return pipe, {"max_sequence_length": 64, "clean_caption": False, **SIZE}


def deep_vae():
    torch.manual_seed(2)
    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    ).eval()


def sana():
    """Flow matching, drawn by DPM-Solver++: it takes timesteps, but no sigmas."""
    tokenizer = words.gemma_words()
    torch.manual_seed(4)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
        patch_size=1,
        timestep_scale=1.0,
    )
    pipe = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=words.gemma(tokenizer),
        vae=deep_vae(),
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return pipe, SIZE


DITS = {"pixart-sigma": pixart_sigma, "sana": sana}
