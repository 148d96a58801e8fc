"""What both generators learn from: latents of the autoencoder, and captions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from training import compositions
from training.compositions import MIX, draw_scene, sample
from training.photographs import load_photographs

#: Pictures that the autoencoder encodes at a time.
BATCH = 64


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
