"""The autoencoder: 64×64 pictures to 16×16×4 latents and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training.compositions import SIZE, sample
from training.loop import fit
from training.photographs import load_photographs


def make_model() -> AutoencoderKL:
    """An untrained autoencoder."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def train(
    runs: Path,
    out: Path,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    bf16: bool,
    start: Path | None,
    whole: float = 0.3,
) -> None:
    """Trains on crops, then, for the share `whole` of the steps, on whole pictures.

    A crop is a quarter of the area, and holds a thing. With `start`, an autoencoder's folder, only
    its decoder is trained: its latents stay those that a UNet has learned.
    """
    torch.manual_seed(seed)
    model = AutoencoderKL.from_pretrained(start, dtype=torch.float32) if start else make_model()
    model.to(memory_format=torch.channels_last)
    if start:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    photographs = load_photographs("train")

    def loss(step: int) -> dict[str, torch.Tensor]:
        pictures = [sample(seed, step * batch + i, photographs)[1] for i in range(batch)]
        if step < (1 - whole) * steps:
            rng = np.random.default_rng([seed, step])
            pictures = [crop(picture, rng) for picture in pictures]
        pixels = to_pixels(pictures).to(memory_format=torch.channels_last)
        posterior = model.encode(pixels).latent_dist
        error = F.mse_loss(model.decode(posterior.sample()).sample, pixels)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * (error.detach() / 4).log10()
        return {"loss": error + 2e-5 * kl, "psnr": psnr, "kl": kl.detach()}

    options = {"steps": steps, "lr": lr, "seed": seed, "bf16": bf16, "weight_decay": 1e-4}
    fit("vae", model, loss, runs=runs, continued=start is not None, **options)
    if not start:
        pictures = [sample(seed, -1 - i & 0xFFFFFFFF, photographs)[1] for i in range(512)]
        with torch.no_grad():
            latents = model.encode(to_pixels(pictures)).latent_dist.mean
        model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    model.half().save_pretrained(out / "vae")


def crop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The most varied of three windows of 32 × 32 pixels, so that it holds a thing."""
    corners = rng.integers(0, SIZE - 32 + 1, (3, 2))
    windows = [picture[y : y + 32, x : x + 32] for y, x in corners]
    return max(windows, key=lambda window: window.std(axis=(0, 1)).sum())


def to_pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    """Pictures (each h × w × 3, uint8) as a batch (n × 3 × h × w) in −1 … 1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
