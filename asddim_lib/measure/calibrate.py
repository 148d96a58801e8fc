"""Measures a pipeline along its own sampling path: pipeline and prompts in; a profile of its sensitivity, or the path itself, out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.sensitivity import COST, PRODUCTS, Network, gradient_norm
from asddim_lib.core.step import predict
from asddim_lib.errors import check
from asddim_lib.evidence.adjoint import carry_back
from asddim_lib.evidence.profile import SensitivityProfile, fingerprint
from asddim_lib.evidence.trajectory import ORDERS, Trajectory, mean_shares, squares
from asddim_lib.files import short_hash, write_whole
from asddim_lib.grids.methods import timesteps
from asddim_lib.models.load import Pipeline, weights_hash
from asddim_lib.models.prompts import check_prompts
from asddim_lib.schedulers.asddim import ASDDIMScheduler

#: Takes a network call: ε as a function of sample and timestep, its value, the samples and their timesteps.
Measure = Callable[[Network, Tensor, Tensor, Tensor], None]


def calibrate(
    pipe: Pipeline,
    prompts: list[str],
    *,
    guidance_scale: float = 7.5,
    num_steps: int = 32,
    norm: str = "frobenius",
    estimator: str | None = None,
    probes: int = 1,
    adjoint_probes: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
    **options: Any,
) -> SensitivityProfile:
    """Runs the pipeline over `num_steps` evenly spaced timesteps; measures g(t) (Eq 8) of the guided prediction and the error of DDIM's steps.

    `norm`, `estimator` and `probes` are `gradient_norm`'s; besides, the estimator `path` costs nothing: it takes ‖Δε‖ / ‖Δx‖ between one
    timestep and the next, the network's change along the path alone. With `adjoint_probes` it is measured, too, how much of each error
    reaches the picture. Prompt i starts from the noise of seed `seed` + i, and no more than `batch_size` are run at once; other `options`
    (height, width, negative_prompt, …) go to the pipeline. The g at a timestep is the mean over prompts; its standard error is that mean's.
    With a `cache` folder each batch is kept as soon as it is measured, under a name made of all it depends on: what is measured again goes
    on where it was stopped, or costs nothing. The pipeline comes back as it was. Works for any diffusers pipeline whose network is `unet`
    and whose guidance puts the unconditional half of a batch first. Raises ValueError for another pipeline, wrong prompts, or when the
    network returns a number that is not finite.
    """
    check(len(prompts) > 0, "prompts", prompts, "give at least one")
    check(batch_size >= 1, "batch_size", batch_size, "give at least 1")
    check(
        getattr(pipe, "unet", None) is not None,
        "pipe",
        type(pipe).__name__,
        "give one whose network is a UNet",
    )
    schedule, chosen = (
        NoiseSchedule.from_config(pipe.scheduler),
        estimator or next(iter(COST.get(norm, COST["frobenius"]))),
    )
    how: dict[str, Any] = {
        "guidance_scale": guidance_scale,
        "num_steps": num_steps,
        "norm": norm,
        "estimator": chosen,
        "probes": probes,
    }
    how["adjoint_probes"] = adjoint_probes
    model = (
        {
            "weights": weights_hash(pipe),
            "dtype": str(pipe.unet.dtype),
            "config": repr(sorted(pipe.scheduler.config.items())),
        }
        if cache is not None
        else {}
    )
    parts = []
    for start in progress(range(0, len(prompts), batch_size)):
        batch = {
            "prompts": list(prompts[start : start + batch_size]),
            "seed": seed + start,
            **how,
            **options,
        }
        file = (
            Path(cache) / f"{short_hash({**model, **batch})}.safetensors"
            if cache is not None
            else None
        )
        parts.append(_kept(file, partial(_measured, pipe, schedule, **batch)))
    found = {
        name: torch.cat([part[name] for part in parts], -1)
        for name in parts[0]
        if name != "timesteps"
    }
    grid, g = parts[0]["timesteps"].tolist(), found["g"].double()
    error = g.std(1) / len(prompts) ** 0.5 if len(prompts) > 1 else torch.zeros(len(g))
    local = {
        kind: {
            str(order): mean_shares(found[f"{kind}/{order}"], order).tolist()
            for order in ORDERS
            if f"{kind}/{order}" in found
        }
        for kind in ("made", "carried")
    }
    each = len(grid) * (1 + 3 * adjoint_probes) + len(g) * (
        0 if chosen == "path" else probes * COST[norm][chosen]
    )
    return SensitivityProfile(
        timesteps=grid[: len(g)],
        g=g.mean(1).tolist(),
        stderr=error.tolist(),
        norm=norm,
        estimator=chosen,
        probes=probes,
        samples=len(prompts),
        seed=seed,
        guidance_scale=float(guidance_scale),
        model=str(getattr(pipe, "name_or_path", "")),
        schedule=fingerprint(schedule),
        evaluations=each * len(prompts) * (2 if guidance_scale > 1 else 1),
        local_error={"timesteps": grid, **{kind: part for kind, part in local.items() if part}},
    )


def _kept(file: Path | None, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What is in the file, or, where there is none or a damaged one, what is measured now, and then it is."""
    if file is None:
        return measure()
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):
        found = measure()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, partial(save_file, found))
    return found


def _measured(
    pipe: Pipeline,
    schedule: NoiseSchedule,
    prompts: list[str],
    seed: int,
    num_steps: int,
    norm: str,
    estimator: str,
    probes: int,
    **how: Any,
) -> dict[str, Tensor]:
    """A batch's part of a profile: g (timesteps × n), and each order's squared errors on each stretch, as made (× n) and carried (× probes n)."""
    regular, found = set(timesteps(pipe.scheduler, num_steps, allocation="trailing")), []
    generator = torch.Generator().manual_seed(seed)

    def measure(eps: Network, prediction: Tensor, x: Tensor, t: Tensor) -> None:
        if int(t) in regular:
            found.append(
                gradient_norm(
                    eps, x, t, norm=norm, estimator=estimator, probes=probes, generator=generator
                )[0].cpu()
            )

    along = estimator == "path"
    path = record(
        pipe,
        prompts,
        num_steps=num_steps,
        batch_size=len(prompts),
        seed=seed,
        also=None if along else measure,
        **how,
    )
    if along:
        changed, moved = (v.double().diff(dim=0).norm(dim=2) for v in (path.noises, path.samples))
        found = list(changed / moved)
    parts = {"timesteps": torch.tensor(path.timesteps), "g": torch.stack(found)}
    for order in (order for order in ORDERS if order < len(path.timesteps)):
        parts[f"made/{order}"] = squares(path, schedule, order)
        if path.adjoints is not None:
            parts[f"carried/{order}"] = squares(path, schedule, order, carried=True)
    return {
        name: part.contiguous() for name, part in parts.items()
    }  # as safetensors wants it: of one prompt and some probes, it is a view


def record(
    pipe: Pipeline,
    prompts: list[str],
    *,
    guidance_scale: float = 7.5,
    num_steps: int = 60,
    adjoint_probes: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    also: Measure | None = None,
    **options: Any,
) -> Trajectory:
    """The pipeline's own DDIM path over `num_steps` evenly spaced timesteps and timestep 0, one evaluation each, and `adjoint_probes` sweeps
    back over it, three evaluations a point.

    Prompts, seeds, batches, options and errors are as in `calibrate`; `also` is handed every network call. Latents come flattened: d is
    channels × height × width.
    """
    check(len(prompts) > 0, "prompts", prompts, "give at least one")
    check(
        guidance_scale >= 1,
        "guidance_scale",
        guidance_scale,
        "give a number of at least 1 (1 is no guidance)",
    )
    check(batch_size >= 1, "batch_size", batch_size, "give at least 1")
    check(adjoint_probes >= 0, "adjoint_probes", adjoint_probes, "give at least 0")
    check_prompts(pipe, prompts)
    schedule = NoiseSchedule.from_config(pipe.scheduler)
    check(2 <= num_steps <= len(schedule), "num_steps", num_steps, f"give 2 to {len(schedule)}")
    calls: list[tuple[Network, Tensor, Tensor, Tensor]] = []

    def measure(eps: Network, prediction: Tensor, x: Tensor, t: Tensor) -> None:
        calls.append((eps, prediction, x, t))
        if also is not None:
            also(eps, prediction, x, t)

    original, parts = pipe.scheduler, []
    scheduler = _ToTheLast.from_config(original.config, allocation="trailing")
    pipe.scheduler, watch = scheduler, Watch(pipe, guidance_scale, measure)
    handle = pipe.unet.register_forward_hook(watch, with_kwargs=True)
    frozen = [p for p in pipe.unet.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        for start in range(0, len(prompts), batch_size):
            chosen = list(prompts[start : start + batch_size])
            starts = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chosen))]
            end = pipe(
                chosen,
                num_inference_steps=num_steps,
                guidance_scale=guidance_scale,
                generator=starts,
                output_type="latent",
                **options,
            ).images
            samples, noises = (
                torch.stack([x.flatten(1).cpu() for x in kept])
                for kept in ([c[2] for c in calls], [c[1] for c in calls])
            )
            path = Trajectory(
                [int(call[3]) for call in calls],
                samples,
                noises,
                end.flatten(1).cpu(),
                float(scheduler.final_alpha_cumprod),
            )
            watch.busy = True
            adjoints = [_sweep(calls, path.sigmas(schedule), starts) for _ in range(adjoint_probes)]
            watch.busy = False
            parts.append(replace(path, adjoints=torch.stack(adjoints)) if adjoints else path)
            calls.clear()
    finally:
        handle.remove()
        pipe.scheduler = original
        for p in frozen:
            p.requires_grad_(True)

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts], -2)

    adjoint = joined("adjoints") if adjoint_probes else None
    return replace(
        parts[0],
        samples=joined("samples"),
        noises=joined("noises"),
        end=joined("end"),
        adjoints=adjoint,
    )


def _sweep(
    calls: list[tuple[Network, Tensor, Tensor, Tensor]],
    sigmas: Tensor,
    generators: list[torch.Generator],
) -> Tensor:
    """One sweep back over a batch's calls, along a random direction for each image: N × n × d."""
    like = calls[0][2]
    probe = torch.cat([torch.randn(1, *like.shape[1:], generator=one) for one in generators]).to(
        like
    )
    return (
        carry_back(
            sigmas, lambda k, v: PRODUCTS["vjp"](calls[k][0], calls[k][2], calls[k][3], v), probe
        )
        .flatten(2)
        .cpu()
    )


class _ToTheLast(ASDDIMScheduler):
    """Goes on to timestep 0 after its grid, so that the path's last stretch is seen too."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: list[int] | None = None,
    ) -> None:
        super().set_timesteps(num_inference_steps, device, timesteps)
        if self.timesteps[-1] > 0:
            super().set_timesteps(timesteps=[*self.timesteps.tolist(), 0], device=device)


class Watch:
    """A forward hook that hands on the guided ε at each network call, as a function of sample and timestep, whatever the network predicts.

    `measure(eps, prediction, x, t)` gets that function, its value, the samples (n × …) and their timesteps (one, or n). `busy` is true
    while it runs: what the network is asked meanwhile is a probe.
    """

    def __init__(self, pipe: Pipeline, guidance_scale: float | None, measure: Measure) -> None:
        self.pipe, self.guidance_scale, self.measure, self.busy = (
            pipe,
            guidance_scale,
            measure,
            False,
        )

    def __call__(
        self, network: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> None:
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
            alpha = self.pipe.scheduler.alphas_cumprod.to(x)[t.to(x.device)].reshape(
                -1, *[1] * (x.ndim - 1)
            )
            return predict(x, prediction, alpha, config["prediction_type"])[1]

        def eps(x: Tensor, t: Tensor) -> Tensor:
            return guide(network(twice(x), twice(t), *args[2:], **kwargs), x, t)

        x, t = first(args[0]), first(torch.as_tensor(args[1]))
        self.busy = True
        try:
            self.measure(eps, guide(output, x, t), x, t)
        finally:
            self.busy = False
