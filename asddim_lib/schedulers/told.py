"""Decoupled time: the network may be told another time than the one that a step begins at.

A step leads from a noise level σ_i to the next one, σ_{i+1}, and asks the network once. By default
it is told the time of σ_i, though what it answers has to serve for the whole step. With
`look_ahead`, a in [−1, 1], it is told the time of another level σ'_i. The sample and the update
stay those of σ_i and σ_{i+1}:

    log σ'_i = log σ_i + a (log σ_{i+1} − log σ_i)      for a ≥ 0: towards the step's end
    log σ'_i = log σ_i − a (log σ_{i−1} − log σ_i)      for a < 0: back to where the last one began

So the told times fall as the levels do, and lie within them. The change is a share of a step, and
vanishes as steps grow many: a method of order 1 keeps its order, a higher one falls to order 1.

The last step is reckoned towards the lowest level of the noise schedule, timestep 0, also where it
leads to σ = 0, whose logarithm is infinite. For a < 0 the first step is reckoned towards the
highest level. Pure noise counts as σ = 4096, as everywhere here.

LD3 (Tong et al. 2024, arXiv 2405.15506) learns one such offset for each step. Artists know it as
"detail daemon" or "lying sigmas", where σ' = c σ with a c of 0.9 to 0.99 in the middle of a run: on
a grid that is even in log σ that is a = −log c / (log σ_i − log σ_{i+1}). A constant c does not
vanish as steps grow many, and so the pictures have no limit that is the model's own. It is not
offered here for that reason.

What a pipeline reckons from a timestep by itself, it reckons from the told one. Wan 2.2 chooses its
network by it (`ASFlowScheduler` with `boundary` keeps each step on its side). SDXL's base and
refiner cut the run in two by it, and so need the same `look_ahead`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.levels import flow_shift
from asddim_lib.paper import NoiseSchedule

#: σ of pure noise, which is that of `NoiseSchedule.finite_sigmas`.
PURE_NOISE = 4096.0
#: How far apart two told times are at least, in timesteps: each one names its step.
APART = 1e-3


def check_look_ahead(look_ahead: Any) -> None:
    """Raises WrongUse unless `look_ahead` is a number from −1 to 1."""
    number = isinstance(look_ahead, (int, float)) and not isinstance(look_ahead, bool)
    right = number and math.isfinite(look_ahead) and -1 <= look_ahead <= 1
    remedy = "give a share of a step, −1 to 1; 0 tells the network each step's own time"
    check(right, "look_ahead", look_ahead, remedy)


def told_sigmas(sigmas: np.ndarray, look_ahead: float, lowest: float, highest: float) -> np.ndarray:
    """σ'_i of the K steps that begin at `sigmas`, float64.

    All are ratios of noise to signal. `sigmas` fall; `lowest` and `highest` are the ends of the
    noise schedule.
    """
    levels = np.log(np.minimum(sigmas, PURE_NOISE))
    if look_ahead >= 0:
        towards = np.append(levels[1:], min(np.log(lowest), levels[-1]))
    else:
        towards = np.append(max(np.log(highest), levels[0]), levels[:-1])
    return np.exp(levels + abs(look_ahead) * (towards - levels))


def of_schedule(sigmas: np.ndarray, look_ahead: float, schedule: NoiseSchedule) -> Tensor:
    """The told timesteps of a variance-preserving model (K, float32), for steps from `sigmas`.

    Between two whole timesteps log σ is taken to be linear, as diffusers and k-diffusion take it.
    """
    levels = schedule.finite_sigmas
    told = told_sigmas(sigmas, look_ahead, levels[0], levels[-1])
    return _apart(np.interp(np.log(told), np.log(levels), np.arange(len(levels))))


def of_flow(
    mix: np.ndarray, look_ahead: float, config: Mapping[str, Any], boundary: float | None = None
) -> Tensor:
    """The told timesteps of a flow-matching model (K, float32): its share of noise s' times T.

    `mix` holds the shares of noise s at which the steps begin; the config's shift is static. With a
    `boundary` each time stays on the side of its step, so that the same network is asked.
    """
    size = int(config["num_train_timesteps"])
    lowest = float(flow_shift(np.array([1 / size]), config)[0])
    with np.errstate(divide="ignore"):
        sigmas = mix / np.maximum(1 - mix, 0.0)  # float32 may have rounded pure noise up
    told = told_sigmas(sigmas, look_ahead, lowest / (1 - lowest), PURE_NOISE)
    times = size * told / (1 + told)
    if boundary is not None:
        edge = size * boundary
        times = np.where(mix >= boundary, np.maximum(times, edge + APART), times)
        times = np.where(mix < boundary, np.minimum(times, edge - APART), times)
    return _apart(times)


def _apart(times: np.ndarray) -> Tensor:
    """Falling times as float32. Where two are the same, the earlier step's is raised a little.

    That happens at `look_ahead` ±1 alone: the last two steps are told timestep 0, say, where the
    grid itself goes on to it.
    """
    told = times.astype(np.float32)
    for step in range(len(told) - 2, -1, -1):
        told[step] = max(told[step], told[step + 1] + APART)
    return torch.from_numpy(told)


def step_of(times: Tensor, told: Tensor) -> Tensor:
    """Which step is told each of `times`: its number, int64, of their shape.

    `told` (K) lies on the same device. Raises WrongUse for whole numbers and, on a CPU, where that
    costs no wait, for a time that no step is told.
    """
    remedy = "with look_ahead give one of scheduler.timesteps, as it is"
    check(times.is_floating_point(), "timestep", "a whole number", remedy)
    apart = (told - times.reshape(-1, 1).to(told.dtype)).abs()
    if apart.device.type == "cpu":
        known = bool((apart.amin(1) < APART / 2).all())
        check(known, "timestep", times.tolist(), remedy)
    return apart.argmin(1).reshape(times.shape)
