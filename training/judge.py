"""The judge, trained on real compositions of the training photographs.

It is never used to train the generator.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from experiments.judge import Judge
from training.compositions import (
    COLOURS,
    COUNTS,
    GARMENTS,
    GROUNDS,
    RELATIONS,
    Scene,
    sample,
)
from training.loop import fit
from training.photographs import load_photographs

HEADS = {
    "garment_a": list(GARMENTS),
    "colour_a": list(COLOURS),
    "garment_b": list(GARMENTS),
    "colour_b": list(COLOURS),
    "ground": list(GROUNDS),
    "count": list(COUNTS),
    "relation": list(RELATIONS),
}
#: Shares of the categories in the judge's training: more of those where garments are hard to tell,
#: fewer of several alike.
MIX = {"colours": 0.25, "counting": 0.1, "positional": 0.5, "unusual": 0.15}
UNSEEN = -100  # the label of an attribute that the scene does not have


def labels(scenes: list[Scene]) -> dict[str, Tensor]:
    """Class indices of every attribute; UNSEEN where a scene has none."""

    def one(scene: Scene, head: str) -> int:
        value = getattr(scene, head)
        if head == "count":
            return value - 1 if scene.relation == "none" else UNSEEN
        return HEADS[head].index(value) if value else UNSEEN

    return {head: torch.tensor([one(scene, head) for scene in scenes]) for head in HEADS}


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each image (n × c × h × w) with its own sigma (n), in pixels."""
    reach = torch.arange(-4, 5)
    kernel = torch.exp(-0.5 * (reach / sigma[:, None].clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)
    x = F.pad(images, (4, 4, 4, 4), mode="replicate").flatten(0, 1)[None]
    x = F.conv2d(x, kernel[:, None, :, None], groups=len(kernel))
    return F.conv2d(x, kernel[:, None, None, :], groups=len(kernel)).reshape(images.shape)


def train(
    runs: Path, out: Path, *, steps: int, batch: int, lr: float, seed: int, start: Path | None
) -> None:
    """Trains on from `start`, a judge's folder; blocks that it lacks begin as the identity."""
    torch.manual_seed(seed)
    model = Judge(HEADS)
    if start:
        weights = load_file(start / "diffusion_pytorch_model.safetensors")
        weights = {key: value.float() for key, value in weights.items()}
        model.load_state_dict({**model.state_dict(), **weights})
    model.to(memory_format=torch.channels_last)
    # Mirrored photographs too: the garments' labels hold, and fewer photographs are learnt by
    # heart.
    photographs = {
        garment: np.concatenate([p, p[..., ::-1]])
        for garment, p in load_photographs("train").items()
    }

    def loss(step: int) -> dict[str, Tensor]:
        scenes, pictures = zip(
            *(sample(seed, step * batch + i, photographs, MIX) for i in range(batch)), strict=True
        )
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
        kind = torch.rand(batch)
        sigma = torch.where(kind < 0.05, 1.6 * torch.rand(batch), 0)
        noise = torch.where(kind > 0.95, 0.1 * torch.rand(batch), 0)
        images = (
            blur(images, sigma) + noise[:, None, None, None] * torch.randn_like(images)
        ).clamp(0, 1)
        features = model(images.contiguous(memory_format=torch.channels_last))
        logits, wanted = model.logits(features), labels(list(scenes))
        entropy = sum(
            F.cross_entropy(logits[h], wanted[h], ignore_index=UNSEEN, label_smoothing=0.05)
            for h in HEADS
        )
        damage = F.mse_loss(model.damage(F.silu(features)), torch.stack([sigma, 10 * noise], 1))
        right = (logits["garment_a"].argmax(1) == wanted["garment_a"]).float().mean()
        return {"loss": entropy + 2 * damage, "damage": damage.detach(), "garment_a": right}

    options = {"steps": steps, "lr": lr, "seed": seed, "weight_decay": 0.05, "cooldown": 0.7}
    fit("judge", model, loss, runs=runs, continued=start is not None, **options)
    model.half().save_pretrained(out / "judge")
