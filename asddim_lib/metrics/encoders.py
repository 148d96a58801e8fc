"""Encoders: networks that embed pictures, all of one shape.

`load_encoder` loads CLIP, SigLIP, DINOv2 and their like, whose embeddings have a derivative.
`load_inception` loads the network of published FID.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from asddim_lib.digest import of_values
from asddim_lib.errors import check
from asddim_lib.models.load import (
    BUNDLED,
    Pipeline,
    check_device,
    data_folder,
    device_of,
    loading,
)

#: The encoder of a pipeline that brings none.
CLIP = "openai/clip-vit-large-patch14"


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network that embeds pictures, and how pictures become its input.

    `prepare` returns the network's input for pictures, as the text `preparation` says. `weights`
    is where the network was loaded from. With `unit`, embeddings have length 1.
    """

    name: str
    network: nn.Module
    prepare: Callable[[Tensor], Tensor]
    preparation: str = ""
    weights: str = ""
    unit: bool = False

    def __call__(self, pictures: Tensor) -> Tensor:
        """The embeddings (n × d, float32) of pictures (n × 3 × h × w), on the network's device.

        Pictures are uint8, or floats from 0 to 1. A video (n × frames × 3 × h × w) has the mean of
        its frames' embeddings.
        """
        if pictures.ndim == 5:
            return self(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]).mean(1)
        device = next(self.network.parameters()).device
        given = self.prepare(pictures.to(device)).to(device)
        features = pooled(getattr(self.network, "get_image_features", self.network)(given)).float()
        return normalize(features, dim=1) if self.unit else features

    @cached_property
    def identity(self) -> str:
        """The hash of all that embeddings depend on, besides the pictures."""
        return of_values(self.name, self.preparation, self.unit, dict(self.network.state_dict()))


def pooled(output: Any) -> Tensor:
    """The features (n × d) that a network of transformers returns, some within an object."""
    return output if isinstance(output, Tensor) else output.pooler_output


@torch.no_grad()
def embed(encoder: Encoder, pictures: Tensor, batch: int = 64) -> Tensor:
    """The embeddings (n × d, float32, on the CPU) of pictures (n × 3 × h × w), batch by batch."""
    return torch.cat([encoder(part).cpu() for part in pictures.split(batch)])


def encoder_for(pipe: Pipeline, encoder: str | Encoder | None = None) -> Encoder:
    """The encoder of that name, or the given one, for a pipeline's pictures, on its device.

    By default the bundled CLIP for a bundled model, and CLIP ViT-L/14 for any other.
    """
    if isinstance(encoder, Encoder):
        return encoder
    own = str(getattr(pipe, "name_or_path", "")) in BUNDLED
    return load_encoder(encoder or ("bundled" if own else CLIP), str(device_of(pipe)))


@cache
def load_encoder(source: str = "bundled", device: str = "cpu") -> Encoder:
    """The image encoder of a folder or a hub id, in float32; by default the bundled CLIP.

    Its image processor's sizes, mean and spread are followed. Raises WrongUse for a source that
    cannot be loaded, or a network that takes no pictures.
    """
    from transformers import AutoImageProcessor, AutoModel

    check_device(device)
    network, processor = pretrained("encoder", source, device, AutoModel, AutoImageProcessor)
    takes = hasattr(network, "get_image_features") or network.main_input_name == "pixel_values"
    check(takes, "encoder", source, "it takes no pictures: give CLIP, SigLIP or DINOv2")
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else {}
    edges = [
        [size.get(edge) for edge in ("height", "width", "shortest_edge")]
        for size in (processor.size, crop)
    ]
    preparation = str([*edges, list(processor.image_mean), list(processor.image_std)])
    return Encoder(source, network, partial(_processed, processor), preparation, source, unit=True)


@cache
def load_inception(weights: str = "", prepare: str = "paper", device: str = "cpu") -> Encoder:
    """Inception's pool3, the 2,048 features of FID, by torchmetrics and torch-fidelity.

    `weights` is a checkpoint's file; without one, torch-fidelity fetches the published checkpoint.
    `prepare` is "paper", which resizes the shorter side to 256 and crops the centre, or "plain",
    torchmetrics' default, which does neither. Raises WrongUse for another one, and for weights or
    packages that cannot be loaded.
    """
    from torchmetrics.image.fid import NoTrainInceptionV3

    check(prepare in PREPARATIONS, "prepare", prepare, f"use one of {', '.join(PREPARATIONS)}")
    source = weights or "the published checkpoint"
    with loading("inception", source, "give a checkpoint's file"):
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights or None).to(device)
    return Encoder("inception", network, PREPARATIONS[prepare], prepare, weights)


@cache
def pretrained(argument: str, source: str, device: str, *classes: Any) -> tuple[Any, ...]:
    """A model of transformers (float32, on a device), and its processors, by their classes.

    `source` is a folder, a hub id, or "bundled", the bundled CLIP. Raises WrongUse, which names
    the argument, where one cannot be loaded.
    """
    place = str(data_folder() / "clip") if source == "bundled" else source
    with loading(argument, source, "give a folder or a hub id"):
        network = classes[0].from_pretrained(place, dtype=torch.float32).eval().to(device)
        network.requires_grad_(False)
        return network, *(one.from_pretrained(place) for one in classes[1:])


def _processed(processor: Any, pictures: Tensor) -> Tensor:
    """Pictures resized, cropped to the centre and normalized as an image processor would."""
    scaled = pictures / 255 if pictures.dtype == torch.uint8 else pictures.float()
    size = _size(processor.size, scaled.shape[2:])
    if tuple(scaled.shape[2:]) != size:
        scaled = interpolate(scaled, size, mode="bicubic", antialias=True).clamp(0, 1)
    if getattr(processor, "do_center_crop", False):
        scaled = _centre(scaled, *_size(processor.crop_size, scaled.shape[2:]))
    return normalized(scaled, processor.image_mean, processor.image_std)


def _size(size: Mapping[str, int], shape: torch.Size) -> tuple[int, int]:
    """Height and width that an image processor's `size` means for pictures of a shape."""
    if size.get("height"):
        return size["height"], size["width"]
    high, wide = shape
    short = size["shortest_edge"]  # transformers cuts the other edge to a whole number
    return high * short // min(shape), wide * short // min(shape)


def _centre(pictures: Tensor, high: int, wide: int) -> Tensor:
    top, left = (pictures.shape[2] - high) // 2, (pictures.shape[3] - wide) // 2
    return pictures[:, :, top : top + high, left : left + wide]


def normalized(scaled: Tensor, mean: Any, spread: Any) -> Tensor:
    """Pixels (n × 3 × h × w, 0 to 1) less the mean of their channel, over its spread."""
    shift, width = (
        torch.tensor(values, device=scaled.device).reshape(3, 1, 1) for values in (mean, spread)
    )
    return (scaled - shift) / width


def as_bytes(pictures: Tensor) -> Tensor:
    """Pictures as uint8, which these networks were trained on and their resizing rounds to."""
    return pictures if pictures.dtype == torch.uint8 else (pictures * 255).round().byte()


def _cropped(pictures: Tensor, side: int = 256) -> Tensor:
    """Pictures (uint8) with the shorter side resized to `side`, cropped to the centre."""
    scale = side / min(pictures.shape[2:])
    size = [round(scale * edge) for edge in pictures.shape[2:]]
    resized = interpolate(as_bytes(pictures).float(), size, mode="bilinear", antialias=True)
    return _centre(resized, side, side).round().clamp(0, 255).to(torch.uint8)


#: What Inception is given.
PREPARATIONS: dict[str, Callable[[Tensor], Tensor]] = {"paper": _cropped, "plain": as_bytes}
