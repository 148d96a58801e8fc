"""The steps that a scheduler of any class sets by itself, and those that it has set."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from asddim_lib.configs import class_of, completed, is_flow
from asddim_lib.errors import WrongUse, check, check_whole
from asddim_lib.levels import Levels


def with_steps(scheduler: Any, steps: int, mu: float | None = None) -> Any:
    """A copy of the scheduler with the K steps that it sets itself, or None to use the rules.

    A config's class is built first. Rules serve a config whose class is not known, and give a flow
    scheduler of ours its grid's sigmas in float64.
    """
    config, kind = completed(scheduler), class_of(scheduler)
    grid = config.get("grid")
    ours = config.get("allocation", "uniform") != "uniform"
    ours = ours or grid is not None or config.get("boundary") is not None
    other_number = grid is not None and len(grid) != steps
    if kind is None or (ours and is_flow(config) and not other_number):
        return None
    betas = config.get("trained_betas")
    size = int(config["num_train_timesteps"]) if betas is None else len(betas)
    check_whole("num_inference_steps", steps, 1, size)
    plain = isinstance(scheduler, Mapping)
    current = kind.from_config(scheduler) if plain else copy.deepcopy(scheduler)
    known = inspect.signature(current.set_timesteps).parameters
    try:
        if "mu" in known and config.get("use_dynamic_shifting"):
            current.set_timesteps(steps, mu=mu)
        else:
            current.set_timesteps(steps)
    except WrongUse:
        raise
    except (AssertionError, ValueError) as error:  # raised by diffusers
        reason = (str(error).splitlines() or ["it refuses its settings"])[0]
        line = f"num_inference_steps is {steps}; {kind.__name__} cannot make them ({reason})"
        raise WrongUse(line) from error
    count = len(falling_timesteps(current))
    remedy = f"{kind.__name__} makes {count} steps then: give another number, or an allocation"
    check(count == steps, "num_inference_steps", steps, remedy)
    return current


def falling_timesteps(scheduler: Any) -> list[Any]:
    """The timesteps at which a scheduler's steps begin, as whole numbers where they are whole."""
    times = scheduler.timesteps.cpu().double().numpy()
    if getattr(scheduler, "order", 1) == 2:  # it evaluates the network twice in each step
        times = times[::2]
    times = times[np.append(True, np.diff(times) != 0)]  # PNDM repeats one
    times = times[::-1] if times[0] < times[-1] else times  # those of inversion rise
    if getattr(scheduler, "sigmas", None) is None:
        times = times[times >= 0]  # DDIM's trailing steps end in −1 for K of 61, 103, …
    return [int(t) for t in times] if np.all(times == np.floor(times)) else times.tolist()


def printed_sigmas(scheduler: Any, levels: Levels) -> np.ndarray:
    """The K + 1 falling sigmas that a scheduler has set: σ, or s of a flow model."""
    if getattr(scheduler, "sigmas", None) is None or len(scheduler.sigmas) < 2:
        return np.array(levels.sigmas_at(falling_timesteps(scheduler)))
    values = scheduler.sigmas.cpu().double().numpy()
    if len(values) > 2 and values[-2] == 0:  # it was given the end, and has added one of its own
        values = values[:-1]
    if getattr(scheduler, "order", 1) == 2 and len(values) > 2:
        values = np.append(values[:-1:2], values[-1])
    return values[::-1] if values[0] < values[-1] else values  # those of inversion rise
