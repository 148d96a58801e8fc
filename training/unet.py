"""The UNet: ε-prediction on the autoencoder's latents, conditioned on the text tower, with caption dropout for guidance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from training.compositions import MIX, draw_scene, load_photographs, sample
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


def encode(runs: Path, vae: AutoencoderKL, count: int, seed: int) -> Tensor:
    """The scaled latents of the first `count` training pictures, made once and kept."""
    cache = runs / "latents.safetensors"
    if not cache.exists():
        photographs, latents = load_photographs("train"), []
        for start in tqdm(range(0, count, 64), desc="latents", mininterval=20):
            pictures = np.stack([sample(seed, i, photographs)[1] for i in range(start, start + 64)])
            with torch.no_grad():
                mean = vae.encode(
                    torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
                ).latent_dist.mean
            latents.append((mean * vae.config.scaling_factor).half())
        runs.mkdir(parents=True, exist_ok=True)
        save_file({"latents": torch.cat(latents).contiguous()}, cache)
    return load_file(cache)["latents"]


def caption(seed: int, index: int, rng: np.random.Generator) -> str:
    """The caption of picture `index`; one in ten is empty (for guidance), one in ten leaves out the ground."""
    stream = np.random.default_rng([seed, index])
    scene = draw_scene(stream, str(stream.choice(list(MIX), p=list(MIX.values()))))
    u = rng.random()
    return "" if u < 0.1 else scene.subject if u < 0.2 else scene.caption


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
    torch.manual_seed(seed)
    vae = (
        AutoencoderKL.from_pretrained(out / "vae", dtype=torch.float32)
        .eval()
        .to(memory_format=torch.channels_last)
    )
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32).eval()
    latents = encode(runs, vae, pictures, seed)
    model = (
        UNet2DConditionModel.from_pretrained(start, dtype=torch.float32)
        if start
        else make_model(text.config.hidden_size)
    )
    model.to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler(**SCHEDULE)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    # Half-way (in logarithms) between the plain ε loss and min-SNR-5 at low noise; at high noise, where a small error in ε is a large
    # one in the picture's colours, more: composition is learned sooner, texture is kept.
    weight = (snr.clamp(max=5) / snr).sqrt() * snr.clamp(max=1) ** -0.25

    def loss(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, step])
        chosen = rng.integers(0, len(latents), batch)
        captions = [caption(seed, int(i), rng) for i in chosen]
        with torch.no_grad():
            hidden = text(
                **tokenizer(captions, padding="max_length", return_tensors="pt")
            ).last_hidden_state
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

    fit(
        "unet",
        model,
        loss,
        steps=steps,
        lr=lr,
        runs=runs,
        seed=seed,
        bf16=bf16,
        continued=start is not None,
    )
    model.half().save_pretrained(out / "unet")
