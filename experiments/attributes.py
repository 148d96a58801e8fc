"""The bundled judge's view of an image: its features, and which requested attributes it shows."""

from __future__ import annotations

from functools import cache

import torch
from safetensors.torch import load_file
from torch import Tensor

from asddim_lib.metrics.encoders import Encoder, embed
from asddim_lib.metrics.kid import mean_kernel
from asddim_lib.models.load import data_folder
from experiments.judge import Judge


def load_judge(device: str = "cpu") -> Judge:
    """The bundled judge, float32, for evaluation."""
    return _judge(device)


@cache  # behind load_judge, since the cache tells a named argument from a positional one
def _judge(device: str) -> Judge:
    return Judge.from_pretrained(data_folder() / "judge", dtype=torch.float32).eval().to(device)


@cache
def reference_features() -> Tensor:
    """The judge's features (10,000 × d, float64) of real compositions held out from training."""
    return load_file(data_folder() / "reference.safetensors")["features"].double()


@cache
def reference_kernel() -> Tensor:
    """`mean_kernel` of the reference features, which takes longer than to compare pictures."""
    return mean_kernel(reference_features())


def judge_features(images: Tensor, batch: int = 250, device: str = "cpu") -> Tensor:
    """The bundled judge's features (n × d, float64) of images (n × 3 × 64 × 64, uint8)."""
    judge = Encoder("judge", load_judge(device), prepare=lambda pictures: pictures)
    return embed(judge, images, batch).double()


def attributes_right(features: Tensor, wanted: dict[str, list]) -> dict[str, Tensor]:
    """Which images show the requested attributes, by the judge's heads.

    `features` is n × d. `wanted` has a list of n entries for each attribute, as the columns of the
    bundled prompts; an empty entry requests nothing, and a prompt with a relation requests no
    count. Returns a bool tensor (n,) per attribute, and `all` of them together.
    """
    judge = load_judge()
    with torch.no_grad():
        logits = judge.logits(features.float())
    right = {}
    for head, classes in judge.config.attributes.items():
        seen = [classes[i] for i in logits[head].argmax(1).tolist()]
        if head == "count":
            asked = [classes[int(count) - 1] for count in wanted["count"]]
            skip = [relation != "none" for relation in wanted["relation"]]
        else:
            asked = list(wanted[head])
            skip = [value == "" for value in asked]
        right[head] = torch.tensor(
            [free or see == ask for see, ask, free in zip(seen, asked, skip, strict=True)]
        )
    right["all"] = torch.stack(list(right.values())).all(0)
    return right
