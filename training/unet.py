"""The UNet: predicts ε on the autoencoder's latents, conditioned on the text tower.

Some captions are left out in training, for classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from training.latents import caption, encode, weights_hash
from training.loop import fit

#: Stable Diffusion's own noise schedule.
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}


def make_model(width: int) -> UNet2DConditionModel:
    """An untrained UNet; `width` is the size of the text tower's hidden states."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(48, 96, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=16,
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
    """Trains the UNet on latents under `runs`, and saves it in float16 in `out`.

    `start` is a folder with a trained UNet to continue from. Raises WrongUse if the checkpoint
    under `runs` was trained with another autoencoder or text tower.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(out / "vae", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32).eval()
    inputs = weights_hash(vae, text)
    latents = encode(runs, vae.to(memory_format=torch.channels_last), pictures, seed)
    if start:
        model = UNet2DConditionModel.from_pretrained(start, dtype=torch.float32)
    else:
        model = make_model(text.config.hidden_size)
    model.to(memory_format=torch.channels_last)
    loss = make_loss(model, latents, tokenizer, text, batch=batch, seed=seed)
    continued = start is not None
    options = {"steps": steps, "lr": lr, "seed": seed, "bf16": bf16, "continued": continued}
    fit("unet", model, loss, runs=runs, inputs=inputs, **options)
    model.half().save_pretrained(out / "unet")


def make_loss(
    model: UNet2DConditionModel,
    latents: Tensor,
    tokenizer: CLIPTokenizer,
    text: CLIPTextModel,
    *,
    batch: int,
    seed: int,
) -> Callable[[int], dict[str, Tensor]]:
    """The weighted ε loss of a training step, which depends on the step's number only."""
    scheduler = DDIMScheduler(**SCHEDULE)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    # At low noise, the geometric mean of the plain ε loss and min-SNR-5. At high noise more, where
    # a small error in ε is a large error in colour: composition is learned sooner, texture stays.
    weight = (snr.clamp(max=5) / snr).sqrt() * snr.clamp(max=1) ** -0.25

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        chosen = rng.integers(0, len(latents), batch)
        captions = [caption(seed, int(i), rng) for i in chosen]
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt")
        with torch.no_grad():
            hidden = text(**tokens).last_hidden_state
        clean = latents[chosen].float()
        noise = torch.randn_like(clean)
        t = ((torch.arange(batch) + torch.rand(batch)) * 1000 / batch).long()[torch.randperm(batch)]
        noisy = scheduler.add_noise(clean, noise, t).contiguous(memory_format=torch.channels_last)
        error = (model(noisy, t, hidden).sample - noise).square().mean((1, 2, 3))
        return {
            "loss": (weight[t] * error).mean(),
            "plain": error.detach().mean(),
            "high": error.detach()[t > 600].mean(),
        }

    return loss
