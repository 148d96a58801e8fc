"""FID's usual features: Inception-v3's pool3, by torchmetrics and torch-fidelity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from asddim_lib.errors import WrongUse, check
from asddim_lib.metrics.features.reference import Reference, file_hash

#: The side to which the paper resizes images. Inception itself resizes them to 299.
SIDE = 256


@dataclass(frozen=True)
class Inception(Reference):
    """Inception's pool3, 2,048 features.

    `weights` is a checkpoint's file; without one, torch-fidelity fetches the published checkpoint.
    `prepare` is "paper", which resizes the shorter side to 256 and crops the centre, or "plain",
    which leaves images as they are, as torchmetrics does.
    """

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
        raise WrongUse(
            "inception needs torch-fidelity and torchvision; pip install torch-fidelity torchvision"
        ) from error
    except Exception as error:  # the errors of pickle, torch and the download share no base class
        reason = str(error).strip().splitlines()[0]
        raise WrongUse(
            f"inception is {weights or 'the published checkpoint'!r}, which could not be loaded "
            f"({reason}); give the file of pt_inception-2015-12-05"
        ) from error


def cropped(images: Tensor) -> Tensor:
    """Images (n × 3 × h × w, uint8) with the shorter side resized to 256, cropped to the centre."""
    scale = SIDE / min(images.shape[2:])
    height, width = (round(side * scale) for side in images.shape[2:])
    resized = interpolate(images.float(), (height, width), mode="bilinear", antialias=True)
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    square = resized[:, :, top : top + SIDE, left : left + SIDE]
    return square.round().clamp(0, 255).to(torch.uint8)
