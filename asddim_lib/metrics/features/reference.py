"""A feature network and a folder of real images, whose features are computed once and cached."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asddim_lib.cache import DamagedFile, cache_folder, load_tensors, save_tensors
from asddim_lib.errors import WrongUse, check

log = logging.getLogger(__name__)

PICTURES = (".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Reference(ABC):
    """A folder of real images and a feature network; each kind of network is a subclass.

    `reference` is the folder; `weights` is a file, a folder or a hub id.
    """

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
        """The network on that device: prepared images in, features (n × d) out.

        Raises WrongUse for weights or a package that are missing or damaged.
        """

    @abstractmethod
    def prepared(self, images: Tensor) -> Tensor:
        """The network's input for images (n × 3 × h × w, uint8)."""

    @abstractmethod
    def identity(self) -> str:
        """All that features depend on, besides the images."""

    def features(self, images: Tensor, device: str = "cpu", batch: int = 50) -> Tensor:
        """The features (n × d, float64) of images (n × 3 × h × w, uint8)."""
        network = self.network(device)
        return torch.cat(
            [network(self.prepared(part).to(device)).cpu() for part in images.split(batch)]
        ).double()

    def real(self, device: str = "cpu") -> tuple[Tensor, str]:
        """The features (n × d, float64) of the real images, and a hash of all they depend on.

        They are computed once and kept in the cache under that hash; a damaged file is named in a
        warning, and computed again. Raises WrongUse for a folder without images, or a file that
        is not an image.
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
        cached = cache_folder() / f"{self.name}-{name}.safetensors"
        try:
            return load_tensors(cached)[0]["features"], name
        except FileNotFoundError:
            pass
        except DamagedFile as error:
            log.warning("%s; computing again", error)
        parts = [files[first : first + 50] for first in range(0, len(files), 50)]
        features = torch.cat([self._of_files(part, device) for part in parts])
        cached.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(cached, {"features": features}, "")
        return features, name

    def _of_files(self, files: list[Path], device: str) -> Tensor:
        """The features (n × d, float64) of image files, in one pass where all are of one size."""
        inputs, network = [self.prepared(_read(file)) for file in files], self.network(device)
        if len({one.shape for one in inputs}) == 1:
            inputs = [torch.cat(inputs)]
        return torch.cat([network(part.to(device)).cpu() for part in inputs]).double()


def file_hash(path: str) -> str:
    """The SHA-256 of a file's content; empty where the path is not a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""


def _read(file: Path) -> Tensor:
    """An image file as 1 × 3 × h × w, uint8."""
    try:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    except OSError as error:
        raise WrongUse(
            f"reference has {file}, which is no picture ({error}); remove it or fetch it again"
        ) from error
