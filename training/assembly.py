"""Puts the trained parts together as the data that the library ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from experiments import attributes
from training import clip, flow
from training.compositions import ALL, Scene, draw_scene, sample
from training.photographs import load_photographs
from training.unet import SCHEDULE

REFERENCE, REFERENCE_SEED = 10_000, 101
PROMPTS = {"prompts.csv": (1000, 102), "prompts_tune.csv": (256, 103)}


def prompts(count: int, seed: int) -> pd.DataFrame:
    """Captions of scenes drawn as the reference pictures are: FID then compares like with like."""
    rows = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        rows.append(draw_scene(rng, str(rng.choice(list(ALL), p=list(ALL.values())))).as_row())
    return pd.DataFrame(rows)


def real(count: int, seed: int, half: int | None = None) -> tuple[list[Scene], torch.Tensor]:
    """Scenes and pictures (n × 3 × 64 × 64, uint8) of test photographs, which no training saw."""
    photographs = load_photographs("test", half)
    scenes, pictures = zip(*(sample(seed, i, photographs, ALL) for i in range(count)), strict=True)
    return list(scenes), torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _forget_paths(model: Path) -> None:
    """diffusers notes where a part was read from: a path of this machine."""
    for config in model.glob("*/config.json"):
        held = json.loads(config.read_text())
        held.pop("_name_or_path", None)
        config.write_text(json.dumps(held, indent=2) + "\n")


def unpack(data: Path, runs: Path) -> None:
    """Puts the shipped autoencoder, tokenizer and text towers under `runs`.

    The flow-matching transformer can then be trained without training those again.
    """
    parts = runs / "parts"
    for part in ("vae", "tokenizer"):
        shutil.copytree(data / "model" / part, parts / part, dirs_exist_ok=True)
    for part, name in (("text_encoder", "clip"), ("text_encoder_2", "clip_2")):
        shutil.copytree(data / "flow" / part, parts / clip.TOWERS[name], dirs_exist_ok=True)


def assemble(runs: Path, data: Path) -> None:
    parts = runs / "parts"
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae", dtype=torch.float16),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder", dtype=torch.float16),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet", dtype=torch.float16),
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(data / "model")
    _forget_paths(data / "model")
    # Two parts that transformers 5 would write for itself alone: the originals are kept.
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt", "text_encoder/model.safetensors"):
        shutil.copy(parts / name, data / "model" / name)
    for part in ("clip", "judge"):
        shutil.copytree(parts / part, data / part, dirs_exist_ok=True)
    for name, (count, seed) in PROMPTS.items():
        prompts(count, seed).to_csv(data / name, index=False)
    _, pictures = real(REFERENCE, REFERENCE_SEED)
    save_file(
        {"features": attributes.judge_features(pictures).half()}, data / "reference.safetensors"
    )
    save_file(
        {"images": pictures[:64].permute(0, 2, 3, 1).contiguous()},
        data / "real_samples.safetensors",
    )
    (data / "training.json").write_text(
        json.dumps(history(runs, data / "training.json"), indent=1) + "\n"
    )


def assemble_flow(runs: Path, data: Path) -> None:
    """Puts the flow-matching model into Stable Diffusion 3's folder format, in float16."""
    parts = runs / "parts"
    pipe = flow.make_pipeline(parts, parts / "transformer").to(torch.float16)
    pipe.save_pretrained(data / "flow")
    _forget_paths(data / "flow")
    record = json.dumps(history(runs, data / "training.json"), indent=1) + "\n"
    (data / "training.json").write_text(record)


def history(runs: Path, file: Path) -> dict[str, list[dict]]:
    """Every part's runs in order: those on record in `file`, and the run under `runs`.

    A run that began with fresh weights replaces the part's earlier runs.
    """
    held: dict[str, list[dict]] = json.loads(file.read_text()) if file.exists() else {}
    for name in ("clip", "vae", "judge", "unet", "clip_2", "flow"):
        if (runs / name / "record.json").exists():
            curve = [
                json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()
            ]
            run = {
                **json.loads((runs / name / "record.json").read_text()),
                "curve": curve[:: max(1, len(curve) // 40)] + curve[-1:],
            }
            earlier = (
                [r for r in held.get(name, []) if r["curve"][0] != run["curve"][0]]
                if run["continued"]
                else []
            )
            held[name] = [*earlier, run]
    return held
