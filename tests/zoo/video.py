"""Pipelines that draw frames: five-dimensional latents, or tokens of all frames in one row."""

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MotionAdapter,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video

from tests import tiny
from tests.zoo import words

FRAMES = {"height": 32, "width": 32, "num_frames": 5}
LETTERS = {"max_sequence_length": 64}


def animatediff():
    """Stable Diffusion 1.5 with layers that mix the frames."""
    torch.manual_seed(4)
    motion = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
    scheduler = DDIMScheduler(
        **betas, clip_sample=False, timestep_spacing="linspace", steps_offset=1
    )
    made = tiny.parts(motion_adapter=motion.eval(), scheduler=scheduler)
    pipe = AnimateDiffPipeline(**made)
    pipe.unet.eval()  # another one than was handed in: it has the motion layers, too
    return pipe, {**FRAMES, "num_frames": 2}


def cog_vae():
    torch.manual_seed(2)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=4,
    ).eval()


def cogvideox():
    """CogVideoX-2b: DDIM on a schedule of signal-to-noise ratios divided by 9, v-prediction."""
    text_encoder, tokenizer = words.t5()
    torch.manual_seed(4)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=64,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    pipe = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=cog_vae(),
        transformer=transformer.eval(),
        scheduler=scheduler,
    )
    return pipe, {**FRAMES, **LETTERS, "num_frames": 9}


def hunyuan_vae():
    torch.manual_seed(2)
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


def hunyuan_video():
    """The guidance scale is an input of the network; the text's template takes 95 tokens."""
    template = pipeline_hunyuan_video.DEFAULT_PROMPT_TEMPLATE["template"]
    tokenizer, (clip, words_2) = words.llama_words(template), words.clip()
    torch.manual_seed(4)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    pipe = HunyuanVideoPipeline(
        text_encoder=words.llama(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        vae=hunyuan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip,
        tokenizer_2=words_2,
    )
    return pipe, {**FRAMES, **LETTERS}


def ltx_vae():
    torch.manual_seed(2)
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        patch_size=1,
        patch_size_t=1,
    ).eval()


def ltx():
    """LTX-Video 0.9: a shift by the number of tokens, and sigmas that end at 0.1."""
    text_encoder, tokenizer = words.t5()
    torch.manual_seed(4)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    pipe = LTXPipeline(
        scheduler=scheduler,
        vae=ltx_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
    return pipe, {**FRAMES, **LETTERS}


def wan_transformer(seed):
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    ).eval()


def wan(**experts):
    text_encoder, tokenizer = words.umt5()
    torch.manual_seed(2)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1] * 4,
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        **experts,
    )
    return pipe, {**FRAMES, **LETTERS}


def wan21():
    return wan(transformer=wan_transformer(4))


def wan22():
    """Two networks: the second takes over below 0.875 of the training timesteps."""
    pipe, options = wan(
        transformer=wan_transformer(4), transformer_2=wan_transformer(5), boundary_ratio=0.875
    )
    return pipe, {**options, "guidance_scale_2": 2.0}


VIDEOS = {
    "animatediff": animatediff,
    "cogvideox": cogvideox,
    "hunyuan-video": hunyuan_video,
    "ltx": ltx,
    "wan-2.1": wan21,
    "wan-2.2": wan22,
}
