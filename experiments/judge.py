"""The bundled judge: a small classifier of real compositions.

Its features serve FID; its heads read an image's attributes.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        # A new block starts as the identity, so that a trained judge can grow deeper.
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm1(x)))
        return x + self.second(F.silu(self.norm2(h)))


# `Tensor.diff` cannot be traced for the page that has the model in it.
def _down(x: Tensor) -> Tensor:
    return x[:, :, 1:] - x[:, :, :-1]


def _across(x: Tensor) -> Tensor:
    return x[..., 1:] - x[..., :-1]


def _detail(x: Tensor) -> Tensor:
    """Log energies of first and second differences, at full and half size: n × c × h × w to n × 4c.

    Mean activations hide blur and noise, and the energy of fine detail shows them. The logarithm
    keeps small energies apart.
    """
    energies = []
    for scale in (x, F.avg_pool2d(x, 2)):
        dy, dx = _down(scale), _across(scale)
        energies += [
            dy.square().mean((2, 3)) + dx.square().mean((2, 3)),
            _down(dy).square().mean((2, 3)) + _across(dx).square().mean((2, 3)),
        ]
    return torch.cat(energies, 1).add(1e-5).log()


class Judge(ModelMixin, ConfigMixin):
    """A convolutional classifier with one head per attribute and multi-scale features.

    `attributes` maps each attribute to its class names. The head `damage` serves training only: it
    regresses the blur and the noise added to an image, which keeps fine detail in the features. A
    plain classifier discards it.
    """

    @register_to_config
    def __init__(
        self,
        attributes: dict[str, list[str]],
        channels: tuple[int, ...] = (16, 32, 64, 128),
        num_features: int = 192,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.downs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(channels)
        )
        self.blocks = nn.ModuleList(_Residual(c) for c in channels[1:])
        self.deeper = nn.ModuleList(
            nn.Identity() if i == 0 else _Residual(c) for i, c in enumerate(channels[1:])
        )
        self.last = nn.Conv2d(channels[-1], channels[-1], 4, stride=2, padding=1)
        self.project = nn.Linear(channels[-1] * 16 + sum(channels) + 12, num_features)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(num_features, len(classes)) for name, classes in attributes.items()}
        )
        self.damage = nn.Linear(num_features, 2)
        self.num_features = num_features

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (n × num_features, float32).

        Images are n × 3 × 64 × 64, uint8, or float in [0, 1].
        """
        x = images.to(self.stem.weight.dtype)
        x = x / 127.5 - 1 if images.dtype == torch.uint8 else 2 * x - 1
        scales = [_detail(x)]
        x = self.stem(x)
        scales.append(F.silu(x).mean((2, 3)))
        for down, block, deeper in zip(self.downs, self.blocks, self.deeper, strict=True):
            x = deeper(block(down(F.silu(x))))
            scales.append(F.silu(x).mean((2, 3)))
        x = F.silu(self.last(F.silu(x)))
        return self.project(torch.cat([x.flatten(1), *scales], 1)).float()

    forward = features

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (n × classes, float32) of every attribute, from `features`."""
        hidden = F.silu(features.to(self.damage.weight.dtype))
        return {name: head(hidden).float() for name, head in self.heads.items()}
