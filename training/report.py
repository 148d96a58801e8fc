"""Measures the shipped parts on photographs and prompts that no training saw."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from diffusers import DDIMScheduler

from asddim_lib import metrics
from asddim_lib.configs import is_flow
from asddim_lib.models.load import load_pipeline
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.solvers import own_scheduler
from experiments import attributes
from training.assembly import prompts as draw_prompts
from training.assembly import real
from training.judge import blur

SEED = 201
#: The flow-matching model reads little from T5's place, and one token of zeros costs least.
FEW_ZEROS = {"max_sequence_length": 1}
DAMAGES = {"blur, σ px": (0.4, 0.6, 0.8, 1.0, 1.5), "noise, σ of 1": (0.02, 0.04, 0.06, 0.08, 0.1)}


@torch.no_grad()
def autoencoder_psnr(pipe, count: int = 1000) -> float:
    """Mean PSNR, in dB, of unseen pictures after encoding and decoding."""
    _, pictures = real(count, SEED)
    errors = []
    for part in pictures.split(50):
        pixels = part.float() / 127.5 - 1
        restored = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        errors.append((restored - pixels).div(2).square().mean((1, 2, 3)))
    return float(-10 * torch.cat(errors).log10().mean())


@torch.no_grad()
def retrieval(count: int = 512) -> float:
    """Share of unseen captions whose nearest of `count` pictures bears that very caption."""
    scenes, pictures = real(count, SEED + 1)
    model, processor = metrics.load_clip()
    captions = [s.caption for s in scenes]
    out = model(
        **processor(text=captions, images=list(pictures), padding=True, return_tensors="pt")
    )
    best = out.logits_per_text.argmax(1).tolist()
    return sum(captions[j] == caption for j, caption in zip(best, captions, strict=True)) / count


def judge_accuracy(count: int = 10_000) -> dict[str, float]:
    """Share of unseen pictures whose attribute the judge reads rightly."""
    scenes, pictures = real(count, SEED + 2)
    features = attributes.judge_features(pictures)
    wanted = {key: [s.as_row()[key] for s in scenes] for key in scenes[0].as_row()}
    right = attributes.attributes_right(features, wanted)
    asked = {
        key: torch.tensor([v not in ("", "none") for v in wanted[key]])
        if key.endswith("_b")
        else None
        for key in right
        if key in wanted
    }
    return {
        key: float(
            right[key][asked.get(key)].float().mean()
            if asked.get(key) is not None
            else right[key].float().mean()
        )
        for key in right
    }


def fid_floor(count: int = 5000) -> float:
    """FID between pictures made of two disjoint halves of the test photographs."""
    (_, a), (_, b) = real(count, SEED + 3, half=0), real(count, SEED + 4, half=1)
    return metrics.fid(attributes.judge_features(a), attributes.judge_features(b))


def fid_of_damage(count: int = 2000) -> dict[str, dict[float, float]]:
    """FID of unseen pictures that were blurred, or to which noise was added, each by rising
    degrees.
    """
    _, pictures = real(count, SEED + 5)
    clean = pictures / 255
    found: dict[str, dict[float, float]] = {
        name: {
            0.0: metrics.fid(attributes.judge_features(pictures), attributes.reference_features())
        }
        for name in DAMAGES
    }
    generator = torch.Generator().manual_seed(SEED)
    for name, degrees in DAMAGES.items():
        for degree in degrees:
            hurt = (
                blur(clean, torch.full((count,), degree))
                if name.startswith("blur")
                else clean + degree * torch.randn(clean.shape, generator=generator)
            )
            images = (hurt.clamp(0, 1) * 255).round().byte()
            found[name][degree] = metrics.fid(
                attributes.judge_features(images), attributes.reference_features()
            )
    return found


def generation(pipe, per_category: int, steps: int, guidance_scale: float) -> dict[str, float]:
    """Share of generated pictures that show what was asked, by category and attribute.

    Seeds and prompts serve nothing else.
    """
    table = (
        draw_prompts(12 * per_category, SEED + 6)
        .groupby("category")
        .head(per_category)
        .reset_index(drop=True)
    )
    images = _drawn(pipe, table, steps, guidance_scale)
    right = attributes.attributes_right(
        attributes.judge_features(images), {c: list(table[c]) for c in table}
    )
    found = {}
    for category in sorted(set(table["category"])):
        rows = torch.tensor((table["category"] == category).to_numpy())
        found |= {
            f"{category}: {key}": float(value[rows].float().mean()) for key, value in right.items()
        }
    return found


def fid_of_steps(pipe, guidance_scale: float, count: int = 1000) -> dict[int, float]:
    """FID of `count` generated pictures for ever fewer steps, on the trailing grid."""
    table, original, found = draw_prompts(count, SEED + 7), pipe.scheduler, {}
    kind = own_scheduler(original)
    pipe.scheduler = kind.from_config(original.config, allocation="trailing")
    for steps in (50, 20, 10, 5, 3):
        images = _drawn(pipe, table, steps, guidance_scale)
        found[steps] = metrics.fid(
            attributes.judge_features(images), attributes.reference_features()
        )
    pipe.scheduler = original
    return found


def _drawn(pipe, table, steps: int, guidance_scale: float) -> torch.Tensor:
    seeds = range(10_000, 10_000 + len(table))
    flow = is_flow(pipe.scheduler)
    options = FEW_ZEROS if flow else {}
    return (
        Run(pipe, list(table["prompt"]), seeds, guidance_scale, batch_size=50, options=options)
        .pictures(num_inference_steps=steps)
        .images
    )


def picture(pipe, file: Path, steps: int, guidance_scale: float) -> None:
    """Sixteen pictures, four a category, each the first of its seed: nothing is picked."""
    table = (
        draw_prompts(200, SEED + 8)
        .groupby("category")
        .head(4)
        .sort_values("category")
        .reset_index(drop=True)
    )
    images = _drawn(pipe, table, steps, guidance_scale)
    figure, axes = plt.subplots(2, 8, figsize=(12, 4.1))
    for axis, image, prompt in zip(axes.flat, images, table["prompt"], strict=True):
        axis.imshow(image.permute(1, 2, 0))
        axis.set_title(textwrap.fill(prompt, 20), fontsize=7)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(file, dpi=100)


def report_flow(data: Path, *, prompts: int, steps: int, guidance_scale: float) -> None:
    """What the flow-matching model draws, measured as the UNet's pictures are."""
    pipe, file = load_pipeline(data / "flow"), data / "quality_flow.json"
    picture(pipe, data / "samples_flow.png", 20, guidance_scale)
    how = {"guidance_scale": guidance_scale, "steps": steps, "per_category": prompts}
    found: dict[str, Any] = {
        "generation": {**how, **generation(pipe, prompts, steps, guidance_scale)}
    }
    file.write_text(json.dumps(found, indent=1) + "\n")  # what follows takes longer
    found["fid_of_steps_1000"] = fid_of_steps(pipe, guidance_scale)
    file.write_text(json.dumps(found, indent=1) + "\n")


def report(data: Path, *, prompts: int, steps: int, guidance_scale: float) -> None:
    pipe = load_pipeline(data / "model")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    measures: dict[str, Callable[[], Any]] = {
        "autoencoder_psnr_db": lambda: autoencoder_psnr(pipe),
        "clip_retrieval_rank1_of_512": retrieval,
        "judge_accuracy_10000": judge_accuracy,
        "fid_floor_5000_against_5000_real": fid_floor,
        "fid_of_damage_2000": fid_of_damage,
        "fid_of_steps_1000": lambda: fid_of_steps(pipe, guidance_scale),
        "generation": lambda: {
            "guidance_scale": guidance_scale,
            "steps": steps,
            "per_category": prompts,
            **generation(pipe, prompts, steps, guidance_scale),
        },
    }
    found = {}
    for name, measure in measures.items():
        found[name] = measure()
        print(json.dumps({name: found[name]}), flush=True)
    picture(pipe, data / "samples.png", 20, guidance_scale)
    (data / "quality.json").write_text(json.dumps(found, indent=1) + "\n")
