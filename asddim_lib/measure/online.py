"""The paper's loop (its Algorithms 1–5): g(t) is measured on the sample while it is drawn, and the steps that remain are laid anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.sensitivity import COST, Network, gradient_norm
from asddim_lib.errors import check
from asddim_lib.evidence.profile import SensitivityProfile
from asddim_lib.measure.calibrate import Watch
from asddim_lib.models.load import Pipeline
from asddim_lib.schedulers.asddim import ASDDIMScheduler
from asddim_lib.schedulers.online import OnlineScheduler


@dataclass
class OnlineRecord:
    """What the last call of the pipeline did: the grids (one, or one an image), the g that was measured, and evaluations an image."""

    grids: list[list[int]] = field(default_factory=list)
    measured: dict[int, list[float]] = field(default_factory=dict)  # step number: g of every image
    nfe: int = 0


@contextmanager
def online(
    pipe: Pipeline,
    *,
    every: int = 4,
    estimator: str = "vjp",
    probes: int = 1,
    per_image: bool = False,
    profile: SensitivityProfile | None = None,
    seed: int = 0,
) -> Iterator[OnlineRecord]:
    """Within it, each call of the pipeline measures g on its own samples at every `every`-th step and lays the rest of the grid by it.

    The pipeline's scheduler must be an `ASDDIMScheduler` with allocation gradient or combined; K still holds. With `per_image` each image of
    a batch follows a grid of its own, else all follow their mean g. A `profile` (by default the scheduler's own) says what g to expect before
    it is measured; without one, a constant. Yields the record of the latest call. Raises ValueError for a scheduler or an estimator that
    does not serve.
    """
    original = pipe.scheduler
    serves = isinstance(original, ASDDIMScheduler) and original.config["allocation"] in (
        "gradient",
        "combined",
    )
    check(
        serves,
        "pipe.scheduler",
        type(original).__name__,
        'make it ASDDIMScheduler.from_config(…, allocation="gradient" or "combined")',
    )
    check(
        estimator in COST["frobenius"],
        "estimator",
        estimator,
        f"use one of {', '.join(COST['frobenius'])}",
    )
    check(every >= 1, "every", every, "give at least 1")
    schedule, record = NoiseSchedule.from_config(original), OnlineRecord()
    scheduler = OnlineScheduler.from_config(original.config)
    held = profile or (
        SensitivityProfile.from_dict(original.config["profile"])
        if original.config["profile"]
        else None
    )
    scheduler.begin(held.at(schedule) if held else np.ones(len(schedule)), np.inf)

    def measure(eps: Network, prediction: Tensor, x: Tensor, t: Tensor) -> None:
        copies = 2 if pipe.do_classifier_free_guidance else 1
        steps = scheduler.grid.shape[1]
        if state["step"] == 0:
            record.nfe, record.measured = 0, {}
            scheduler.begin(scheduler._prior, every * len(schedule) / steps)
        record.nfe += copies
        if state["step"] % every == 0 and state["step"] + 1 < steps:
            generator = [
                torch.Generator().manual_seed(seed + state["step"]) for _ in x
            ]  # the same for every image, whatever the batch
            g = (
                gradient_norm(eps, x, t, estimator=estimator, probes=probes, generator=generator)[0]
                .cpu()
                .numpy()
            )
            record.nfe += copies * probes * COST["frobenius"][estimator]
            record.measured[state["step"]] = g.tolist()
            scheduler.lay_anew(state["step"], g if per_image else g.mean(keepdims=True))
        record.grids = scheduler.grid.tolist()

    watch, state = Watch(pipe, None, measure), {"step": 0}

    def rename(
        network: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        if watch.busy:  # a probe asks at the timestep it means
            return args, kwargs
        state["step"] = scheduler.number(args[1])
        times = scheduler.times(state["step"], args[0].device)
        return (
            args[0],
            torch.cat([times] * (len(args[0]) // len(times))) if times.ndim else times,
            *args[2:],
        ), kwargs

    handles = [
        pipe.unet.register_forward_pre_hook(rename, with_kwargs=True),
        pipe.unet.register_forward_hook(watch, with_kwargs=True),
    ]
    frozen = [p for p in pipe.unet.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    pipe.scheduler = scheduler
    try:
        yield record
    finally:
        pipe.scheduler = original
        for handle in handles:
            handle.remove()
        for p in frozen:
            p.requires_grad_(True)
