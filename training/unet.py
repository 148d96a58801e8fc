"""The UNet: predicts ε on the autoencoder's latents, conditioned on the text tower.

Some captions are left out in training, for classifier-free guidance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from training import compositions
from training.compositions import MIX, draw_scene, sample
from training.loop import fit
from training.photographs import load_photographs

#: Pictures that the autoencoder encodes at a time.
BATCH = 64
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


def encode(runs: Path, vae: AutoencoderKL, count: int, seed: int) -> Tensor:
    """The scaled latents (n × 4 × 16 × 16, float16) of the first `count` training pictures.

    They are computed once for each autoencoder and each set of pictures; n is `count`, rounded up
    to whole batches.
    """
    photographs = load_photographs("train")
    file = runs / f"latents-{latents_key(vae, photographs, count, seed)}.safetensors"
    if not file.exists():
        latents = []
        for start in tqdm(range(0, count, BATCH), desc="latents", mininterval=20):
            indices = range(start, start + BATCH)
            pictures = np.stack([sample(seed, i, photographs)[1] for i in indices])
            pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
            with torch.no_grad():
                mean = vae.encode(pixels).latent_dist.mean
            latents.append((mean * vae.config.scaling_factor).half())
        runs.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        save_file({"latents": torch.cat(latents).contiguous()}, part)
        part.replace(file)  # a run that is stopped leaves no half-written latents
    return load_file(file)["latents"]


def latents_key(
    vae: AutoencoderKL, photographs: dict[str, np.ndarray], count: int, seed: int
) -> str:
    """A hash of all that the latents depend on, so that a retrained autoencoder gets new ones."""
    inputs = {"config": dict(vae.config), "count": count, "seed": seed, "mix": MIX, "batch": BATCH}
    state = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode())
    state.update(Path(compositions.__file__).read_bytes())  # how a picture is drawn
    state.update(weights_hash(vae).encode())
    for garment, pictures in photographs.items():
        state.update(garment.encode() + np.ascontiguousarray(pictures).tobytes())
    return state.hexdigest()[:12]


def weights_hash(*models: torch.nn.Module) -> str:
    """A hash of the weights of networks."""
    state = hashlib.sha256()
    for model in models:
        for name, weight in sorted(model.state_dict().items()):
            state.update(name.encode() + weight.contiguous().cpu().numpy().tobytes())
    return state.hexdigest()


def caption(seed: int, index: int, rng: np.random.Generator) -> str:
    """The caption of picture `index`; one in ten is empty, one in ten omits the ground."""
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
