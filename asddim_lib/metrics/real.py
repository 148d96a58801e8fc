"""Features of a folder of real pictures, computed once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asddim_lib.cache import cache_folder, kept
from asddim_lib.errors import WrongUse, check
from asddim_lib.metrics.encoders import Encoder, embed

ENDINGS = (".jpeg", ".jpg", ".png", ".webp")


def picture_files(folder: str) -> list[Path]:
    """The pictures in a folder and its subfolders, sorted. Raises WrongUse where there are none."""
    check(Path(folder).is_dir(), "reference", folder, "give a folder of real pictures")
    files = sorted(f for f in Path(folder).rglob("*") if f.suffix.lower() in ENDINGS)
    remedy = f"the folder needs pictures ({', '.join(ENDINGS)})"
    check(bool(files), "reference", folder, remedy)
    return files


def real_features(encoder: Encoder, folder: str, batch: int = 50) -> tuple[Tensor, str]:
    """An encoder's features (n × d) of a folder's pictures, and a hash of all they depend on.

    They are in the cache under that hash. Raises WrongUse for a folder without pictures, and for
    a file that is not one.
    """
    files = picture_files(folder)
    content = hashlib.sha256(encoder.identity.encode())
    for file in files:
        content.update(hashlib.sha256(file.read_bytes()).digest())
    name = content.hexdigest()[:16]

    def computed() -> dict[str, Tensor]:
        parts = [files[first : first + batch] for first in range(0, len(files), batch)]
        return {"features": torch.cat([_features(encoder, part) for part in parts])}

    place = cache_folder() / f"{encoder.name}-{name}.safetensors"
    return kept(place, computed)["features"], name


def _features(encoder: Encoder, files: list[Path]) -> Tensor:
    """The features of picture files, in one pass where all are of one size."""
    pictures = [_read(file) for file in files]
    if len({picture.shape for picture in pictures}) == 1:
        pictures = [torch.cat(pictures)]
    return torch.cat([embed(encoder, picture) for picture in pictures])


def _read(file: Path) -> Tensor:
    """A picture file as 1 × 3 × h × w, uint8."""
    try:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
    except OSError as error:
        raise WrongUse(
            f"reference has {file}, which is no picture ({error}); remove it or fetch it again"
        ) from error
