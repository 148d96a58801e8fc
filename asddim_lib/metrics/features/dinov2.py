"""FD-DINOv2: Fréchet's distance between features of a self-supervised network.

It follows human judgement more closely than Inception's (Stein et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from asddim_lib.errors import WrongUse
from asddim_lib.metrics.features.reference import Reference, file_hash

#: DINOv2's training input: pixels per side, and ImageNet's mean and standard deviation per channel.
SIDE, MEAN, SPREAD = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Dinov2(Reference):
    """The class token of a transformers DINOv2 model.

    `weights` is a folder or a hub id. The large model is usual, and has 1,024 features.
    """

    weights: str = "facebook/dinov2-large"
    name = "dinov2"

    def network(self, device: str = "cpu") -> Callable[[Tensor], Tensor]:
        return _network(self.weights, device)

    def prepared(self, images: Tensor) -> Tensor:
        # On uint8, this resize equals Pillow's.
        resized = interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True)
        mean, spread = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, SPREAD))
        return (resized / 255 - mean) / spread

    def identity(self) -> str:
        files = sorted(Path(self.weights).glob("*.safetensors"))
        return f"{self.weights} {' '.join(file_hash(str(file)) for file in files)}"


@cache
def _network(weights: str, device: str) -> Callable[[Tensor], Tensor]:
    from transformers import Dinov2Model

    try:
        model = Dinov2Model.from_pretrained(weights, dtype=torch.float32).eval().to(device)
    except Exception as error:  # transformers, safetensors and the hub share no base class
        reason = str(error).strip().splitlines()[0]
        raise WrongUse(
            f"dinov2 is {weights!r}, which could not be loaded ({reason}); "
            f"give a folder, or fetch it once with `hf download {weights}`"
        ) from error

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return model(images).pooler_output

    return features
