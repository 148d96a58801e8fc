"""CLIP score (Eqs 15–16)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from asddim_lib.metrics.encoders import normalized, pooled, pretrained
from asddim_lib.models.prompts import check_prompts

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

#: Pictures that are embedded at once.
BATCH = 250


def load_clip(folder: str | None = None, device: str = "cpu") -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP model (float32) and its processor, from a folder or a hub id; by default the bundled.

    Raises WrongUse for a model that cannot be loaded.
    """
    from transformers import CLIPModel, CLIPProcessor

    clip = pretrained("clip", folder or "bundled", device, CLIPModel, CLIPProcessor)
    model, processor = clip
    processor.tokenizer.model_max_length = model.config.text_config.max_position_embeddings
    return clip


@torch.no_grad()
def clip_cosine(
    images: Tensor,
    prompts: list[str],
    folder: str | None = None,
    batch: int = BATCH,
    device: str = "cpu",
    truncate: bool = False,
) -> Tensor:
    """The cosine of each image's and its prompt's CLIP embeddings (Eq 15): shape (n,), float64.

    Images are n × 3 × h × w, uint8. Raises WrongUse for a prompt of more tokens than the model
    takes (77 for OpenAI's CLIP), unless `truncate` cuts it, with its end token kept.
    """
    model, processor = load_clip(folder, device)
    check_prompts(processor, prompts, truncate)
    scores = []
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        words = processor.tokenizer(
            prompts[part], padding=True, truncation=True, return_tensors="pt"
        )
        pixels = _pixels(model, processor, images[part])
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
    check_prompts(processor, prompts, truncate)
    # torchmetrics itself would cut long prompts without their end token.
    parts = _Towers(model), partial(processor, truncation=True)
    metric = CLIPScore(model_name_or_path=lambda: parts)
    for start in range(0, len(prompts), BATCH):
        metric.update(list(images[start : start + BATCH]), prompts[start : start + BATCH])
    return float(metric.compute()) / 100


def _pixels(model: CLIPModel, processor: CLIPProcessor, images: Tensor) -> Tensor:
    """CLIP's normalized pixels of images.

    The processor takes images one by one, which is slow; those of the model's own size need only
    be scaled.
    """
    reader, side = processor.image_processor, model.config.vision_config.image_size
    if images.shape[2:] == (side, side):
        return normalized(images / 255, reader.image_mean, reader.image_std)
    return reader(images=list(images), return_tensors="pt")["pixel_values"]


class _Towers(nn.Module):
    """CLIP with tensors for features.

    transformers 5 returns an object where torchmetrics 1.9 expects a tensor.
    """

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return pooled(self.model.get_image_features(pixels))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return pooled(self.model.get_text_features(ids, mask))
