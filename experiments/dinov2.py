"""DINOv2's features, beside Inception's."""

from __future__ import annotations

from functools import cache

from torch import Tensor
from torch.nn.functional import interpolate

from asddim_lib.metrics.encoders import Encoder, as_bytes, normalized, pretrained


@cache
def load_dinov2(weights: str = "facebook/dinov2-large", device: str = "cpu") -> Encoder:
    """The class token of a transformers DINOv2, for FD-DINOv2 (Stein et al. 2023).

    `weights` is a folder or a hub id; the large model is usual, and has 1,024 features. FD-DINOv2
    follows human judgement more closely than FID. Raises WrongUse for weights that cannot be
    loaded.
    """
    from transformers import Dinov2Model

    (network,) = pretrained("dinov2", weights, device, Dinov2Model)
    return Encoder("dinov2", network, _squeezed, "224", weights)


def _squeezed(pictures: Tensor) -> Tensor:
    """DINOv2's input: 224 × 224, resized as Pillow does, which torch has for uint8 on CPUs only."""
    pixels = interpolate(as_bytes(pictures).cpu(), (224, 224), mode="bicubic", antialias=True)
    return normalized(pixels / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
