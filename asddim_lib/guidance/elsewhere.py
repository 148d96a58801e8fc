"""A guidance plan for other programs: the scale of each step, written in their terms.

A gate depends on the picture, and `zero_steps` add nothing to it: neither can be written so.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asddim_lib.configs import class_of
from asddim_lib.errors import check
from asddim_lib.guidance.law import SOLVERS
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.guidance.steps import law_of
from asddim_lib.levels import Levels, sigma_of

#: ComfyUI's samplers by the laws of `law.SOLVERS`. Its UniPC is of order 3, and its ancestral
#: sampler would draw the same noise in each piece of a workflow.
SAMPLERS = {"euler": "euler", "dpm++": "dpmpp_2m", "heun": "heun"}

_DIFFUSERS = '''\
"""{steps} steps, each with its guidance scale: written by `asddim export`, for diffusers alone."""

import inspect

SCALES = {scales}
GRID = {grid}


def guided(pipe, **call):
    """Calls a pipeline that begins with pure noise: guided(pipe, prompt="a red boot").images[0]"""
    guider = getattr(pipe, "guider", None)
    if guider is not None:  # a modular pipeline
        before = guider.guidance_scale

        def set_state(step, **state):
            type(guider).set_state(guider, step=step, **state)
            guider.guidance_scale = SCALES[step]

        guider.set_state = set_state
        try:
            return pipe(**GRID, **call)
        finally:
            del guider.set_state
            guider.guidance_scale = before
    if "self.guidance_scale * (" not in inspect.getsource(type(pipe).__call__):
        name = type(pipe).__name__
        raise TypeError(f"{{name}} reads its scale once: use asddim_lib's GuidancePlan, .on(pipe)")
    scales = [max(scale, 1.000001) for scale in SCALES]  # at 1 its batch would not fit its prompts

    def next_scale(pipe, step, timestep, tensors):
        if pipe.num_timesteps != len(scales):
            raise IndexError(f"the run has {{pipe.num_timesteps}} evaluations, not {{len(scales)}}")
        pipe._guidance_scale = scales[min(step + 1, len(scales) - 1)]
        return tensors

    return pipe(**GRID, guidance_scale=scales[0], callback_on_step_end=next_scale, **call)
'''


def written(
    form: str,
    plan: GuidancePlan,
    config: Mapping[str, Any],
    sigmas: Sequence[float],
    scale: float,
    solver: str | None,
    grid: Mapping[str, Any],
) -> str:
    """A plan as a module for diffusers, a workflow for ComfyUI or a line for A1111.

    - `form`: "diffusers", "comfyui" or "a1111".
    - `config`: the config of the model's scheduler, whose solver counts where `solver` is None.
    - `sigmas`: K + 1, as the solver uses them: σ, or s of a flow model.
    - `scale`: the scale that a pipeline would be given without the plan.
    - `grid`: the grid as a diffusers pipeline takes it. The first argument in it is written.

    Raises WrongUse as `plan.at` does, for a plan that is more than a scale of each step, and for a
    solver that cannot be cut into pieces in ComfyUI.
    """
    remedy = "it depends on the picture, and cannot be written beforehand: draw with asddim_lib"
    check(plan.gate is None, "gate", plan.gate, remedy)
    remedy = "other programs have no step that adds nothing: draw with asddim_lib"
    check(plan.zero_steps == 0, "zero_steps", plan.zero_steps, remedy)
    law, kind = solver, class_of(config)
    if law is None and kind is not None:
        law = law_of(kind.from_config(config))
    remedy = f"give one of {', '.join(SOLVERS)}"
    check(solver in (None, *SOLVERS), "solver", solver, remedy)
    known = plan.c is None or law is not None
    check(
        known, "solver", kind and kind.__name__, f"how much its steps bear is not known: {remedy}"
    )
    levels, after = Levels.from_diffusers(config), np.array(sigmas)
    times = np.array(grid["timesteps"]) / len(levels) if "timesteps" in grid else after[:-1]
    if levels.kind == "flow":
        after = sigma_of(np.minimum(after, 1.0))
    scales = [round(one, 6) for one in plan.at(after, scale, law, times)]
    if form == "comfyui":
        return json.dumps(_workflow(sigmas, scales, law), indent=1)
    if form == "a1111":
        pieces = [f"{start}:{one}" for start, _, one in _pieces(scales)]
        return json.dumps({"sigmas": list(sigmas), "cfg": "; ".join(pieces)})
    # Heun evaluates the network twice in each step but the last.
    each = [one for one in scales for _ in range(2)][:-1] if law == "heun" else scales
    argument = dict([next(iter(grid.items()))])
    return _DIFFUSERS.format(steps=len(scales), scales=each, grid=argument)


def _workflow(
    sigmas: Sequence[float], scales: Sequence[float], solver: str | None
) -> dict[str, Any]:
    """A workflow in ComfyUI's API format: a sampler for each run of steps of an equal scale."""
    check(solver in SAMPLERS, "solver", solver, f"in ComfyUI give one of {', '.join(SAMPLERS)}")
    nodes: dict[str, Any] = {}

    def add(kind: str, **inputs: Any) -> str:
        name = str(len(nodes) + 1)
        nodes[name] = {"class_type": kind, "inputs": inputs}
        return name

    model = add("CheckpointLoaderSimple", ckpt_name="model.safetensors")
    prompts = [add("CLIPTextEncode", clip=[model, 1], text=text) for text in ("a red boot", "")]
    conditions = {"positive": [prompts[0], 0], "negative": [prompts[1], 0]}
    latent = [add("EmptyLatentImage", width=512, height=512, batch_size=1), 0]
    rest = [add("ManualSigmas", sigmas=listed(sigmas)), 0]
    sampler = [add("KSamplerSelect", sampler_name=SAMPLERS[str(solver)]), 0]
    noise = [add("RandomNoise", noise_seed=0), 0]
    silence = [add("DisableNoise"), 0]
    for start, count, scale in _pieces(scales):
        piece = rest
        if start + count < len(scales):
            split = add("SplitSigmas", sigmas=rest, step=count)
            piece, rest = [split, 0], [split, 1]
        guider = [add("CFGGuider", model=[model, 0], **conditions, cfg=scale), 0]
        inputs = {"sampler": sampler, "sigmas": piece, "latent_image": latent}
        latent = [add("SamplerCustomAdvanced", noise=noise, guider=guider, **inputs), 0]
        noise = silence
    picture = add("VAEDecode", samples=latent, vae=[model, 2])
    add("SaveImage", images=[picture, 0], filename_prefix="asddim")
    return nodes


def listed(sigmas: Sequence[float]) -> str:
    """Sigmas for ComfyUI's ManualSigmas, which reads no exponents."""
    return ", ".join(np.format_float_positional(sigma, trim="0") for sigma in sigmas)


def _pieces(scales: Sequence[float]) -> list[tuple[int, int, float]]:
    """Runs of steps of an equal scale: where each starts, how many steps it has, and its scale."""
    runs = [(scale, len([*run])) for scale, run in itertools.groupby(scales)]
    starts = itertools.accumulate((count for _, count in runs), initial=0)
    return [(start, count, scale) for start, (scale, count) in zip(starts, runs, strict=False)]
