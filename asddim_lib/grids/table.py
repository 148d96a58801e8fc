"""The one table of methods: the name of each grid, what it needs, and the function that makes it.

The schedulers, the command line, the experiments, the book and the tests read `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids import rules
from asddim_lib.grids.published import rule_of
from asddim_lib.grids.rules import Rule, in_share, in_sigma
from asddim_lib.grids.searched import gits, tors
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
#: Methods of version 0.2 that this package no longer has. In a clone, the experiments `register`
#: them when they are imported.
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
    power `exponent`. `spacing` and `steps_offset` are diffusers'. No step begins above `begin`.
    `other_model` allows a published grid on another kind of model than it was published for.
    """

    p: float = 0.5
    lam: float = 1.0
    eps: float = 1e-8
    reading: str = "intent"
    profile: Profile | None = None
    path: Trajectory | None = None
    order: int = 1
    exponent: float = 1.0
    spacing: str = "leading"
    steps_offset: int = 0
    begin: int | None = None
    other_model: bool = False

    def cut(self, values: np.ndarray) -> np.ndarray:
        """An array over timesteps, up to `begin`."""
        return values if self.begin is None else values[: self.begin + 1]


#: From a model's levels, K and the options to K falling timesteps, which are indices of the levels.
Grid = Callable[[Levels, int, Options], list[int]]


@dataclass(frozen=True)
class Method:
    """A way to place K steps.

    `needs` is nothing, profile, path, or adjoints (a path with them). `summary` is one line for
    people. `kind` is the kind of model that a grid was published for.
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


def spaced(levels: Levels, steps: int, options: Options, spacing: str = "") -> list[int]:
    """One of diffusers' spacings; by default the scheduler's."""
    size = len(options.cut(levels.sigmas))
    return rules.uniform(spacing or options.spacing, size, steps, options.steps_offset)


def paper(levels: Levels, steps: int, options: Options, factors: str) -> list[int]:
    """Eqs 5–13 with one of the two factors, noise or gradient, or both."""
    noisy = factors != "gradient"
    remedy = "give a positive number, or use allocation uniform or gradient"
    check(not noisy or options.p > 0, "p", options.p, remedy)
    weights = noise_weights(levels.variance, options.p if noisy else 0.0, options.eps)
    factor = np.ones(len(levels))
    if factors != "noise":
        factor = gradient_step(_profile(options).at(levels), options.lam)
    return allocate(options.cut(step_sizes(weights, factor, options.reading)), steps)


def measured(levels: Levels, steps: int, options: Options, kind: str) -> list[int]:
    """Equal parts of a profile's density of steps for an error of this kind, to the `exponent`."""
    exponent = options.exponent
    remedy = "give a number from 0 (uniform) to 1 (the density)"
    check(0 <= exponent <= 1, "exponent", exponent, remedy)
    density = options.cut(_profile(options).density(levels, options.order, kind))
    wanted = len(options.cut(levels.sigmas))
    remedy = f"give begin={len(density) - 1} or less, or calibrate along the whole path"
    check(len(density) == wanted, "profile", f"of timesteps 0 … {len(density) - 1}", remedy)
    return allocate(density**-exponent, steps)


def _profile(options: Options) -> Profile:
    assert options.profile is not None  # `timesteps_of` has checked what the method needs
    return options.profile


# fmt: off
_TABLE = (
    # name, needs, summary, function; the kind of model that it was published for
    Method("uniform", "nothing", "the scheduler's own timestep_spacing",
           spaced),
    Method("noise", "nothing", "the paper: steps where noise is low (Eqs 5–7)",
           partial(paper, factors="noise")),
    Method("gradient", "profile", "the paper: steps where the network is sensitive (Eqs 8–9)",
           partial(paper, factors="gradient")),
    Method("combined", "profile", "the paper: both together (Eqs 10–13)",
           partial(paper, factors="both")),
    Method("equidistributed", "profile", "each step makes the same measured error (de Boor 1973)",
           partial(measured, kind="local")),
    Method("dual-weighted", "profile", "each step's error, carried to the picture, is the same",
           partial(measured, kind="adjoint")),
    Method("feature-weighted", "profile",
           "each step's error, as an image encoder sees it in the picture, is the same",
           partial(measured, kind="feature")),
    Method("leading", "nothing",
           "evenly spaced from 0 up, plus the offset (Stable Diffusion's DDIM)",
           partial(spaced, spacing="leading")),
    Method("trailing", "nothing", "evenly spaced from T − 1 down (Lin et al. 2024)",
           partial(spaced, spacing="trailing")),
    Method("linspace", "nothing", "evenly spaced, with both ends",
           partial(spaced, spacing="linspace")),
    Method("quadratic", "nothing", "denser at low noise, (1 − k/K)² (Song et al. 2021)",
           by_rule(rules.quadratic)),
    Method("beta", "nothing", "quantiles of Beta(0.6, 0.6) over timesteps (Lee et al. 2024)",
           by_rule(rules.beta)),
    Method("karras", "nothing",
           "evenly spaced in σ^(1/7), on flow models in s^(1/7) (Karras et al. 2022)",
           by_rule(in_share(rules.karras))),
    Method("exponential", "nothing", "evenly spaced in log σ, on flow models in log s",
           by_rule(in_share(rules.exponential))),
    Method("logsnr", "nothing", "evenly spaced in log-SNR, which is in log σ (Lu et al. 2022)",
           by_rule(in_sigma(rules.exponential))),
    Method("arctan", "nothing",
           "evenly spaced in arctan σ; optimal for Gaussian data (Sabour et al. 2024)",
           by_rule(in_sigma(rules.arctan))),
    Method("comfy-linear-quadratic", "nothing",
           "ComfyUI's linear_quadratic, Mochi's: many short steps first",
           by_rule(in_share(lambda high, low, steps: rules.linear_quadratic(steps) * high))),
    Method("comfy-beta57", "nothing",
           "RES4LYF's beta57: quantiles of Beta(0.5, 0.7) over timesteps",
           by_rule(rules.beta57)),
    Method("comfy-bong-tangent", "nothing",
           "RES4LYF's bong_tangent, for flow models; others begin at σ = 1",
           by_rule(in_share(rules.bong_tangent))),
    Method("ays-sd15", "nothing", "Align Your Steps, as published for SD 1.5",
           by_rule(rule_of("ays-sd15")), "vp"),
    Method("ays-sdxl", "nothing", "Align Your Steps, as published for SDXL",
           by_rule(rule_of("ays-sdxl")), "vp"),
    Method("ays-svd", "nothing",
           "Align Your Steps, as published for Stable Video Diffusion, whose σ begins at 700",
           by_rule(rule_of("ays-svd")), "vp"),
    Method("gits-sd15", "nothing",
           "GITS, as published for SD 1.5 with iPNDM at 5 and 8 steps (Tong et al. 2024)",
           by_rule(rule_of("gits-sd15-5", "gits-sd15-8")), "vp"),
    Method("oss-flux", "nothing",
           "Optimal Stepsize, as published for FLUX.1-dev (flow), 10 steps (Pei et al. 2025)",
           by_rule(rule_of("oss-flux")), "flow"),
    Method("oss-wan", "nothing",
           "Optimal Stepsize, as published for Wan 2.1 (flow), 20 steps (Pei et al. 2025)",
           by_rule(rule_of("oss-wan")), "flow"),
    Method("ltx2", "nothing", "as published for distilled LTX-2 (flow), 8 steps",
           by_rule(rule_of("ltx2")), "flow"),
    Method("wan-lightning", "nothing",
           "as published for Wan 2.2 Lightning (flow, shift 5), 4 steps",
           by_rule(rule_of("wan-lightning")), "flow"),
    Method("ideogram-4", "nothing",
           "Ideogram 4's logit-normal quantiles (flow), for 512 × 512 pixels",
           by_rule(in_share(lambda high, low, steps: rules.ideogram(steps))), "flow"),
    Method("gits", "path", "GITS' shortest path (Chen et al. 2024)",
           by_path(gits)),
    Method("tors", "path", "the recorded path turns alike in each step (TORS, Zhou et al. 2026)",
           by_path(tors)),
)
# fmt: on

#: Every method by its name. `register` adds one.
METHODS: dict[str, Method] = {method.name: method for method in _TABLE}


def register(method: Method) -> None:
    """Adds a method to the table: every part of the library then takes its name.

    Raises WrongUse for a name that is taken.
    """
    check(method.name not in METHODS, "name", method.name, "it is taken; choose another")
    METHODS[method.name] = method


def method_of(name: Any, needs: tuple[str, ...] | None = None) -> Method:
    """The method of that name, one of those with such `needs`.

    Raises WrongUse for any other name; for one of `MOVED` it says what brings it back.
    """
    moved = name in MOVED and name not in METHODS
    remedy = "it left this package: `import experiments.rivals` first, in a clone, or use another"
    check(not moved, "allocation", name, remedy)
    known = [m.name for m in METHODS.values() if needs is None or m.needs in needs]
    check(name in known, "allocation", name, f"use one of {', '.join(known)}")
    return METHODS[name]


def check_profile(profile: Any) -> None:
    """Raises WrongUse for anything but None, a profile, and one's `to_dict()`."""
    usable = profile is None or isinstance(profile, (dict, Profile))
    shown = profile if isinstance(profile, str) else type(profile).__name__
    check(usable, "profile", shown, "give Profile.load(file).to_dict()")


def timesteps_of(name: str, levels: Levels, steps: int, options: Options) -> list[int]:
    """K falling timesteps by the method of that name; on any model, indices of `levels.sigmas`.

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
    remedy = "use another, or give sigmas(…) or timesteps(…) other_model=True"
    check(fits, "allocation", what, remedy)
    return method.grid(levels, steps, options)
