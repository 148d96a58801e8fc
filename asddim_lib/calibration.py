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
from asddim_lib.sensitivity import COST, Network, SensitivityProfile, fingerprint, gradient_norm


def calibrate(
    pipe: Pipeline,
    prompts: list[str],
    *,
    guidance_scale: float = 7.5,
    num_steps: int = 20,
    norm: str = "frobenius",
    estimator: str | None = None,
    probes: int = 1,
    batch_size: int = 8,
    seed: int = 0,
) -> SensitivityProfile:
    """Runs the pipeline over `num_steps` evenly spaced timesteps and measures g(t) (Eq 8) of the guided prediction at each.

    `norm`, `estimator` and `probes` are `gradient_norm`'s; besides, the estimator `path` costs nothing: it takes ‖Δε‖ / ‖Δx‖ between one
    timestep and the next, the network's change along the path alone. No more than `batch_size` prompts are run at once. Prompt i starts
    from the noise of seed `seed` + i. The value at a timestep is the mean over prompts; its standard error is that mean's. The pipeline
    comes back as it was. Works for any diffusers pipeline whose network is `unet` and whose guidance puts the unconditional half of a
    batch first. Raises ValueError for wrong prompts, or when the network returns a number that is not finite.
    """
    check(len(prompts) > 0, "prompts", prompts, "give at least one")
    check(guidance_scale >= 1, "guidance_scale", guidance_scale, "give a number of at least 1 (1 is no guidance)")
    check(batch_size >= 1, "batch_size", batch_size, "give at least 1")
    check_prompts(pipe, prompts)
    schedule = NoiseSchedule.from_config(pipe.scheduler)
    check(2 <= num_steps <= len(schedule), "num_steps", num_steps, f"give 2 to {len(schedule)}")
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, list[Tensor]] = {}
    before: tuple[int, Tensor, Tensor] | None = None

    def measure(eps: Callable[[Tensor, Tensor], Tensor], prediction: Tensor, x: Tensor, t: Tensor) -> None:
        nonlocal before
        if estimator != "path":
            value = gradient_norm(eps, x, t, norm=norm, estimator=estimator, probes=probes, generator=generator)[0]
            found.setdefault(int(t), []).append(value.cpu())
            return
        if before is not None:
            changed, moved = ((new - old).double().flatten(1).norm(dim=1) for new, old in ((prediction, before[1]), (x, before[2])))
            found.setdefault(before[0], []).append((changed / moved).cpu())
        before = int(t), prediction, x

    original = pipe.scheduler
    pipe.scheduler = ASDDIMScheduler.from_config(original.config, allocation="uniform", timestep_spacing="trailing")
    handle = pipe.unet.register_forward_hook(Watch(pipe, guidance_scale, measure), with_kwargs=True)
    frozen = [p for p in pipe.unet.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        for start in range(0, len(prompts), batch_size):
            chosen, before = list(prompts[start : start + batch_size]), None
            starts = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chosen))]
            pipe(chosen, num_inference_steps=num_steps, guidance_scale=guidance_scale, generator=starts, output_type="latent")
    finally:
        handle.remove()
        pipe.scheduler = original
        for p in frozen:
            p.requires_grad_(True)
    grid = sorted(found, reverse=True)
    values = np.stack([torch.cat(found[t]).numpy() for t in grid])
    count = len(prompts)
    error = values.std(1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(len(grid))
    return SensitivityProfile(
        timesteps=grid, g=values.mean(1).tolist(), stderr=error.tolist(), norm=norm, estimator=estimator or next(iter(COST[norm])), probes=probes,
        samples=count, seed=seed, guidance_scale=float(guidance_scale), model=str(getattr(pipe, "name_or_path", "")), schedule=fingerprint(schedule),
    )  # fmt: skip


class Watch:
    """A forward hook that hands on the guided prediction at each network call, as a function of the sample alone.

    `measure(eps, prediction, x, t)` gets that function, its value, the samples (n × …) and their timesteps (one, or n). `busy` is true
    while it runs: what the network is asked meanwhile is a probe.
    """

    def __init__(self, pipe: Pipeline, guidance_scale: float | None, measure: Callable[[Network, Tensor, Tensor, Tensor], None]) -> None:
        self.pipe, self.guidance_scale, self.measure, self.busy = pipe, guidance_scale, measure, False

    def __call__(self, network: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self.busy:
            return
        guided = self.pipe.do_classifier_free_guidance
        scale = self.pipe.guidance_scale if self.guidance_scale is None else self.guidance_scale

        def first(x: Tensor) -> Tensor:
            return x.chunk(2)[0] if guided and x.ndim else x

        def twice(x: Tensor) -> Tensor:
            return torch.cat([x, x]) if guided and x.ndim else x

        def guide(result: Any) -> Tensor:
            prediction = result[0] if isinstance(result, tuple) else result.sample
            if not guided:
                return prediction
            without, given = prediction.chunk(2)
            return without + scale * (given - without)

        def eps(x: Tensor, t: Tensor) -> Tensor:
            return guide(network(twice(x), twice(t), *args[2:], **kwargs))

        self.busy = True
        try:
            self.measure(eps, guide(output), first(args[0]), first(torch.as_tensor(args[1])))
        finally:
            self.busy = False
