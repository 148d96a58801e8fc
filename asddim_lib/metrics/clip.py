"""CLIP score (Eqs 15–16)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asddim_lib.models.load import data_folder

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor


def load_clip(folder: str | None = None, device: str = "cpu") -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP model (float32) and its processor; the bundled one unless a folder or hub id is given. Raises ValueError where there is none."""
    return _clip(folder or "bundled", device)


@cache
def _clip(folder: str, device: str) -> tuple[CLIPModel, CLIPProcessor]:
    from transformers import CLIPModel, CLIPProcessor

    source = data_folder() / "clip" if folder == "bundled" else folder
    try:
        return CLIPModel.from_pretrained(source, dtype=torch.float32).eval().to(
            device
        ), CLIPProcessor.from_pretrained(source)
    except Exception as error:  # as in load_pipeline
        raise ValueError(
            f"clip is {str(source)!r}, which could not be loaded ({str(error).strip().splitlines()[0]}); give a folder or a hub id"
        ) from error


@torch.no_grad()
def clip_cosine(
    images: Tensor,
    prompts: list[str],
    folder: str | None = None,
    batch: int = 250,
    device: str = "cpu",
) -> Tensor:
    """Cosine of each image's and its prompt's CLIP embeddings (Eq 15): shape (n,). Images are n × 3 × h × w, uint8."""
    model, processor = load_clip(folder, device)
    scores = []
    for start in range(0, len(prompts), batch):
        chosen = slice(start, start + batch)
        pixels = _pixels(
            processor.image_processor, model.config.vision_config.image_size, images[chosen]
        )
        words = processor.tokenizer(prompts[chosen], padding=True, return_tensors="pt")
        out = model(**words.to(device), pixel_values=pixels.to(device))
        scores.append(
            nn.functional.cosine_similarity(
                out.image_embeds.cpu().double(), out.text_embeds.cpu().double()
            )
        )
    return torch.cat(scores)


def _pixels(processor: Any, size: int, images: Tensor) -> Tensor:
    """What CLIP sees of images. The processor takes them one by one, which is slow; those of CLIP's own size need only be scaled."""
    if images.shape[2:] != (size, size):
        return processor(images=list(images), return_tensors="pt")["pixel_values"]
    mean, std = (
        torch.tensor(values).reshape(3, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    return (images / 255 - mean) / std


def clip_score(images: Tensor, prompts: list[str], folder: str | None = None) -> float:
    """Mean cosine over image–prompt pairs (Eq 16), by torchmetrics, on the paper's scale of −1 … 1 (torchmetrics' own is 100 ×)."""
    from torchmetrics.multimodal.clip_score import CLIPScore

    metric = CLIPScore(
        model_name_or_path=lambda: (_Towers(load_clip(folder)[0]), load_clip(folder)[1])
    )
    for start in range(0, len(prompts), 250):
        metric.update(list(images[start : start + 250]), prompts[start : start + 250])
    return float(metric.compute()) / 100


class _Towers(nn.Module):
    """CLIP with tensors for features: transformers 5 returns an object where torchmetrics 1.9 expects one."""

    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        found = self.model.get_image_features(pixel_values)
        return found if isinstance(found, Tensor) else found.pooler_output

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.model.get_text_features(input_ids, attention_mask)
        return found if isinstance(found, Tensor) else found.pooler_output
