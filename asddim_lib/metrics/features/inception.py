"""FID's own features: Inception-v3's pool3, by torchmetrics and torch-fidelity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from asddim_lib.errors import check
from asddim_lib.metrics.features.reference import Reference, file_hash

#: The side that the paper brings pictures to before Inception, which brings them to 299 itself.
SIDE = 256


@dataclass(frozen=True)
class Inception(Reference):
    """pool3 (2,048 numbers) of a checkpoint, `weights`, a file, or torch-fidelity's own without one; and how pictures are prepared: `paper`
    brings the shorter side to 256 and crops the centre, `plain` leaves them to Inception, as torchmetrics does."""

    prepare: str = "paper"
    name = "inception"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.prepare in ("paper", "plain"), "prepare", self.prepare, "use paper or plain")

    def network(self, device: str = "cpu") -> Callable[[Tensor], Tensor]:
        return _network(self.weights, device)

    def prepared(self, images: Tensor) -> Tensor:
        return cropped(images) if self.prepare == "paper" else images

    def identity(self) -> str:
        return f"{self.prepare} {file_hash(self.weights)}"


@cache
def _network(weights: str, device: str) -> Any:
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], weights or None).to(device)
    except ModuleNotFoundError as error:
        raise ValueError(
            "inception needs torch-fidelity and torchvision; pip install 'asddim-lib[inception]'"
        ) from error
    except Exception as error:  # the network's, pickle's and torch's own share no base
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"inception is {weights or 'the published checkpoint'!r}, which could not be loaded ({reason}); give pt_inception-2015-12-05's file"
        ) from error


def cropped(images: Tensor) -> Tensor:
    """Pictures (n × 3 × h × w, uint8) with the shorter side brought to 256, antialiased, and cut to the square in the middle."""
    scale = SIDE / min(images.shape[2:])
    high, wide = (round(side * scale) for side in images.shape[2:])
    resized = (
        interpolate(images.float(), (high, wide), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )
    top, left = (high - SIDE) // 2, (wide - SIDE) // 2
    return resized[:, :, top : top + SIDE, left : left + SIDE]
