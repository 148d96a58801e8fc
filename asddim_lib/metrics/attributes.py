"""What the bundled judge sees in a picture: its features, and whether it shows what was asked."""

from __future__ import annotations

from functools import cache

import torch
from safetensors.torch import load_file
from torch import Tensor

from asddim_lib.metrics.features.judge import Judge
from asddim_lib.models.load import data_folder


def load_judge(device: str = "cpu") -> Judge:
    """The bundled judge, float32, for evaluation."""
    return _judge(device)


@cache  # goes by how it is called: named and left-out arguments would each load a network of their own
def _judge(device: str) -> Judge:
    return Judge.from_pretrained(data_folder() / "judge", dtype=torch.float32).eval().to(device)


@cache
def reference_features() -> Tensor:
    """The judge's features (10,000 × d, float64) of real compositions of photographs that no training saw."""
    return load_file(data_folder() / "reference.safetensors")["features"].double()


@torch.no_grad()
def judge_features(images: Tensor, batch: int = 250, device: str = "cpu") -> Tensor:
    """The bundled judge's features (n × d, float64) of images (n × 3 × 64 × 64, uint8), computed on a device."""
    return torch.cat(
        [load_judge(device)(part.to(device)).cpu() for part in images.split(batch)]
    ).double()


def attributes_right(features: Tensor, wanted: dict[str, list]) -> dict[str, Tensor]:
    """Which images show what was asked, by the judge's heads: a bool a picture and attribute, and `all` of them together.

    `wanted` has a list for each attribute, one entry an image, as the columns of the bundled prompts; an empty entry asks for nothing.
    The count of a relation's picture is not asked for.
    """
    judge = load_judge()
    with torch.no_grad():
        logits = judge.logits(features.float())
    found = {}
    for head, classes in judge.config.attributes.items():
        read = [classes[i] for i in logits[head].argmax(1).tolist()]
        asked = (
            [classes[int(v) - 1] for v in wanted["count"]]
            if head == "count"
            else list(wanted[head])
        )
        skip = (
            [r != "none" for r in wanted["relation"]]
            if head == "count"
            else [v == "" for v in asked]
        )
        found[head] = torch.tensor([s or r == a for r, a, s in zip(read, asked, skip, strict=True)])
    found["all"] = torch.stack(list(found.values())).all(0)
    return found
