"""The two models that the page can load, and what its scripts know of each before a click."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from chapter import ROOT


class Model(NamedTuple):
    """A model of the page: the library's name of it, what the page calls it, and its start.

    `profile` was measured on it, and makes its measured grid. `recipe` is the folder of the recipe
    that was searched for it in ten evaluations.
    """

    pipeline: str
    label: str
    profile: Path
    guidance: float
    recipe: Path


RESULTS = ROOT / "results"
#: By the name that the page's files have.
MODELS = {
    "unet": Model(
        "bundled",
        "UNet",
        RESULTS / "compare" / "ddim" / "profile-g3.json",
        7.5,
        RESULTS / "recipes" / "unet" / "10",
    ),
    "transformer": Model(
        "bundled-flow",
        "transformer",
        RESULTS / "pictures" / "bundled-flow" / "profile-g6.json",
        6.0,
        RESULTS / "recipes" / "flow" / "10",
    ),
}
#: The named grids: what the page calls them, and the library's allocation.
GRIDS = {
    "measured": "equidistributed",
    "even": "trailing",
    "paper": "noise",
    "logsnr": "logsnr",
    "beta": "beta",
}
COUNTS = range(3, 21)
FINE = 100


def known(name: str) -> dict[str, Any]:
    """The noise levels, named grids and words of a model."""
    from asddim_lib import load_pipeline

    model = MODELS[name]
    pipe = load_pipeline(model.pipeline)
    scheduler = pipe.scheduler
    return {
        "label": model.label,
        "guidance": model.guidance,
        "levels": levels(scheduler),
        "grids": {called: laid(scheduler, by, model.profile) for called, by in GRIDS.items()},
        "fine": grid(scheduler, "trailing", FINE),
        "recipe": recipe(model.recipe),
        "tokens": words(pipe.tokenizer),
    }


def recipe(folder: Path) -> dict[str, Any]:
    """A recipe of even steps, as the page's plans are written: its scale, and bands or a cap."""
    from asddim_lib import Recipe

    found = Recipe.load(folder)
    named = {"bands": "bands", "c": "cap"}
    plan = {named[key]: value for key, value in found.plan.to_dict().items()}
    return {"scale": found.guidance_scale, **plan}


def levels(scheduler: Any) -> dict[str, Any]:
    """The level of noise at each number 0 … T − 1, and the one at which the last step ends.

    DDIM's are ᾱ, and a flow model's are σ after its shift.
    """
    from asddim_lib import ASDDIMScheduler
    from asddim_lib.levels import Levels

    levels = Levels.from_diffusers(scheduler)
    if levels.kind == "flow":
        sigmas = levels.shifted(levels.unshifted_at(range(len(levels))))
        return {"kind": "flow", "values": sigmas.tolist(), "last": 0.0}
    own = ASDDIMScheduler.from_config(scheduler.config)
    last = float(own.final_alpha_cumprod)
    return {"kind": "ddim", "values": own.alphas_cumprod.tolist(), "last": last}


def laid(scheduler: Any, allocation: str, profile: Path) -> dict[str, list[int]]:
    """An allocation's grid for each number of steps that the page offers."""
    measured = allocation == "equidistributed"
    how = {"profile": json.loads(profile.read_text())} if measured else {}
    return {str(steps): grid(scheduler, allocation, steps, **how) for steps in COUNTS}


def grid(scheduler: Any, allocation: str, steps: int, **how: Any) -> list[int]:
    """An allocation's grid, as whole timesteps."""
    from asddim_lib import sigmas
    from asddim_lib.levels import Levels

    placed = sigmas(scheduler, steps, allocation=allocation, shifted=True, **how)
    return Levels.from_diffusers(scheduler).to_timesteps(placed)


def words(tokenizer: Any) -> dict[str, Any]:
    """The tokens of each word of the grammar, and of what stands around a prompt."""
    from training import compositions

    scenes = [
        compositions.Scene("", garment, colour, ground, count, relation, garment, colour)
        for garment in compositions.GARMENTS
        for colour in compositions.COLOURS
        for ground in compositions.GROUNDS
        for count in range(1, len(compositions.COUNTS) + 1)
        for relation in compositions.RELATIONS
    ]
    used = sorted({word for scene in scenes for word in scene.caption.split()})
    return {
        "words": {word: tokenizer(word, add_special_tokens=False).input_ids for word in used},
        "begin": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "length": tokenizer.model_max_length,
    }
