"""Pictures as a network's features, beside those of a folder of real ones, which are looked at once."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.files import CACHE, write_whole

PICTURES = (".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Reference(ABC):
    """A folder of real pictures (`reference`), and a network whose `weights` are a file, a folder or a hub id; a kind of network is a subclass."""

    reference: str
    weights: str = ""
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check(
            Path(self.reference).is_dir(),
            "reference",
            self.reference,
            "give a folder of real pictures",
        )

    @abstractmethod
    def network(self, device: str = "cpu") -> Callable[[Tensor], Tensor]:
        """The features (n × d) of prepared pictures on that device. Raises ValueError where what it needs is missing or damaged."""

    @abstractmethod
    def prepared(self, images: Tensor) -> Tensor:
        """What the network is given of pictures (n × 3 × h × w, uint8)."""

    @abstractmethod
    def identity(self) -> str:
        """What features hang on, beside the pictures."""

    def features(self, images: Tensor, device: str = "cpu", batch: int = 50) -> Tensor:
        """The features (n × d, float64) of pictures (n × 3 × h × w, uint8)."""
        network = self.network(device)
        return torch.cat(
            [network(self.prepared(part).to(device)).cpu() for part in images.split(batch)]
        ).double()

    def real(self, device: str = "cpu") -> tuple[Tensor, str]:
        """The features of the real pictures, and the hash of all that they hang on; computed once, and kept in `files.CACHE` under that hash.

        Raises ValueError for a folder without pictures, or a file that is none.
        """
        files = sorted(
            file for file in Path(self.reference).rglob("*") if file.suffix.lower() in PICTURES
        )
        check(
            bool(files),
            "reference",
            self.reference,
            f"the folder needs pictures ({', '.join(PICTURES)})",
        )
        content = hashlib.sha256(self.identity().encode())
        for file in files:
            content.update(hashlib.sha256(file.read_bytes()).digest())
        name = content.hexdigest()[:16]
        kept = CACHE / f"{self.name}-{name}.safetensors"
        if not kept.exists():
            found = torch.cat(
                [
                    self._of_files(files[first : first + 50], device)
                    for first in range(0, len(files), 50)
                ]
            )
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, partial(save_file, {"features": found}))
        return load_file(kept)["features"], name

    def _of_files(self, files: list[Path], device: str) -> Tensor:
        ready, network = [self.prepared(_read(file)) for file in files], self.network(device)
        alike = len({one.shape for one in ready}) == 1
        return torch.cat(
            [network(some.to(device)).cpu() for some in ([torch.cat(ready)] if alike else ready)]
        ).double()


def file_hash(path: str) -> str:
    """The hash of a file's content; of what is no file, none."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""


def _read(file: Path) -> Tensor:
    """A picture as 1 × 3 × h × w."""
    try:
        with Image.open(file) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]
    except OSError as error:
        raise ValueError(
            f"reference has {file}, which is no picture that could be read ({error}); remove it or fetch it again"
        ) from error
