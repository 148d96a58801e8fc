"""The one table of methods: the name of each grid, what it needs, and the function that makes it.

The schedulers, the command line, the experiments, the book and the tests read `METHODS`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids import published
from asddim_lib.grids.rules import RULES, Rule
from asddim_lib.grids.searched import gits, tors
from asddim_lib.grids.uniform import SPACINGS, uniform
from asddim_lib.levels import Levels
from asddim_lib.paper import allocate, gradient_step, noise_weights, step_sizes

#: The settings of a method in a scheduler's config, and their defaults.
DEFAULTS: dict[str, Any] = {
    "allocation": "uniform",
    "p": 0.5,
    "lam": 1.0,
    "eps": 1e-8,
    "reading": "intent",
    "profile": None,
}
#: Methods that only the experiments compare; importing `experiments.rivals` adds them.
MOVED = (
    *("fitted", "dmn", "oracle", "constant-rate", "dual-path", "beta-sigmas", "ays-deepfloyd"),
    *("comfy-simple", "comfy-sgm-uniform", "comfy-ddim-uniform", "comfy-normal"),
    *("comfy-kl-optimal", "f-scheduler", "f-scheduler-xl"),
)


@dataclass(frozen=True)
class Options:
    """What a method may use in addition to the levels and the number of steps.

    `p` and `eps` are of Eq 5, `lam` is λ of Eq 9, `reading` is of Eqs 10–12. `profile` comes from
    `calibrate`, `path` from `record`. `order` is the solver's; a measured density is raised to the
    power `temper`. `spacing` and `steps_offset` are diffusers'. No step begins above `begin`.
    `other_model` allows a published grid on another kind of model than it was published for.
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
    other_model: bool = False

    def cut(self, values: np.ndarray) -> np.ndarray:
        """An array over timesteps, up to `begin`."""
        return values if self.begin is None else values[: self.begin + 1]


#: From a model's levels, K and the options to K falling timesteps (of a flow model: its levels').
Grid = Callable[[Levels, int, Options], list[int]]


@dataclass(frozen=True)
class Method:
    """A way to place K steps.

    `needs` is nothing, profile, path, or adjoints (a path with them). `summary` is one line for
    people. `kind` is the kind of model that it was published for.
    """

    name: str
    needs: str
    summary: str
    grid: Grid
    kind: str | None = None


def by_rule(rule: Rule) -> Grid:
    """The grid of a rule, on the levels up to `begin`."""
    return lambda levels, steps, options: rule(levels.below(options.begin), steps)


def by_path(search: Callable[[Trajectory, Levels, int], list[int]]) -> Grid:
    """The grid of a search on a recorded path."""

    def grid(levels: Levels, steps: int, options: Options) -> list[int]:
        assert options.path is not None  # `timesteps_of` has checked what the method needs
        return search(options.path, levels, steps)

    return grid


def _spaced(levels: Levels, steps: int, options: Options, spacing: str = "") -> list[int]:
    size = len(options.cut(levels.sigmas))
    return uniform(spacing or options.spacing, size, steps, options.steps_offset)


def _paper(levels: Levels, steps: int, options: Options, factors: str) -> list[int]:
    """Eqs 5–13 with one of the two factors, noise or gradient, or both."""
    noisy = factors != "gradient"
    remedy = "give a positive number, or use allocation uniform or gradient"
    check(not noisy or options.p > 0, "p", options.p, remedy)
    weights = noise_weights(levels.variance, options.p if noisy else 0.0, options.eps)
    factor = np.ones(len(levels))
    if factors != "noise":
        factor = gradient_step(_profile(options).at(levels), options.lam)
    return allocate(options.cut(step_sizes(weights, factor, options.reading)), steps)


def _density(levels: Levels, steps: int, options: Options, kind: str) -> list[int]:
    """Equal parts of a measured density of steps, raised to the power `temper`."""
    temper = options.temper
    check(0 <= temper <= 1, "temper", temper, "give a number from 0 (uniform) to 1 (the density)")
    density = options.cut(_profile(options).density(levels, options.order, kind))
    wanted = len(options.cut(levels.sigmas))
    remedy = f"give begin={len(density) - 1} or less, or calibrate along the whole path"
    check(len(density) == wanted, "profile", f"of timesteps 0 … {len(density) - 1}", remedy)
    return allocate(density**-temper, steps)


def _profile(options: Options) -> Profile:
    assert options.profile is not None  # `timesteps_of` has checked what the method needs
    return options.profile


_OURS = (
    Method("uniform", "nothing", "the scheduler's own timestep_spacing", _spaced),
    Method(
        "noise",
        "nothing",
        "the paper: steps where noise is low (Eqs 5–7)",
        partial(_paper, factors="noise"),
    ),
    Method(
        "gradient",
        "profile",
        "the paper: steps where the network is sensitive (Eqs 8–9)",
        partial(_paper, factors="gradient"),
    ),
    Method(
        "combined",
        "profile",
        "the paper: both together (Eqs 10–13)",
        partial(_paper, factors="both"),
    ),
    Method(
        "equidistributed",
        "profile",
        "each step makes the same measured error (de Boor 1973)",
        partial(_density, kind="local"),
    ),
    Method(
        "dual-weighted",
        "profile",
        "each step's error, carried to the picture, is the same",
        partial(_density, kind="adjoint"),
    ),
    Method(
        "feature-weighted",
        "profile",
        "each step's error, as an image encoder sees it in the picture, is the same",
        partial(_density, kind="feature"),
    ),
)
_SPACINGS = {
    "leading": "evenly spaced from 0 up, plus the offset (Stable Diffusion's DDIM)",
    "trailing": "evenly spaced from T − 1 down (Lin et al. 2024)",
    "linspace": "evenly spaced, with both ends",
}


def _table() -> Iterable[Method]:
    yield from _OURS
    for name in SPACINGS:
        yield Method(name, "nothing", _SPACINGS[name], partial(_spaced, spacing=name))
    for name, (summary, rule) in RULES.items():
        yield Method(name, "nothing", summary, by_rule(rule))
    for name, (kind, summary, rule) in published.RULES.items():
        yield Method(name, "nothing", summary, by_rule(rule), kind)
    yield Method("gits", "path", "GITS' shortest path (Chen et al. 2024)", by_path(gits))
    text = "the recorded path turns alike in each step (TORS, Zhou et al. 2026)"
    yield Method("tors", "path", text, by_path(tors))


#: Every method by its name. `register` adds one.
METHODS: dict[str, Method] = {method.name: method for method in _table()}
#: The methods that a scheduler can use from its config alone.
ALLOCATIONS = tuple(m.name for m in METHODS.values() if m.needs in ("nothing", "profile"))
#: The methods that need a profile.
CALIBRATED = tuple(m.name for m in METHODS.values() if m.needs == "profile")


def register(method: Method) -> None:
    """Adds a method to the table: every part of the library then takes its name.

    Raises WrongUse for a name that is taken.
    """
    check(method.name not in METHODS, "name", method.name, "it is taken; choose another")
    METHODS[method.name] = method


def method_of(name: Any, needs: tuple[str, ...] | None = None) -> Method:
    """The method of that name, one of those with such `needs`.

    One of `MOVED` is imported with the experiments, where these can be imported. Raises WrongUse
    for any other name.
    """
    if name in MOVED and name not in METHODS:
        clone = importlib.util.find_spec("experiments") is not None
        remedy = "it is for the experiments alone: import experiments.rivals, from a clone"
        check(clone, "allocation", name, remedy)
        importlib.import_module("experiments.rivals")
    known = [m.name for m in METHODS.values() if needs is None or m.needs in needs]
    check(name in known, "allocation", name, f"use one of {', '.join(known)}")
    return METHODS[name]


def check_allocation(allocation: str, profile: Any = None) -> None:
    """Raises WrongUse for a name that a scheduler cannot use from its config alone.

    Also for a `profile` that is none (`check_profile`).
    """
    check_profile(profile)
    method_of(allocation, ("nothing", "profile"))


def check_profile(profile: Any) -> None:
    """Raises WrongUse for anything but None, a profile, and one's `to_dict()`."""
    usable = profile is None or isinstance(profile, (dict, Profile))
    shown = profile if isinstance(profile, str) else type(profile).__name__
    check(usable, "profile", shown, "give Profile.load(file).to_dict()")


def timesteps_of(name: str, levels: Levels, steps: int, options: Options) -> list[int]:
    """K falling timesteps by the method of that name; of a flow or EDM model, its levels' numbers.

    Raises WrongUse for an unknown name, where what the method needs is missing, and for a published
    grid on another kind of model, unless `options.other_model`.
    """
    method = method_of(name)
    if method.needs == "profile":
        remedy = f"allocation {name!r} needs one: profile=calibrate(pipe, prompts)"
        check(options.profile is not None, "profile", None, remedy)
    if method.needs in ("path", "adjoints"):
        remedy = f"allocation {name!r} needs one: path=record(pipe, prompts)"
        check(options.path is not None, "path", None, remedy)
    fits = method.kind in (None, levels.kind) or options.other_model
    what = f"{name}, published for a {method.kind} model, on a {levels.kind} model"
    check(
        fits, "allocation", what, "use another, or give sigmas(…) or timesteps(…) other_model=True"
    )
    return method.grid(levels, steps, options)
