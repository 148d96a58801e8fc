"""The one table of methods: what each grid is called, what it needs, and how it is laid.

The scheduler, the command line, the experiment, the book and the tests all read `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.comfy import COMFY
from asddim_lib.grids.published import PROJECTS
from asddim_lib.grids.rules import RIVALS, Grid
from asddim_lib.grids.searched import SEARCHED
from asddim_lib.grids.uniform import SPACINGS, uniform
from asddim_lib.paper import NoiseSchedule, allocate, gradient_step, noise_weights, step_sizes

#: What a scheduler's config holds of a method, and what it means where nothing is said.
DEFAULTS: dict[str, Any] = {
    "allocation": "uniform",
    "p": 0.5,
    "lam": 1.0,
    "eps": 1e-8,
    "reading": "intent",
    "profile": None,
}


@dataclass(frozen=True)
class Options:
    """What a method may use beside the noise schedule and the number of steps.

    `p` and `eps` are Eq 5's, `lam` is Eq 9's λ, `reading` is of Eqs 10–12. `profile` is what
    `calibrate` measured, `path` what `record` did. `order` is the solver's, `temper` the power
    that a measured density is raised to. `spacing` and `steps_offset` are diffusers'. No
    step lies above `begin`.
    """

    p: float = 0.5
    lam: float = 1.0
    eps: float = 1e-8
    reading: str = "intent"
    profile: Profile | None = None
    path: Trajectory | None = None
    order: int = 1
    temper: float = 1.0
    spacing: str = "leading"
    steps_offset: int = 0
    begin: int | None = None

    def cut(self, values: np.ndarray) -> np.ndarray:
        """An array over timesteps, up to `begin`."""
        return values if self.begin is None else values[: self.begin + 1]


Lay = Callable[[NoiseSchedule, int, Options], list[int]]


@dataclass(frozen=True)
class Method:
    """A way to place K steps.

    `needs` is nothing, profile, path, adjoints (a path with them), or trials: grids that are found
    by drawing with them have no `lay` (see `asddim_lib.tuning`). `summary` is one line for people.
    """

    name: str
    needs: str
    summary: str
    lay: Lay | None = None


def _paper(schedule: NoiseSchedule, steps: int, options: Options, kind: str) -> list[int]:
    """Eqs 5–13; `kind` says which of the two factors counts."""
    noisy = kind != "gradient"
    remedy = "give a positive number, or use allocation uniform or gradient"
    check(not noisy or options.p > 0, "p", options.p, remedy)
    weights = noise_weights(schedule.variance, options.p if noisy else 0.0, options.eps)
    factor = np.ones(len(schedule))
    if kind != "noise":
        factor = gradient_step(_profile(options).at(schedule), options.lam)
    return allocate(options.cut(step_sizes(weights, factor, options.reading)), steps)


def _fitted(schedule: NoiseSchedule, steps: int, options: Options) -> list[int]:
    profile = _profile(options)
    p, lam, _ = profile.fit(schedule, options.order)
    factor = gradient_step(profile.at(schedule), lam)
    return allocate(options.cut(step_sizes(noise_weights(schedule.variance, p), factor)), steps)


def _density(schedule: NoiseSchedule, steps: int, options: Options, kind: str) -> list[int]:
    temper = options.temper
    check(0 <= temper <= 1, "temper", temper, "give a number from 0 (uniform) to 1 (the density)")
    density = options.cut(_profile(options).density(schedule, options.order, kind))
    wanted = len(options.cut(schedule.betas))
    remedy = f"give begin={len(density) - 1} or less, or calibrate along the whole path"
    check(len(density) == wanted, "profile", f"of timesteps 0 … {len(density) - 1}", remedy)
    return allocate(density**-temper, steps)


def _profile(options: Options) -> Profile:
    assert options.profile is not None  # `lay` has checked what the method needs
    return options.profile


def _spaced(schedule: NoiseSchedule, steps: int, options: Options, spacing: str = "") -> list[int]:
    size = len(options.cut(schedule.betas))
    return uniform(spacing or options.spacing, size, steps, options.steps_offset)


def _searched(name: str) -> Lay:
    def lay_on_path(schedule: NoiseSchedule, steps: int, options: Options) -> list[int]:
        assert options.path is not None
        return SEARCHED[name](options.path, schedule, steps)

    return lay_on_path


def _laid(grid: Grid) -> Lay:
    return lambda schedule, steps, options: grid(NoiseSchedule(options.cut(schedule.betas)), steps)


_SUMMARIES = {
    "leading": "evenly spaced from 0 up, plus the offset (Stable Diffusion's DDIM)",
    "trailing": "evenly spaced from T − 1 down (Lin et al. 2024)",
    "linspace": "evenly spaced, with both ends",
    "quadratic": "denser at low noise, (1 − k/K)² (Song et al. 2021)",
    "beta": "quantiles of Beta(0.6, 0.6) over timesteps (Lee et al. 2024)",
    "dmn": "the least bound on a multistep solver's error (Xue et al. 2024)",
    "karras": "evenly spaced in σ^(1/7), on flow models in s^(1/7) (Karras et al. 2022)",
    "exponential": "evenly spaced in log σ, on flow models in log s",
    "logsnr": "evenly spaced in log-SNR, which is in log σ (Lu et al. 2022)",
    "beta-sigmas": "quantiles of Beta(0.6, 0.6) over σ, on flow models over s",
    "arctan": "evenly spaced in arctan σ; optimal for Gaussian data (Sabour et al. 2024)",
    "ays-sd15": "Align Your Steps, as published for SD 1.5",
    "ays-sdxl": "Align Your Steps, as published for SDXL",
    "ays-deepfloyd": "Align Your Steps, as published for DeepFloyd IF",
    "ays-svd": "Align Your Steps, as published for Stable Video Diffusion, whose σ begins at 700",
    "oracle": "the least summed deviation from a recorded path, by dynamic programming",
    "gits": "GITS' shortest path (Chen et al. 2024)",
    "tors": "the recorded path turns alike in each step (TORS, Zhou et al. 2026)",
    "constant-rate": "the predicted sample changes alike in each step (CRS, Okada et al. 2026)",
    "dual-path": "the least error at the path's end, with signs, by local search",
}


def _own() -> Iterable[Method]:
    yield Method("uniform", "nothing", "the scheduler's own timestep_spacing", _spaced)
    yield Method("noise", "nothing", "the paper: steps where noise is low (Eqs 5–7)", _of("noise"))
    text = "the paper: steps where the network is sensitive (Eqs 8–9)"
    yield Method("gradient", "profile", text, _of("gradient"))
    yield Method("combined", "profile", "the paper: both together (Eqs 10–13)", _of("combined"))
    text = "combined, with the p and λ nearest to dual-weighted"
    yield Method("fitted", "profile", text, _fitted)
    text = "each step makes the same measured error (de Boor 1973)"
    yield Method("equidistributed", "profile", text, partial(_density, kind="made"))
    text = "each step's error, carried to the picture, is the same"
    yield Method("dual-weighted", "profile", text, partial(_density, kind="carried"))
    text = "each step's error, as an image encoder sees it in the picture, is the same"
    yield Method("feature-weighted", "profile", text, partial(_density, kind="seen"))


def _of(kind: str) -> Lay:
    return partial(_paper, kind=kind)


def _table() -> Iterable[Method]:
    yield from _own()
    for name in SPACINGS:
        yield Method(name, "nothing", _SUMMARIES[name], partial(_spaced, spacing=name))
    for name in RIVALS:
        yield Method(name, "nothing", _SUMMARIES[name], _laid(RIVALS[name]))
    for name, (summary, grid) in {**PROJECTS, **COMFY}.items():
        yield Method(name, "nothing", summary, _laid(grid))
    for name in SEARCHED:
        needs = "adjoints" if name == "dual-path" else "path"
        yield Method(name, needs, _SUMMARIES[name], _searched(name))
    text = "the best of several grids, moved while that helps, within a budget"
    yield Method("chosen", "trials", text)
    yield Method("direct", "trials", "the same search, to its end")
    yield Method("tuned", "trials", "what tune hands out: a grid whose pictures win, or a peer's")


#: Every method by its name. `register` adds one.
METHODS: dict[str, Method] = {method.name: method for method in _table()}
#: What a scheduler lays by itself, from its config alone.
ALLOCATIONS = tuple(m.name for m in METHODS.values() if m.needs in ("nothing", "profile"))
#: The methods that need a profile.
CALIBRATED = tuple(m.name for m in METHODS.values() if m.needs == "profile")
#: The methods whose grids are found by drawing with them on tuning prompts.
TRIED = tuple(m.name for m in METHODS.values() if m.needs == "trials")


def register(method: Method) -> None:
    """Adds a method to the table: from then on every part of the library takes its name.

    Raises WrongUse for a name that is taken.
    """
    check(method.name not in METHODS, "name", method.name, "it is taken; choose another")
    METHODS[method.name] = method


def check_allocation(allocation: str, profile: Any = None) -> None:
    """Raises WrongUse for a name that a scheduler cannot lay from its config alone.

    So does a `profile` that is none (`check_profile`).
    """
    check_profile(profile)
    names = [m.name for m in METHODS.values() if m.needs in ("nothing", "profile")]
    check(allocation in names, "allocation", allocation, f"use one of {', '.join(names)}")


def check_profile(profile: Any) -> None:
    """Raises WrongUse for anything but None, a profile, and one's `to_dict()`."""
    right = profile is None or isinstance(profile, (dict, Profile))
    shown = profile if isinstance(profile, str) else type(profile).__name__
    check(right, "profile", shown, "give Profile.load(file).to_dict()")


def lay(name: str, schedule: NoiseSchedule, steps: int, options: Options) -> list[int]:
    """K timesteps by the method of that name.

    Raises WrongUse for an unknown name, or where what the method needs is missing.
    """
    method = METHODS.get(name)
    known = ", ".join(m.name for m in METHODS.values() if m.lay)
    check(method is not None, "allocation", name, f"use one of {known}")
    assert method is not None
    remedy = f"{name!r} is found by drawing: use asddim_lib.tuning, or asddim choose --search"
    check(method.lay is not None, "allocation", name, remedy)
    assert method.lay is not None
    if method.needs == "profile":
        remedy = f"allocation {name!r} needs one: profile=calibrate(pipe, prompts)"
        check(options.profile is not None, "profile", None, remedy)
    if method.needs in ("path", "adjoints"):
        remedy = f"allocation {name!r} needs one: path=record(pipe, prompts)"
        check(options.path is not None, "path", None, remedy)
    return method.lay(schedule, steps, options)
