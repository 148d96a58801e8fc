"""The flow-matching transformer, in Stable Diffusion 3's format.

It predicts the velocity ε − x₀ on the autoencoder's latents. Two CLIP text towers condition it;
there is no T5, which Stable Diffusion 3 allows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from training.latents import caption, encode, weights_hash
from training.loop import fit

#: Training draws log(σ / (1 − σ)) from a normal distribution with this mean and spread, as Stable
#: Diffusion 3 does. Its mean was 0.7 for the first 6,800 steps, which settles composition; outlines
#: stayed rough, and latents as small as these show them at less noise.
MEAN, SPREAD = -0.3, 1.2

#: In the place of T5's tokens the pipeline puts zeros, 256 unless `max_sequence_length` says so.
#: Training draws their number up to this, so that pictures depend little on it.
MOST_ZEROS = 512


class Zeros(TorchFunctionMode):
    """Within it, attention counts its last key `count` times.

    Tokens of zeros stay equal in every layer, as text has no positions: one of them that counts
    `count` times in the softmax is the same as `count` of them, and costs much less.
    """

    def __init__(self, count: float) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            keys = args[1].shape[-2]
            mask = torch.zeros(1, 1, 1, keys)
            mask[..., -1] = float(np.log(self.count))
            kwargs["attn_mask"] = mask.expand(1, 1, args[0].shape[-2], keys).to(args[0].dtype)
        return func(*args, **kwargs)


def make_model(text_width: int, pooled_width: int) -> SD3Transformer2DModel:
    """An untrained transformer for latents of 4 × 16 × 16, whose output is 0.

    `text_width` is the sum of the widths of both towers' hidden states, `pooled_width` that of
    their projections.
    """
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=7,
        attention_head_dim=48,
        num_attention_heads=4,
        joint_attention_dim=text_width,
        caption_projection_dim=192,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    # As in DiT: each block begins as the identity.
    blocks = model.transformer_blocks
    norms = [norm for block in blocks for norm in (block.norm1, block.norm1_context)]
    for layer in (*(norm.linear for norm in norms), model.norm_out.linear, model.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model


def make_pipeline(parts: Path, start: Path | None) -> StableDiffusion3Pipeline:
    """The pipeline of the finished parts, and of the transformer in `start` or a new one."""
    vae = AutoencoderKL.from_pretrained(parts / "vae", dtype=torch.float32).eval()
    vae.register_to_config(shift_factor=0.0)  # the pipeline adds it without asking for one
    folders = parts / "text_tower", parts / "text_tower_2"
    towers = [
        CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval()
        for folder in folders
    ]
    if start:
        transformer = SD3Transformer2DModel.from_pretrained(start, dtype=torch.float32)
    else:
        hidden = sum(tower.config.hidden_size for tower in towers)
        pooled = sum(tower.config.projection_dim for tower in towers)
        transformer = make_model(hidden, pooled)
    return StableDiffusion3Pipeline(
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        text_encoder=towers[0],
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        text_encoder_2=towers[1],
        tokenizer_2=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def train(
    runs: Path,
    out: Path,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    pictures: int,
    bf16: bool,
    start: Path | None,
) -> None:
    """Trains the transformer on latents under `runs`, and saves it in float16 in `out`.

    `start` is a folder with a trained transformer to continue from. Raises WrongUse if the
    checkpoint under `runs` was trained with another autoencoder or other text towers.
    """
    torch.manual_seed(seed)
    pipe = make_pipeline(out, start)
    inputs = weights_hash(pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    latents = encode(runs, pipe.vae.to(memory_format=torch.channels_last), pictures, seed)
    loss = make_loss(pipe, latents, batch=batch, seed=seed)
    options = {"steps": steps, "lr": lr, "seed": seed, "bf16": bf16}
    continued = start is not None
    model = fit(
        "flow", pipe.transformer, loss, runs=runs, inputs=inputs, continued=continued, **options
    )
    model.half().save_pretrained(out / "transformer")


def make_loss(
    pipe: StableDiffusion3Pipeline, latents: Tensor, *, batch: int, seed: int
) -> Callable[[int], dict[str, Tensor]]:
    """The flow-matching loss of a training step, which depends on the step's number only."""

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        chosen = rng.integers(0, len(latents), batch)
        captions = [caption(seed, int(i), rng) for i in chosen]
        with torch.no_grad():
            text, _, pooled, _ = pipe.encode_prompt(
                captions, None, None, do_classifier_free_guidance=False, max_sequence_length=1
            )
        clean = latents[chosen].float()
        noise = torch.randn_like(clean)
        # One σ in each of `batch` slices of equal probability.
        quantile = (torch.arange(batch) + torch.rand(batch)).div(batch).clamp(1e-6, 1 - 1e-6)
        sigma = (MEAN + SPREAD * torch.special.ndtri(quantile)).sigmoid()[torch.randperm(batch)]
        level = sigma[:, None, None, None]
        noisy = (1 - level) * clean + level * noise
        with Zeros(MOST_ZEROS ** rng.random()):
            velocity = pipe.transformer(noisy, text, pooled, 1000 * sigma).sample
        error = (velocity - (noise - clean)).square().mean((1, 2, 3))
        return {"loss": error.mean(), "high": error.detach()[sigma > 0.8].mean()}

    return loss
