"""The steps that a scheduler has set, in σ, and the law of its solver."""

from __future__ import annotations

from typing import Any, NamedTuple

import diffusers
import numpy as np

from asddim_lib.configs import completed
from asddim_lib.grids.current import falling_timesteps, printed_sigmas
from asddim_lib.levels import Levels, sigma_of


class Steps(NamedTuple):
    """K steps: K + 1 falling σ, their timesteps as parts of T, and the step of each evaluation."""

    sigmas: np.ndarray
    times: np.ndarray
    of_evaluation: list[int]


def steps_of(scheduler: Any) -> Steps:
    """The steps that a scheduler makes from where it begins (image-to-image begins later)."""
    levels = Levels.from_diffusers(scheduler, 1.0)
    sigmas = printed_sigmas(scheduler, levels)
    if levels.kind == "flow":
        sigmas = sigma_of(np.minimum(sigmas, 1.0))
    times = np.array(falling_timesteps(scheduler)) / len(levels)
    every = scheduler.timesteps.cpu().double().numpy()
    # Heun evaluates the network twice in a step, and PNDM in one of them.
    heun = getattr(scheduler, "order", 1) == 2
    new = np.arange(len(every)) % 2 == 0 if heun else np.append(True, np.diff(every) != 0)
    steps = np.cumsum(new)[getattr(scheduler, "begin_index", None) or 0 :] - 1
    first = int(steps[0])
    return Steps(sigmas[first:], times[first:], (steps - first).tolist())


def law_of(scheduler: Any) -> str | None:
    """The name in `law.SOLVERS` of a scheduler's solver; None where its law is not known."""
    config = completed(scheduler)
    order = config.get("solver_order", 1)
    kinds: tuple[tuple[str, str], ...] = (
        ("DPMSolverMultistepScheduler", "dpm++"),
        ("EDMDPMSolverMultistepScheduler", "dpm++"),
        ("UniPCMultistepScheduler", "unipc"),
        ("HeunDiscreteScheduler", "heun"),
        ("FlowMatchHeunDiscreteScheduler", "heun"),
        ("EulerAncestralDiscreteScheduler", "ancestral"),
        ("DDIMScheduler", "euler"),
        ("EulerDiscreteScheduler", "euler"),
        ("EDMEulerScheduler", "euler"),
        ("FlowMatchEulerDiscreteScheduler", "euler"),
    )
    for name, law in kinds:
        if isinstance(scheduler, getattr(diffusers, name)):
            random = "sde" in str(config.get("algorithm_type")) or config.get("stochastic_sampling")
            several = law in ("dpm++", "unipc")
            if random or (several and order > 2):
                return None
            return "euler" if several and order == 1 else law
    return None
