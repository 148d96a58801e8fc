"""The photographs of Fashion-MNIST that every composition is made of."""

from __future__ import annotations

import gzip
import os
import urllib.request
from pathlib import Path

import numpy as np
from scipy.ndimage import grey_closing

from training.compositions import GARMENTS

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD = "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def load_photographs(
    split: str, half: int | None = None, folder: Path | None = None
) -> dict[str, np.ndarray]:
    """Photographs by garment (n × 2 × 28 × 28, uint8): grey level and opacity.

    `split` is "train" or "test"; `half` 0 or 1 takes every other photograph.

    They are read from `folder`, $FASHION_MNIST or Debian's dataset-fashion-mnist; elsewhere they
    are downloaded once.
    """
    name = {"train": "train", "test": "t10k"}[split]
    folder = folder or Path(os.environ.get("FASHION_MNIST", DEBIAN_FOLDER))
    if not (folder / f"{name}-images-idx3-ubyte.gz").exists():
        folder = Path.home() / ".cache" / "fashion-mnist"
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("images-idx3", "labels-idx1"):
            target = folder / f"{name}-{kind}-ubyte.gz"
            if not target.exists():
                urllib.request.urlretrieve(DOWNLOAD + target.name, target)
    images = _read(folder / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = _read(folder / f"{name}-labels-idx1-ubyte.gz", 8)
    chosen = slice(None) if half is None else slice(half, None, 2)
    # The ground of a photograph is black; closing fills the one-pixel holes that dark seams leave
    # in its silhouette.
    opacity = grey_closing(np.minimum(images, 25) * np.uint8(10), size=(1, 3, 3))
    stacked = np.stack([images, opacity], axis=1)
    return {garment: stacked[labels == label][chosen] for garment, label in GARMENTS.items()}


def _read(file: Path, header: int) -> np.ndarray:
    with gzip.open(file) as stream:
        return np.frombuffer(stream.read(), np.uint8, offset=header)
