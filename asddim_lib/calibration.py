"""Measures a pipeline along its own sampling path: pipeline and prompts in; a profile of its sensitivity, or the path itself, out."""

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
from asddim_lib.search import Trajectory
from asddim_lib.sensitivity import COST, Network, SensitivityProfile, fingerprint, gradient_norm
from asddim_lib.step import predict

#: Takes a network call: ε as a function of sample and timestep, its value, the samples and their timesteps.
Measure = Callable[[Network, Tensor, Tensor, Tensor], None]


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
    schedule, generator = NoiseSchedule.from_config(pipe.scheduler), torch.Generator().manual_seed(seed)
    found: dict[int, list[Tensor]] = {}
    before: tuple[int, Tensor, Tensor] | None = None

    def measure(eps: Network, prediction: Tensor, x: Tensor, t: Tensor) -> None:
        nonlocal before
        if estimator != "path":
            value = gradient_norm(eps, x, t, norm=norm, estimator=estimator, probes=probes, generator=generator)[0]
            found.setdefault(int(t), []).append(value.cpu())
            return
        if before is not None and before[0] > t:  # else a new batch begins
            changed, moved = ((new - old).double().flatten(1).norm(dim=1) for new, old in ((prediction, before[1]), (x, before[2])))
            found.setdefault(before[0], []).append((changed / moved).cpu())
        before = int(t), prediction, x

    _sample(pipe, prompts, guidance_scale, num_steps, batch_size, seed, measure)
    grid = sorted(found, reverse=True)
    values = np.stack([torch.cat(found[t]).numpy() for t in grid])
    count = len(prompts)
    error = values.std(1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(len(grid))
    return SensitivityProfile(
        timesteps=grid, g=values.mean(1).tolist(), stderr=error.tolist(), norm=norm, estimator=estimator or next(iter(COST[norm])), probes=probes,
        samples=count, seed=seed, guidance_scale=float(guidance_scale), model=str(getattr(pipe, "name_or_path", "")), schedule=fingerprint(schedule),
    )  # fmt: skip


def record(pipe: Pipeline, prompts: list[str], *, guidance_scale: float = 7.5, num_steps: int = 60, batch_size: int = 8, seed: int = 0) -> Trajectory:
    """The pipeline's own DDIM path over `num_steps` evenly spaced timesteps, one evaluation each: what the oracle's and GITS' grids are searched on.

    Prompts, seeds, batches and errors are as in `calibrate`. Latents come flattened: d is channels × height × width.
    """
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def measure(eps: Network, prediction: Tensor, x: Tensor, t: Tensor) -> None:
        found.setdefault(int(t), []).append((x.flatten(1).cpu(), prediction.flatten(1).cpu()))

    end = _sample(pipe, prompts, guidance_scale, num_steps, batch_size, seed, measure)
    grid = sorted(found, reverse=True)
    samples, noises = (torch.stack([torch.cat([pair[i] for pair in found[t]]) for t in grid]) for i in (0, 1))
    return Trajectory(grid, samples, noises, end.flatten(1).cpu(), float(ASDDIMScheduler.from_config(pipe.scheduler.config).final_alpha_cumprod))


def _sample(pipe: Pipeline, prompts: list[str], guidance_scale: float, num_steps: int, batch_size: int, seed: int, measure: Measure) -> Tensor:
    """Runs DDIM over evenly spaced timesteps, hands every guided prediction to `measure`, and returns the latents that it ends in."""
    check(len(prompts) > 0, "prompts", prompts, "give at least one")
    check(guidance_scale >= 1, "guidance_scale", guidance_scale, "give a number of at least 1 (1 is no guidance)")
    check(batch_size >= 1, "batch_size", batch_size, "give at least 1")
    check_prompts(pipe, prompts)
    size = len(NoiseSchedule.from_config(pipe.scheduler))
    check(2 <= num_steps <= size, "num_steps", num_steps, f"give 2 to {size}")
    original, ends = pipe.scheduler, []
    pipe.scheduler = ASDDIMScheduler.from_config(original.config, allocation="trailing")
    handle = pipe.unet.register_forward_hook(Watch(pipe, guidance_scale, measure), with_kwargs=True)
    frozen = [p for p in pipe.unet.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        for start in range(0, len(prompts), batch_size):
            chosen = list(prompts[start : start + batch_size])
            starts = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chosen))]
            made = pipe(chosen, num_inference_steps=num_steps, guidance_scale=guidance_scale, generator=starts, output_type="latent")
            ends.append(made.images)
    finally:
        handle.remove()
        pipe.scheduler = original
        for p in frozen:
            p.requires_grad_(True)
    return torch.cat(ends)


class Watch:
    """A forward hook that hands on the guided ε at each network call, as a function of sample and timestep, whatever the network predicts.

    `measure(eps, prediction, x, t)` gets that function, its value, the samples (n × …) and their timesteps (one, or n). `busy` is true
    while it runs: what the network is asked meanwhile is a probe.
    """

    def __init__(self, pipe: Pipeline, guidance_scale: float | None, measure: Measure) -> None:
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

        def guide(result: Any, x: Tensor, t: Tensor) -> Tensor:
            prediction = result[0] if isinstance(result, tuple) else result.sample
            if guided:
                without, given = prediction.chunk(2)
                prediction = without + scale * (given - without)
            config = self.pipe.scheduler.config
            if config["prediction_type"] == "epsilon":
                return prediction
            alpha = self.pipe.scheduler.alphas_cumprod.to(x)[t.to(x.device)].reshape(-1, *[1] * (x.ndim - 1))
            return predict(x, prediction, alpha, config["prediction_type"])[1]

        def eps(x: Tensor, t: Tensor) -> Tensor:
            return guide(network(twice(x), twice(t), *args[2:], **kwargs), x, t)

        x, t = first(args[0]), first(torch.as_tensor(args[1]))
        self.busy = True
        try:
            self.measure(eps, guide(output, x, t), x, t)
        finally:
            self.busy = False
