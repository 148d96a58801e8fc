"""Measures a pipeline's own sensitivity along its sampling path: pipeline and prompts in, profile out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.models import Pipeline
from asddim_lib.noise import NoiseSchedule
from asddim_lib.prompts import check_prompts
from asddim_lib.scheduler import ASDDIMScheduler
from asddim_lib.sensitivity import SensitivityProfile, fingerprint, gradient_norm


def calibrate(
    pipe: Pipeline,
    prompts: list[str],
    *,
    guidance_scale: float = 7.5,
    num_steps: int = 20,
    estimator: str = "vjp",
    probes: int = 1,
    seed: int = 0,
) -> SensitivityProfile:
    """Runs the pipeline once over `num_steps` evenly spaced timesteps and measures g(t) (Eq 8) of the guided prediction at each.

    Prompt i starts from the noise of seed `seed` + i. The value at a timestep is the mean over prompts; its standard error is that mean's.
    The pipeline comes back as it was. Works for any diffusers pipeline whose network is `unet` and whose guidance puts the unconditional
    half of a batch first. Raises ValueError for wrong prompts, or when the network returns a number that is not finite.
    """
    check(len(prompts) > 0, "prompts", prompts, "give at least one")
    check(guidance_scale >= 1, "guidance_scale", guidance_scale, "give a number of at least 1 (1 is no guidance)")
    check_prompts(pipe, prompts)
    schedule = NoiseSchedule.from_config(pipe.scheduler)
    check(2 <= num_steps <= len(schedule), "num_steps", num_steps, f"give 2 to {len(schedule)}")
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, Tensor] = {}

    def measure(eps: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> None:
        found[int(t)] = gradient_norm(eps, x, t, estimator=estimator, probes=probes, generator=generator)[0]

    original = pipe.scheduler
    pipe.scheduler = ASDDIMScheduler.from_config(original.config, allocation="uniform", timestep_spacing="trailing")
    handle = pipe.unet.register_forward_hook(_watch(pipe, guidance_scale, measure), with_kwargs=True)
    frozen = [p for p in pipe.unet.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        starts = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        pipe(list(prompts), num_inference_steps=num_steps, guidance_scale=guidance_scale, generator=starts, output_type="latent")
    finally:
        handle.remove()
        pipe.scheduler = original
        for p in frozen:
            p.requires_grad_(True)
    grid = sorted(found, reverse=True)
    values = np.stack([found[t].cpu().numpy() for t in grid])
    count = len(prompts)
    error = values.std(1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(len(grid))
    return SensitivityProfile(
        timesteps=grid, g=values.mean(1).tolist(), stderr=error.tolist(), estimator=estimator, probes=probes, samples=count, seed=seed,
        guidance_scale=float(guidance_scale), model=str(getattr(pipe, "name_or_path", "")), schedule=fingerprint(schedule),
    )  # fmt: skip


def _watch(pipe: Pipeline, guidance_scale: float, measure: Callable) -> Callable:
    """A hook that hands on the guided prediction at each network call, as a function of the sample alone."""
    busy = False

    def hook(network: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal busy
        if busy:  # a probe's own evaluation
            return
        busy = True
        guided = pipe.do_classifier_free_guidance

        def eps(x: Tensor, t: Tensor) -> Tensor:
            doubled = torch.cat([x, x]) if guided else x
            result = network(doubled, t, *args[2:], **kwargs)
            prediction = result[0] if isinstance(result, tuple) else result.sample
            if not guided:
                return prediction
            without, given = prediction.chunk(2)
            return without + guidance_scale * (given - without)

        x = args[0].chunk(2)[0] if guided else args[0]
        try:
            measure(eps, x, torch.as_tensor(args[1]))
        finally:
            busy = False

    return hook
