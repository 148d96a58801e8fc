"""How far samples lie from their goal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def relative_distance(latents: Tensor, goal: Tensor) -> Tensor:
    """How far each sample (n × d) lies from its own goal, over the goals' spread about their mean: shape (n,)."""
    spread = (goal - goal.mean(0)).square().sum(1).mean().sqrt()
    return (latents - goal).norm(dim=1) / spread


def images_to_uint8(images: np.ndarray) -> Tensor:
    """A pipeline's float images (n × h × w × 3 in [0, 1]) as n × 3 × h × w, uint8, rounded as diffusers rounds them for PNG."""
    return (
        torch.from_numpy((images * 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    )
