"""FID's own features: Inception-v3's pool3 of pictures, by torchmetrics and torch-fidelity, beside those of a folder of real ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from asddim_lib.errors import check
from asddim_lib.files import CACHE, write_whole

PICTURES = (".jpeg", ".jpg", ".png", ".webp")
#: The side that the paper brings pictures to before Inception, which brings them to 299 itself.
SIDE = 256


@dataclass(frozen=True)
class Inception:
    """Which real pictures a FID is from (`reference`, a folder), Inception's checkpoint (`weights`, a file; torch-fidelity's own without one), and
    how pictures are prepared: `paper` brings the shorter side to 256 and crops the centre, `plain` leaves them to Inception, as torchmetrics does."""

    reference: str
    weights: str = ""
    prepare: str = "paper"

    def __post_init__(self) -> None:
        check(self.prepare in ("paper", "plain"), "prepare", self.prepare, "use paper or plain")
        check(Path(self.reference).is_dir(), "reference", self.reference, "give a folder of real pictures")

    def network(self, device: str = "cpu") -> Callable[[Tensor], Tensor]:
        """pool3 of uint8 pictures on that device: n × 2,048. Raises ValueError where what it needs is missing or damaged."""
        return _network(self.weights, device)

    def features(self, images: Tensor, device: str = "cpu", batch: int = 50) -> Tensor:
        """The features (n × 2,048, float64) of pictures (n × 3 × h × w, uint8)."""
        network = self.network(device)
        return torch.cat([network(self._prepared(part).to(device)).cpu() for part in images.split(batch)]).double()

    def real(self, device: str = "cpu") -> tuple[Tensor, str]:
        """The features of the real pictures, and the hash of all that they hang on; computed once, and kept in `files.CACHE` under that hash.

        Raises ValueError for a folder without pictures, or a file that is none.
        """
        files = sorted(file for file in Path(self.reference).rglob("*") if file.suffix.lower() in PICTURES)
        check(bool(files), "reference", self.reference, f"the folder needs pictures ({', '.join(PICTURES)})")
        content = hashlib.sha256(f"{self.prepare} {hashlib.sha256(Path(self.weights).read_bytes()).hexdigest() if self.weights else ''}".encode())
        for file in files:
            content.update(hashlib.sha256(file.read_bytes()).digest())
        name = content.hexdigest()[:16]
        kept = CACHE / f"inception-{name}.safetensors"
        if not kept.exists():
            found = torch.cat([self._of_files(files[first : first + 50], device) for first in range(0, len(files), 50)])
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, partial(save_file, {"features": found}))
        return load_file(kept)["features"], name

    def _of_files(self, files: list[Path], device: str) -> Tensor:
        ready, network = [self._prepared(_read(file)) for file in files], self.network(device)
        alike = len({one.shape for one in ready}) == 1
        return torch.cat([network(some.to(device)).cpu() for some in ([torch.cat(ready)] if alike else ready)]).double()

    def _prepared(self, images: Tensor) -> Tensor:
        return prepared(images) if self.prepare == "paper" else images


@cache
def _network(weights: str, device: str) -> Any:
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        return NoTrainInceptionV3("inception-v3-compat", ["2048"], weights or None).to(device)
    except ModuleNotFoundError as error:
        raise ValueError("inception needs torch-fidelity and torchvision; pip install 'asddim-lib[inception]'") from error
    except Exception as error:  # the network's, pickle's and torch's own share no base
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"inception is {weights or 'the published checkpoint'!r}, which could not be loaded ({reason}); give pt_inception-2015-12-05's file") from error


def prepared(images: Tensor) -> Tensor:
    """Pictures (n × 3 × h × w, uint8) with the shorter side brought to 256, antialiased, and cut to the square in the middle."""
    scale = SIDE / min(images.shape[2:])
    high, wide = (round(side * scale) for side in images.shape[2:])
    resized = interpolate(images.float(), (high, wide), mode="bilinear", antialias=True).round().clamp(0, 255).to(torch.uint8)
    top, left = (high - SIDE) // 2, (wide - SIDE) // 2
    return resized[:, :, top : top + SIDE, left : left + SIDE]


def _read(file: Path) -> Tensor:
    """A picture as 1 × 3 × h × w."""
    try:
        with Image.open(file) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]
    except OSError as error:
        raise ValueError(f"reference has {file}, which is no picture that could be read ({error}); remove it or fetch it again") from error
