"""CLIP score (Eqs 15–16)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.metrics.encoders import normalized, pretrained

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor


def load_clip(folder: str | None = None, device: str = "cpu") -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP model (float32) and its processor, from a folder or a hub id; by default the bundled.

    Raises WrongUse for a model that cannot be loaded.
    """
    return _clip(folder or "bundled", device)


@cache  # behind load_clip, since the cache tells a named argument from a positional one
def _clip(source: str, device: str) -> tuple[CLIPModel, CLIPProcessor]:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = pretrained("clip", source, device, CLIPModel, CLIPProcessor)
    return model, processor


@torch.no_grad()
def clip_cosine(
    images: Tensor,
    prompts: list[str],
    folder: str | None = None,
    batch: int = 250,
    device: str = "cpu",
    truncate: bool = False,
) -> Tensor:
    """The cosine of each image's and its prompt's CLIP embeddings (Eq 15): shape (n,), float64.

    Images are n × 3 × h × w, uint8. Raises WrongUse for a prompt of more tokens than the model
    takes (77 for OpenAI's CLIP), unless `truncate` cuts it, with its end token kept.
    """
    model, processor = load_clip(folder, device)
    scores = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        side = model.config.vision_config.image_size
        pixels = _pixels(processor.image_processor, side, images[part])
        words = tokens(model, processor, prompts[part], truncate)
        out = model(**words.to(device), pixel_values=pixels.to(device))
        embeds = (part.cpu().double() for part in (out.image_embeds, out.text_embeds))
        scores.append(nn.functional.cosine_similarity(*embeds))
    return torch.cat(scores)


def clip_score(
    images: Tensor, prompts: list[str], folder: str | None = None, truncate: bool = False
) -> float:
    """The mean cosine over image–prompt pairs (Eq 16), by torchmetrics.

    The scale is the paper's, up to 1; torchmetrics' own is 100 times that. A negative mean becomes
    0, as in torchmetrics. Long prompts are treated as by `clip_cosine`.
    """
    from torchmetrics.multimodal.clip_score import CLIPScore

    model, processor = load_clip(folder)
    metric = CLIPScore(
        model_name_or_path=lambda: (_Towers(model), _Reader(model, processor, truncate))
    )
    for start in range(0, len(prompts), 250):
        metric.update(list(images[start : start + 250]), prompts[start : start + 250])
    return float(metric.compute()) / 100


def tokens(model: CLIPModel, processor: Any, prompts: list[str], truncate: bool) -> Any:
    """Token ids and attention masks of prompts, each at most as long as the model takes.

    Raises WrongUse for a longer prompt, unless `truncate` cuts it, with its end token kept.
    """
    limit = model.config.text_config.max_position_embeddings
    if not truncate:
        for prompt in prompts:
            length = len(processor.tokenizer(prompt, verbose=False)["input_ids"])
            check(
                length <= limit,
                "prompt",
                f"{prompt!r}, {length} tokens",
                f"shorten it to {limit}, or pass truncate=True",
            )
    return processor.tokenizer(
        prompts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
    )


def _pixels(processor: Any, size: int, images: Tensor) -> Tensor:
    """CLIP's normalized pixels of images.

    The processor takes images one by one, which is slow; those of the model's own size need only
    be scaled.
    """
    if images.shape[2:] != (size, size):
        return processor(images=list(images), return_tensors="pt")["pixel_values"]
    return normalized(images / 255, processor.image_mean, processor.image_std)


class _Reader:
    """A processor for torchmetrics, which would cut long prompts without their end token."""

    def __init__(self, model: CLIPModel, processor: CLIPProcessor, truncate: bool) -> None:
        self.model, self.processor, self.truncate = model, processor, truncate

    def __call__(self, text: Any = None, images: Any = None, **options: Any) -> Any:
        if text is None:
            return self.processor(images=images, **options)
        return tokens(self.model, self.processor, text, self.truncate)


class _Towers(nn.Module):
    """CLIP with tensors for features.

    transformers 5 returns an object where torchmetrics 1.9 expects a tensor.
    """

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        output = self.model.get_image_features(pixel_values)
        return output if isinstance(output, Tensor) else output.pooler_output

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.model.get_text_features(input_ids, attention_mask)
        return output if isinstance(output, Tensor) else output.pooler_output
