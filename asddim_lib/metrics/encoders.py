"""Image encoders: features of pictures, with a derivative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from asddim_lib.errors import WrongUse, check
from asddim_lib.models.load import BUNDLED, Pipeline, check_device, data_folder, device_of

#: The encoder of a pipeline that brings none.
CLIP = "openai/clip-vit-large-patch14"


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network of transformers that embeds pictures: CLIP, SigLIP, DINOv2 and their like.

    `processor` is its image processor, whose sizes, mean and spread are followed. Both are as
    `load_encoder` finds them.
    """

    name: str
    network: nn.Module
    processor: Any

    def __call__(self, pictures: Tensor) -> Tensor:
        """The embeddings (n × d, of length 1) of pictures (n × 3 × h × w), on their device.

        Pictures are uint8, or numbers from 0 to 1: then the embeddings have a derivative. A video
        (n × frames × 3 × h × w) has the mean of its frames' embeddings.
        """
        if pictures.ndim == 5:
            return self(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]).mean(1)
        device = next(self.network.parameters()).device
        given = self._prepared(pictures.to(device))
        embed = getattr(self.network, "get_image_features", self.network)
        output = embed(pixel_values=given)
        features = output if isinstance(output, Tensor) else output.pooler_output
        return normalize(features.float(), dim=1)

    def _prepared(self, pictures: Tensor) -> Tensor:
        """The network's input: resized, cut to the middle, and normalized."""
        scaled = pictures / 255 if pictures.dtype == torch.uint8 else pictures.float()
        size = _pair(self.processor.size, scaled.shape[2:])
        if tuple(scaled.shape[2:]) != size:
            scaled = interpolate(scaled, size, mode="bicubic", antialias=True).clamp(0, 1)
        if getattr(self.processor, "do_center_crop", False):
            high, wide = _pair(self.processor.crop_size, scaled.shape[2:])
            top, left = (size[0] - high) // 2, (size[1] - wide) // 2
            scaled = scaled[:, :, top : top + high, left : left + wide]
        mean, spread = (
            torch.tensor(values, device=scaled.device).reshape(3, 1, 1)
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return (scaled - mean) / spread


def _pair(size: Mapping[str, int], shape: torch.Size) -> tuple[int, int]:
    """Height and width that an image processor's `size` means for pictures of a shape."""
    if size.get("height"):
        return size["height"], size["width"]
    high, wide = shape
    short = size["shortest_edge"]  # transformers cuts the other edge to a whole number
    return high * short // min(shape), wide * short // min(shape)


@torch.no_grad()
def embed(encoder: Encoder, pictures: Tensor, batch: int = 64) -> Tensor:
    """The embeddings (n × d, on the CPU) of pictures (n × 3 × h × w, uint8), so many at once."""
    return torch.cat([encoder(part).cpu() for part in pictures.split(batch)])


def load_encoder(source: str = "bundled", device: str = "cpu") -> Encoder:
    """The image encoder of a folder or a hub id, in float32; by default the bundled CLIP.

    Raises WrongUse for what is no encoder of pictures, or cannot be loaded.
    """
    check_device(device)
    return _encoder(source, device)


def encoder_for(pipe: Pipeline, encoder: str | Encoder | None = None) -> Encoder:
    """The encoder that was named, or given, for a pipeline's pictures, on its device.

    By default the bundled CLIP for a bundled model, and CLIP ViT-L/14 for any other.
    """
    if isinstance(encoder, Encoder):
        return encoder
    own = str(getattr(pipe, "name_or_path", "")) in BUNDLED
    return load_encoder(encoder or ("bundled" if own else CLIP), str(device_of(pipe)))


@cache
def _encoder(source: str, device: str) -> Encoder:
    from transformers import AutoImageProcessor, AutoModel

    place = str(data_folder() / "clip") if source == "bundled" else source
    try:
        network = AutoModel.from_pretrained(place, dtype=torch.float32).eval().to(device)
        processor = AutoImageProcessor.from_pretrained(place)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # transformers, safetensors and the hub share no base class
        reason = str(error).strip().splitlines()[0]
        raise WrongUse(
            f"encoder is {source!r}, which could not be loaded ({reason}); give a folder or a hub"
            " id of an image encoder, such as openai/clip-vit-large-patch14"
        ) from error
    sees = hasattr(network, "get_image_features") or "pixel_values" in _inputs(network)
    check(sees, "encoder", source, "it takes no pictures: give CLIP, SigLIP or DINOv2")
    return Encoder(source, network.requires_grad_(False), processor)


def _inputs(network: nn.Module) -> tuple[str, ...]:
    return (str(getattr(network, "main_input_name", "")),)
