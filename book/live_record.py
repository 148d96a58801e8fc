"""What the page with the model in it knows before a click, taken from the library itself."""

from __future__ import annotations

import base64
import json
import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import live_models
from chapter import ROOT

if TYPE_CHECKING:
    from asddim_lib import GuidancePlan

sys.path.append(str(ROOT))  # the grammar of the prompts is the training's

START = {
    "count": 1,
    "colour": "red",
    "garment": "sneaker",
    "relation": "left of",
    "colourB": "blue",
    "garmentB": "bag",
    "ground": "mint",
}
#: The recorded frames are the UNet's.
MODEL = "unet"
STEPS, SEED, GUIDANCE = 5, 1, live_models.MODELS[MODEL].guidance
SEEDS = range(1, 9)
#: The evaluations of each recorded picture; the page's budget begins with them.
BUDGET = 10
#: The recorded columns: even steps at the page's scale, and what a race draws beside them.
COLUMNS = {"constant": f"Guidance {GUIDANCE:g}", "cap": "The cap", "recipe": "The recipe"}


def record(folder: Path) -> None:
    """Writes frames.png, recorded.json, noise.bin and known.json into `folder`.

    frames.png has a row of 64×64 pictures for each of `COLUMNS`: the decoded noise, the clean
    picture predicted in each step, and the end.
    """
    import numpy as np
    import torch
    from PIL import Image

    from asddim_lib import load_pipeline
    from asddim_lib.levels import Levels

    pipe, known = load_pipeline(live_models.MODELS[MODEL].pipeline), knowledge()
    noise = torch.cat([starting_noise(seed) for seed in SEEDS])
    (folder / "noise.bin").write_bytes(noise.numpy().astype("<f4").tobytes())
    (folder / "known.json").write_text(json.dumps(known))
    grid, prompt = known["models"][MODEL]["grids"]["even"][str(STEPS)], prompt_of(START)
    rows = []
    for scale, plan in plans().values():
        scales = plan.at(Levels.from_diffusers(pipe.scheduler).sigmas_at(grid), scale)
        assert sum(1 + (one > 1) for one in scales) == BUDGET
        rows.append(path(pipe, prompt, SEED, scales, grid))
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(
        folder / "frames.png"
    )
    pictures = [torch.from_numpy(row[-1]).permute(2, 0, 1) for row in rows]
    columns = [
        {"name": name, "evaluations": BUDGET, "wrong": verdict["wrong"]}
        for name, verdict in zip(COLUMNS.values(), judged(pictures), strict=True)
    ]
    (folder / "recorded.json").write_text(json.dumps({"prompt": prompt, "columns": columns}))


def plans() -> dict[str, tuple[float, GuidancePlan]]:
    """The scale and the guidance plan of each of `COLUMNS`."""
    from asddim_lib import GuidancePlan, Recipe

    recipe = Recipe.load(live_models.MODELS[MODEL].recipe)
    return {
        "constant": (GUIDANCE, GuidancePlan.constant()),
        "cap": (GUIDANCE, GuidancePlan.capped()),
        "recipe": (recipe.guidance_scale or GUIDANCE, recipe.plan),
    }


def shown(folder: Path) -> dict[str, str]:
    """The recorded frames as parts of the page: a picture, a description, and numbers."""
    one = json.loads((folder / "recorded.json").read_text())
    source = base64.b64encode((folder / "frames.png").read_bytes()).decode()
    return {
        "frames": f"data:image/png;base64,{source}",
        "prompt": escape(one["prompt"]),
        "guidance": f"{GUIDANCE:g}",
        "budget": str(BUDGET),
        "steps": str(STEPS),
        "recorded": escape(json.dumps({"steps": STEPS, "columns": one["columns"]})),
    }


def judged(pictures: list[Any]) -> list[dict[str, Any]]:
    """The judge on pictures (3 × 64 × 64) of `START`, the last of which is the goal.

    Of each, the distance of its features from the goal's, over the spread of real pictures'; and
    the attributes that are not what the prompt asks for.
    """
    import torch

    from experiments.attributes import attributes_right, judge_features

    features = judge_features(torch.stack(pictures))
    asked = {name: [value] * len(pictures) for name, value in scene_of(START).as_row().items()}
    right = attributes_right(features, asked)
    heads = [head for head in right if head != "all"]
    far = (features - features[-1]).norm(dim=1) / features_spread()
    return [
        {"features": float(far[k]), "wrong": [head for head in heads if not right[head][k]]}
        for k in range(len(pictures))
    ]


def features_spread() -> float:
    """The root of the mean squared distance of real pictures' features from their mean."""
    from experiments.attributes import reference_features

    features = reference_features()
    return float((features - features.mean(0)).square().sum(1).mean().sqrt())


def knowledge() -> dict[str, Any]:
    """What the page's scripts need: the judge, the choices, and the models."""
    from experiments.attributes import load_judge
    from training import compositions

    judge = load_judge()
    heads = {name: judge.config.attributes[name] for name in judge.heads}
    return {
        "judge": {"features": judge.num_features, "spread": features_spread(), "heads": heads},
        "shape": list(starting_noise(SEED).shape[1:]),
        "seeds": list(SEEDS),
        "start": {**START, "steps": STEPS, "seed": SEED, "budget": BUDGET},
        "choices": {
            "colour": list(compositions.COLOURS),
            "garment": list(compositions.GARMENTS),
            "ground": list(compositions.GROUNDS),
            "relation": list(compositions.RELATIONS),
            "count": list(compositions.COUNTS),
        },
        "models": {name: live_models.known(name) for name in live_models.MODELS},
    }


def prompt_of(parts: dict[str, Any]) -> str:
    """The caption of a choice of the page."""
    return scene_of(parts).caption


def scene_of(parts: dict[str, Any]) -> Any:
    """A choice of the page as a scene of the grammar, which leaves out what does not show."""
    from training.compositions import Scene

    related = parts["relation"] != "none"
    return Scene(
        "",
        parts["garment"],
        parts["colour"],
        parts["ground"],
        1 if related else parts["count"],
        parts["relation"],
        parts["garmentB"] if related else "",
        parts["colourB"] if related else "",
    )


def starting_noise(seed: int) -> Any:
    """The noise (1 × 4 × 16 × 16, float32) from which the library starts with a seed."""
    import torch

    return torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed))


def path(pipe: Any, prompt: str, seed: int, scales: list[float], grid: list[int]) -> list[Any]:
    """The pictures of DDIM's way over a grid, whose steps have guidance scales.

    There are len(grid) + 1 pictures (64 × 64 × 3, uint8): of the noise, of the clean latents that
    each step but the last predicts, and of the end.
    """
    import torch

    from asddim_lib import ASDDIMScheduler

    scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(timesteps=grid)
    latents, frames = starting_noise(seed), []
    with torch.no_grad():
        context = torch.cat(pipe.encode_prompt(prompt, "cpu", 1, True)[::-1])
        frames.append(picture(pipe, latents))
        for timestep, scale in zip(scheduler.timesteps, scales, strict=True):
            without, known = pipe.unet(
                torch.cat([latents, latents]), timestep, context, return_dict=False
            )[0].chunk(2)
            out = scheduler.step(without + scale * (known - without), timestep, latents)
            latents = out.prev_sample
            clean = out.pred_original_sample
            frames.append(picture(pipe, latents if len(frames) == len(grid) else clean))
    return frames


def picture(pipe: Any, latents: Any) -> Any:
    """Latents as a picture (64 × 64 × 3, uint8)."""
    from asddim_lib.metrics.distance import images_to_uint8

    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    shown = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return images_to_uint8(shown)[0].permute(1, 2, 0).numpy()
