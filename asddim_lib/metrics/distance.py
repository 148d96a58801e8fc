"""The distance of samples from a reference solution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check


def relative_distance(latents: Tensor, goal: Tensor) -> Tensor:
    """The distance of each sample from its own goal, over the goals' spread about their mean.

    Both are n × d; the result has shape (n,). The spread is the root of the mean squared distance
    from the mean. Raises WrongUse for fewer than 2 goals: their spread is 0.
    """
    check(len(goal) >= 2, "goal", " × ".join(map(str, goal.shape)), "give at least 2 prompts")
    spread = (goal - goal.mean(0)).square().sum(1).mean().sqrt()
    return (latents - goal).norm(dim=1) / spread


def images_to_uint8(images: np.ndarray) -> Tensor:
    """A pipeline's images (… × h × w × 3, float in [0, 1]) as … × 3 × h × w, uint8.

    Values are rounded as diffusers rounds them for PNG.
    """
    levels = torch.from_numpy((images * 255).round().astype(np.uint8))
    return levels.movedim(-1, -3).contiguous()
