"""Pictures by flow matching: Stable Diffusion 3 and the transformers that came after it."""

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests import tiny
from tests.zoo import words

SIZE = {"height": 32, "width": 32}
LETTERS = {"max_sequence_length": 64}
#: The shift of FLUX.1, which grows with the number of tokens.
DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}


def vae(levels=2):
    """The autoencoder of Stable Diffusion 3, FLUX and others, which halves `levels` - 1 times."""
    torch.manual_seed(2)
    blocks = {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return AutoencoderKL(**{**tiny.sd3()[0].vae.config, **blocks}).eval()


def aura_flow():
    text_encoder, tokenizer = words.umt5()
    torch.manual_seed(4)
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pos_embed_max_size=64,
    )
    pipe = AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=tiny.parts()["vae"],
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    return pipe, {**SIZE, **LETTERS}


def lumina2():
    """Its network is told 1 - t, and the pipeline turns what it answers around."""
    tokenizer = words.gemma_words()
    torch.manual_seed(4)
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        axes_lens=[300, 64, 64],
        cap_feat_dim=16,
    )
    pipe = Lumina2Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae(levels=4),  # the pipeline takes latents to be 8 times smaller than pictures
        text_encoder=words.gemma(tokenizer),
        tokenizer=tokenizer,
    )
    return pipe, {"height": 64, "width": 64}


def blocks(**changes):
    """What the transformers of FLUX and Chroma have in common: 4 channels in patches of 2 × 2."""
    torch.manual_seed(4)
    return {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 6, 6),
        **changes,
    }


def flux_parts():
    """FLUX.1-dev: the guidance scale is an input of the network."""
    (clip, words_1), (t5, words_2) = words.clip(), words.t5()
    made = blocks(pooled_projection_dim=16, guidance_embeds=True)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        "vae": vae(),
        "text_encoder": clip,
        "tokenizer": words_1,
        "text_encoder_2": t5,
        "tokenizer_2": words_2,
        "transformer": FluxTransformer2DModel(**made).eval(),
    }


def flux():
    return FluxPipeline(**flux_parts()), {**SIZE, **LETTERS}


def flux_kontext():
    """A picture's tokens stand behind those of the latents."""
    fixed = {"max_area": 32 * 32, "_auto_resize": False}
    options = {"image": tiny.PICTURE[..., :32, :32], **fixed, **SIZE, **LETTERS}
    return FluxKontextPipeline(**flux_parts()), options


def flux_2_vae():
    torch.manual_seed(2)
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def flux_2():
    """FLUX.2 Klein: its shift depends on the number of steps as well as on the tokens."""
    tokenizer = words.qwen_words()
    torch.manual_seed(4)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    pipe = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
        vae=flux_2_vae(),
        text_encoder=words.qwen3_writer(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
    return pipe, {**SIZE, **LETTERS, "text_encoder_out_layers": (1, 2, 3)}


def ideogram_4():
    """Another network predicts without the prompt, and the text's tokens stand before the
    picture's. Its schedule is its own, whatever its scheduler's shift."""
    tokenizer = words.qwen_words()
    made = {
        "in_channels": 16,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "adaln_dim": 16,
        "llm_features_dim": 13 * 16,  # of 13 layers of the text encoder
        "mrope_section": (3, 3, 2),
    }
    torch.manual_seed(4)
    networks = [Ideogram4Transformer2DModel(**made).eval() for _ in range(2)]
    pipe = Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flux_2_vae(),
        text_encoder=words.qwen3_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=networks[0],
        unconditional_transformer=networks[1],
    )
    return pipe, {**SIZE, **LETTERS, "guidance_schedule": None}


def chroma():
    """Chroma1-HD: FLUX with true guidance, and a shift that does not depend on the size."""
    text_encoder, tokenizer = words.t5()
    made = blocks(approximator_num_channels=16, approximator_hidden_dim=32, approximator_layers=1)
    pipe = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=ChromaTransformer2DModel(**made).eval(),
    )
    return pipe, {**SIZE, **LETTERS}


def qwen_vae():
    torch.manual_seed(2)
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def qwen_image():
    torch.manual_seed(4)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=qwen_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
    )
    pipe.tokenizer = words.qwen_words(pipe.prompt_template_encode)
    pipe.text_encoder = words.qwen_vl(pipe.tokenizer)
    return pipe, {"negative_prompt": " ", "true_cfg_scale": 4.0, **SIZE}


def z_image():
    """Z-Image-Turbo: lists of pictures go in and come out, with the sign turned around."""
    tokenizer = words.qwen_words()
    torch.manual_seed(4)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[600, 32, 32],
    )
    with torch.no_grad():  # these two are not initialized
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=words.qwen3(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )
    return pipe, SIZE


FLOWS = {
    "sd3": tiny.sd3,
    "aura-flow": aura_flow,
    "lumina2": lumina2,
    "flux-dev": flux,
    "flux-kontext": flux_kontext,
    "flux-2": flux_2,
    "chroma": chroma,
    "qwen-image": qwen_image,
    "z-image": z_image,
}
