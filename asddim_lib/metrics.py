"""Judging images: FID and KID (Eq 14), CLIP score (Eqs 15–16), attribute accuracy; each with an interval. Features and statistics are float64."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.judge import Judge
from asddim_lib.models import data_folder

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

Z95 = 1.959964


class _Given(nn.Module):
    """A feature network for features that are already there."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def load_judge(device: str = "cpu") -> Judge:
    """The bundled judge, float32, for evaluation."""
    return _judge(device)


@cache  # goes by how it is called: named and left-out arguments would each load a network of their own
def _judge(device: str) -> Judge:
    return Judge.from_pretrained(data_folder() / "judge", dtype=torch.float32).eval().to(device)


def load_clip(folder: str | None = None, device: str = "cpu") -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP model (float32) and its processor; the bundled one unless a folder or hub id is given. Raises ValueError where there is none."""
    return _clip(folder or "bundled", device)


@cache
def _clip(folder: str, device: str) -> tuple[CLIPModel, CLIPProcessor]:
    from transformers import CLIPModel, CLIPProcessor

    source = data_folder() / "clip" if folder == "bundled" else folder
    try:
        return CLIPModel.from_pretrained(source, dtype=torch.float32).eval().to(device), CLIPProcessor.from_pretrained(source)
    except Exception as error:  # as in load_pipeline
        raise ValueError(f"clip is {str(source)!r}, which could not be loaded ({str(error).strip().splitlines()[0]}); give a folder or a hub id") from error


@cache
def reference_features() -> Tensor:
    """The judge's features (10,000 × d, float64) of real compositions of photographs that no training saw."""
    return load_file(data_folder() / "reference.safetensors")["features"].double()


@torch.no_grad()
def judge_features(images: Tensor, batch: int = 250, device: str = "cpu") -> Tensor:
    """The bundled judge's features (n × d, float64) of images (n × 3 × 64 × 64, uint8), computed on a device."""
    return torch.cat([load_judge(device)(part.to(device)).cpu() for part in images.split(batch)]).double()


def fid(features: Tensor, reference: Tensor, rank_deficient: bool = False) -> float:
    """Fréchet distance between two sets of features, each n × d (Eq 14), by torchmetrics in float64.

    Raises ValueError where a set has too few images for a covariance of full rank: the figure would be mostly bias. Who wants it
    all the same, to set beside another of as many images, as the paper's thousand of 2,048 features, says `rank_deficient`.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    for name, values in (("features", features), ("reference", reference)):
        check(rank_deficient or len(values) > values.shape[1], name, f"{len(values)} × {values.shape[1]}", "FID needs more images than feature dimensions")
    metric = FrechetInceptionDistance(feature=_Given(features.shape[1])).set_dtype(torch.float64)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def fid_interval(features: Tensor, reference: Tensor, resamples: int = 40, seed: int = 0, rank_deficient: bool = False) -> tuple[float, float]:
    """FID and the half-width of its 95 % interval, from the spread of FID over bootstrap resamples of the images.

    The interval speaks of the spread that another draw of images would show. The bias of a finite sample is not in it.
    """
    draw, moments, x = np.random.default_rng(seed), _moments(reference), features.double()
    values = [_frechet(x[draw.integers(0, len(x), len(x))], *moments) for _ in range(resamples)]
    return fid(features, reference, rank_deficient), Z95 * float(np.std(values, ddof=1))


def fid_infinity(features: Tensor, reference: Tensor, sizes: int = 8, repeats: int = 5, seed: int = 0) -> float:
    """FID as it would be of endlessly many images: a line through FIDs of fewer of them, against 1/n, where 1/n is 0 (Chong and Forsyth 2020).

    The reference's own bias, of its size, stays. The line goes from half of the images to all; it needs as many in the half as FID itself.
    Raises ValueError with fewer.
    """
    x, moments, draw = features.double(), _moments(reference), np.random.default_rng(seed)
    check(len(x) >= 2 * (x.shape[1] + 1), "features", f"{len(x)} × {x.shape[1]}", "the extrapolation needs more than twice as many images as feature dimensions")
    counts = np.round(1 / np.linspace(1 / len(x), 2 / len(x), sizes)).astype(int)
    values = [np.mean([_frechet(x[draw.permutation(len(x))[:count]], *moments) for _ in range(repeats if count < len(x) else 1)]) for count in counts]
    return float(np.polyfit(1 / counts, values, 1)[1])


def _frechet(x: Tensor, mean: Tensor, root: Tensor) -> float:
    """FID to a reference of that mean and root of a covariance: tr √(RS) is tr √(√R S √R), whose matrix is symmetric: ten times faster than torchmetrics' way."""
    covariance = x.T.cov()
    crossed = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - mean).square().sum() + covariance.trace() + root.square().sum() - 2 * crossed)


@cache
def _moments(reference: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the symmetric square root of the covariance."""
    values, vectors = torch.linalg.eigh(reference.double().T.cov())
    return reference.double().mean(0), vectors * values.clamp(min=0).sqrt() @ vectors.T


def kid(features: Tensor, reference: Tensor, subsets: int = 10, seed: int = 0) -> tuple[float, float]:
    """Kernel distance between two sets of features, by torchmetrics, and the half-width of its 95 % interval. Unbiased at any size.

    Every image counts in each of the `subsets`, against as many of the reference. The interval is the U-statistic's own, from the spread of
    the images' influence on it (Hoeffding's first projection), with the reference taken as fixed, as `fid_interval` takes it.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    x, y = features.double(), reference.double()
    n = len(x)
    check(1 < n <= len(y), "features", f"{n} images against {len(y)} of the reference", "KID needs two images or more, and no more than the reference has")
    metric = KernelInceptionDistance(feature=_Given(x.shape[1]), subsets=subsets, subset_size=n).set_dtype(torch.float64)
    metric.update(y, real=True)
    metric.update(x, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = float(metric.compute()[0])
    own, cross = (x @ x.T / x.shape[1] + 1) ** 3, (x @ y.T / x.shape[1] + 1) ** 3
    influence = (own.sum(1) - own.diagonal()) / (n - 1) - cross.mean(1)
    return value, Z95 * 2 * float(influence.std()) / math.sqrt(n)


@torch.no_grad()
def clip_cosine(images: Tensor, prompts: list[str], folder: str | None = None, batch: int = 250, device: str = "cpu") -> Tensor:
    """Cosine of each image's and its prompt's CLIP embeddings (Eq 15): shape (n,). Images are n × 3 × h × w, uint8."""
    model, processor = load_clip(folder, device)
    scores = []
    for start in range(0, len(prompts), batch):
        chosen = slice(start, start + batch)
        pixels = _pixels(processor.image_processor, model.config.vision_config.image_size, images[chosen])
        words = processor.tokenizer(prompts[chosen], padding=True, return_tensors="pt")
        out = model(**words.to(device), pixel_values=pixels.to(device))
        scores.append(nn.functional.cosine_similarity(out.image_embeds.cpu().double(), out.text_embeds.cpu().double()))
    return torch.cat(scores)


def _pixels(processor: Any, size: int, images: Tensor) -> Tensor:
    """What CLIP sees of images. The processor takes them one by one, which is slow; those of CLIP's own size need only be scaled."""
    if images.shape[2:] != (size, size):
        return processor(images=list(images), return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (images / 255 - mean) / std


def clip_score(images: Tensor, prompts: list[str], folder: str | None = None) -> float:
    """Mean cosine over image–prompt pairs (Eq 16), by torchmetrics, on the paper's scale of −1 … 1 (torchmetrics' own is 100 ×)."""
    from torchmetrics.multimodal.clip_score import CLIPScore

    metric = CLIPScore(model_name_or_path=lambda: (_Towers(load_clip(folder)[0]), load_clip(folder)[1]))
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
        asked = [classes[int(v) - 1] for v in wanted["count"]] if head == "count" else list(wanted[head])
        skip = [r != "none" for r in wanted["relation"]] if head == "count" else [v == "" for v in asked]
        found[head] = torch.tensor([s or r == a for r, a, s in zip(read, asked, skip, strict=True)])
    found["all"] = torch.stack(list(found.values())).all(0)
    return found


def relative_distance(latents: Tensor, goal: Tensor) -> Tensor:
    """How far each sample (n × d) lies from its own goal, over the goals' spread about their mean: shape (n,)."""
    spread = (goal - goal.mean(0)).square().sum(1).mean().sqrt()
    return (latents - goal).norm(dim=1) / spread


def mean_interval(values: Tensor | np.ndarray) -> tuple[float, float]:
    """Mean and the half-width of its 95 % interval."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def proportion_interval(hits: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    share, z2 = hits / total, Z95**2
    centre, spread = share + z2 / (2 * total), Z95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return (centre - spread) / (1 + z2 / total), (centre + spread) / (1 + z2 / total)


def images_to_uint8(images: np.ndarray) -> Tensor:
    """A pipeline's float images (n × h × w × 3 in [0, 1]) as n × 3 × h × w, uint8, rounded as diffusers rounds them for PNG."""
    return torch.from_numpy((images * 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
