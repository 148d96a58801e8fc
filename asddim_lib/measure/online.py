"""The paper's loop (its Algorithms 1–5): g(t) is measured on the sample while it is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.sensitivity import COST, gradient_norm
from asddim_lib.core.step import predict
from asddim_lib.errors import check
from asddim_lib.evidence.profile import SensitivityProfile
from asddim_lib.grids.methods import check_profile
from asddim_lib.measure.recording import frozen
from asddim_lib.measure.replay import Capture, Replay, replayed
from asddim_lib.models.load import Pipeline, check_seeds, network
from asddim_lib.schedulers import ASDDIMScheduler
from asddim_lib.schedulers.online import OnlineScheduler
from asddim_lib.schedulers.recorder import Visit


@dataclass
class OnlineRecord:
    """What the last call of the pipeline did.

    `grids` has one grid, or one per image; `measured` the g of every image by the number of the
    step; `nfe` the network evaluations per image.
    """

    grids: list[list[int]] = field(default_factory=list)
    measured: dict[int, list[float]] = field(default_factory=dict)
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
    """Within it, each call measures g on its own samples and lays the rest of the grid by it.

    g is measured at every `every`-th step; K still holds. The pipeline's scheduler must be an
    `ASDDIMScheduler` with allocation gradient or combined. With `per_image` each image of a batch
    follows a grid of its own, else all follow their mean g. A `profile` (by default the scheduler's
    own) says what g to expect before it is measured; without one, a constant. Yields the record of
    the latest call. Raises WrongUse for a scheduler, estimator or pipeline that does not serve.
    """
    own = pipe.scheduler
    serves = isinstance(own, ASDDIMScheduler)
    serves = serves and own.config["allocation"] in ("gradient", "combined")
    remedy = 'make it ASDDIMScheduler.from_config(…, allocation="gradient" or "combined")'
    check(serves, "pipe.scheduler", type(own).__name__, remedy)
    estimators = COST["frobenius"]
    check(estimator in estimators, "estimator", estimator, f"use one of {', '.join(estimators)}")
    check(every >= 1, "every", every, "give at least 1")
    check(probes >= 1, "probes", probes, "give at least 1")
    check_seeds([seed])
    check_profile(profile)
    scheduler = OnlineScheduler.from_config(own.config)
    expected = profile
    if expected is None and own.config["profile"]:
        expected = SensitivityProfile.from_dict(own.config["profile"])
    schedule = NoiseSchedule.from_config(own)
    prior = expected.at(schedule) if expected else np.ones(len(schedule))
    session = _Session(pipe, scheduler, prior, every, per_image, seed)
    session.how = {"estimator": estimator, "probes": probes}
    rename = network(pipe).register_forward_pre_hook(session.rename, with_kwargs=True)
    pipe.scheduler = scheduler
    try:
        with frozen(replayed(pipe)):
            yield session.record
    finally:
        pipe.scheduler = own
        session.capture.remove()
        rename.remove()


class _Session:
    """Measures at the scheduler's step, and tells the network the timesteps that were laid."""

    how: dict[str, Any]

    def __init__(
        self,
        pipe: Pipeline,
        scheduler: OnlineScheduler,
        prior: np.ndarray,
        every: int,
        per_image: bool,
        seed: int,
    ) -> None:
        self.pipe, self.scheduler, self.prior = pipe, scheduler, prior
        self.every, self.per_image, self.seed = every, per_image, seed
        self.record, self.capture = OnlineRecord(), Capture(pipe)
        scheduler.begin(prior, np.inf, self.measure)

    def measure(self, step: int, visit: Visit, alpha: Tensor) -> None:
        """Measures g at a step, where it is due, and lays the steps after it again."""
        calls = self.capture.calls
        sizes = [len(call.output) for call in calls]
        steps, evaluations = self.scheduler.grid.shape[1], sum(sizes) // len(visit.sample)
        if step == 0:
            self.record.nfe, self.record.measured = 0, {}
            self.scheduler.reach = self.every * len(self.prior) / steps
        self.record.nfe += evaluations
        if step % self.every == 0 and step + 1 < steps:
            kind = self.scheduler.config["prediction_type"]
            replay = Replay(self.capture, visit, lambda x, out: predict(x, out, alpha, kind)[1])
            # The same probes for every image, whatever the batch.
            generators = [torch.Generator().manual_seed(self.seed + step) for _ in visit.sample]
            t = torch.tensor(visit.timestep)
            g = gradient_norm(replay, visit.sample, t, generator=generators, **self.how)[0]
            values = g.cpu().numpy()
            spent = self.how["probes"] * COST["frobenius"][self.how["estimator"]]
            self.record.nfe += evaluations * spent
            self.record.measured[step] = values.tolist()
            self.scheduler.lay_again(step, values if self.per_image else values.mean(keepdims=True))
        self.capture.take()
        self.record.grids = self.scheduler.grid.tolist()

    def rename(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Puts the laid timestep, one or one per image, in the place of the step's name."""
        if self.capture.busy:  # a replay asks at the timestep it means
            return None
        kind, remedy = type(self.pipe).__name__, "lay a calibrated profile's grid instead"
        what = f"{kind}, which tells its network the time by a name"
        check(len(args) > 1, "pipe", what, remedy)
        step = self.scheduler.number(args[1])
        times = self.scheduler.times(step, args[0].device)
        if times.ndim:
            times = torch.cat([times] * (len(args[0]) // len(times)))
        return (args[0], times, *args[2:]), kwargs
