"""What a scheduler's config says of its model: noise levels, and what a sample is made of.

Every diffusion or flow model is written here in the same two numbers. σ is noise over signal, and
y = x₀ + σε is the sample as clean data sees it. In them every sampler follows dy/dσ = ε.

| kind | the sample x | σ | x from y |
| --- | --- | --- | --- |
| `vp` (DDPM, DDIM, Stable Diffusion) | √ᾱ x₀ + √(1 − ᾱ) ε | √((1 − ᾱ)/ᾱ) | y / √(1 + σ²) |
| `flow` (flow matching) | (1 − s) x₀ + s ε | s / (1 − s) | y / (1 + σ) |
| `edm` (Karras et al. 2022) | x₀ + σε | σ | y |

A scheduler's config, as the scheduler's own class reads it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asddim_lib.errors import WrongUse, check
from asddim_lib.paper import NoiseSchedule, predict

#: Settings of flow schedulers that move the levels in ways not known here.
FOREIGN_FLOW = ("n_grid", "stages", "scale_factors", "eta")
#: Settings that every EDM scheduler has, and no other.
EDM = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule")


@dataclass(frozen=True)
class Levels:
    """The kind of a model, its noise levels at T training timesteps (float64), and its output.

    `betas` are those of the variance-preserving model with the same σ at every timestep. For a
    flow or EDM model they are a way to write its levels, which differ by a scaling of x alone.
    `prediction_type` is None where the config does not say it. `shift` is a flow model's.
    """

    kind: str
    betas: np.ndarray
    prediction_type: str | None = None
    shift: float = 1.0
    sigma_data: float = 1.0
    ends_at_zero: bool = True

    @classmethod
    def from_diffusers(cls, scheduler: Any, mu: float | None = None) -> Levels:
        """The coordinates of a diffusers scheduler, or of its config.

        A key that the config lacks has the default of the config's own class (`_class_name`); it
        has no other default. `mu` is what a pipeline gives a flow scheduler whose shift depends on
        the picture's size. Raises WrongUse for a scheduler whose levels are not known here, and for
        such a shift without `mu`.
        """
        config = with_fixed_shift(completed(scheduler), mu)
        continuous = config.get("timestep_type") == "continuous"
        check(not continuous, "timestep_type", "continuous", "use a scheduler with discrete steps")
        if is_flow(config):
            return _flow(config)
        if config.get("trained_betas") is not None or "beta_schedule" in config:
            return _variance_preserving(config)
        if set(EDM) <= set(config):
            return _edm(config)
        name = config.get("_class_name")
        if name is None:
            settings = ", ".join(sorted(map(str, config))) or "nothing"
            raise WrongUse(
                f"scheduler is a config of {settings}, without beta_schedule; give the scheduler's "
                "own config, with beta_start, beta_end and beta_schedule, or trained_betas"
            )
        raise WrongUse(
            f"scheduler is {name}, whose noise levels are not known here; use a DDIM, DPM-Solver, "
            "UniPC, Euler, FlowMatchEuler or EDM scheduler"
        )

    @property
    def sigmas(self) -> np.ndarray:
        """σ at every training timestep, rising; the last one may be infinite."""
        bars = np.cumprod(1 - self.betas)
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - bars) / bars)

    @property
    def largest(self) -> float:
        """The greatest σ that is finite in float32: levels of pure noise are cut to it."""
        return float(np.sqrt(2.0**24 - 1))

    def vp_sample(self, clean: Tensor, epsilon: Tensor, sigma: float) -> Tensor:
        """The sample of the variance-preserving model with the same σ: (x₀ + σε) / √(1 + σ²)."""
        return (clean + sigma * epsilon) / (1 + sigma**2) ** 0.5

    def signal(self, sigma: float | Tensor) -> float | Tensor:
        """What y is multiplied by to give the sample x, at σ."""
        if self.kind == "vp":
            return (1 + sigma**2) ** -0.5
        return 1 / (1 + sigma) if self.kind == "flow" else sigma * 0 + 1.0

    def predict(self, sample: Tensor, model_output: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """x̂₀ and ε, each of the sample's shape, from the network's output on a sample at σ."""
        kind = self.prediction_type
        check(kind is not None, "prediction_type", None, "the scheduler's config must say it")
        if self.kind == "flow":
            s = sigma / (1 + sigma) if math.isfinite(sigma) else 1.0
            return sample - s * model_output, sample + (1 - s) * model_output
        if self.kind == "vp":
            alpha = torch.tensor(1 / (1 + sigma**2), dtype=torch.float64)
            return predict(sample, model_output, alpha, str(kind))
        d2, total = self.sigma_data**2, sigma**2 + self.sigma_data**2
        sign = -1 if kind == "v_prediction" else 1
        scale = sign * sigma * self.sigma_data / total**0.5
        clean = d2 / total * sample + scale * model_output
        return clean, (sample - clean) / sigma


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler, or its config, is a flow-matching one."""
    config = completed(scheduler)
    return bool(config.get("use_flow_sigmas")) or ("shift" in config and "beta_start" not in config)


def flow_shift(mix: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Flow matching's share of noise s in (0, 1], moved by the config's shift as diffusers does.

    Raises WrongUse for a shift that depends on the picture's size, and is not known.
    """
    shift = shift_of(config)
    return shift * mix / (1 + (shift - 1) * mix)


def flow_unshift(levels: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `flow_shift`: shares of noise before the config's shift."""
    shift = shift_of(config)
    return levels / (shift - (shift - 1) * levels)


def with_boundary(levels: np.ndarray, boundary: float) -> np.ndarray:
    """The grid with a step that begins at the boundary between two networks.

    The node that is nearest moves just below it: a pipeline asks the network of high noise at the
    boundary itself. Raises WrongUse for fewer than two nodes, or where none is left above it.
    """
    remedy = "give at least 2: a step above the boundary and one below it"
    check(len(levels) > 1, "num_inference_steps", len(levels), remedy)
    inner = np.arange(1, len(levels))
    nearest = int(inner[np.abs(levels[inner] - boundary).argmin()])
    moved = levels.copy()
    moved[nearest] = boundary - 1e-4
    falling = bool((np.diff([*moved, 0.0]) < 0).all())
    what = f"{boundary}, where no step can begin"
    check(falling, "boundary", what, "give a grid that begins above it and goes on below it")
    return moved


def with_fixed_shift(config: Mapping[str, Any], mu: float | None) -> dict[str, Any]:
    """A config whose dynamic shift is the one that `mu` gives; any other config as it is.

    diffusers' `time_shift` with `mu` is the static shift e^mu ("exponential"), or mu ("linear").
    """
    if mu is None or not config.get("use_dynamic_shifting"):
        return dict(config)
    linear = config.get("time_shift_type", "exponential") == "linear"
    name = "flow_shift" if config.get("use_flow_sigmas") else "shift"
    shift = float(mu) if linear else math.exp(mu)
    return {**config, "use_dynamic_shifting": False, name: shift}


def shift_of(config: Mapping[str, Any]) -> float:
    """A flow config's static shift. Raises WrongUse where it depends on the picture's size."""
    dynamic = config.get("use_dynamic_shifting", False)
    remedy = "its shift depends on the picture's size: give mu, as the pipeline gives it"
    check(not dynamic, "mu", None, remedy)
    return float(config["flow_shift"] if config.get("use_flow_sigmas") else config["shift"])


def _flow(config: dict[str, Any]) -> Levels:
    foreign = [setting for setting in FOREIGN_FLOW if setting in config]
    name = str(config.get("_class_name", "a config"))
    what = f"{name} with {', '.join(foreign)}"
    remedy = "its levels are not known here: use FlowMatchEulerDiscreteScheduler"
    check(not foreign, "scheduler", what, remedy)
    check("num_train_timesteps" in config, "num_train_timesteps", "missing", remedy)
    inverted = config.get("invert_sigmas")
    check(not inverted, "invert_sigmas", inverted, "it turns the levels round: use another model")
    size = int(config.get("num_train_timesteps", 1000))
    mix = flow_shift(np.arange(1, size + 1) / size, config)
    bars = (1 - mix) ** 2 / ((1 - mix) ** 2 + mix**2)
    return Levels("flow", _betas_of(bars), "flow_prediction", shift_of(config))


def _variance_preserving(config: dict[str, Any]) -> Levels:
    betas = _betas(config)
    if "snr_shift_scale" in config:  # CogVideoX
        bars, scale = np.cumprod(1 - betas), config["snr_shift_scale"]
        betas = _betas_of(bars / (scale + (1 - scale) * bars))
    if config.get("rescale_betas_zero_snr"):
        roots = np.sqrt(np.cumprod(1 - betas))
        betas = _betas_of(((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2)
    zero = config.get("set_alpha_to_one", config.get("final_sigmas_type", "zero") == "zero")
    return Levels("vp", betas, config.get("prediction_type"), ends_at_zero=bool(zero))


def _betas(config: dict[str, Any]) -> np.ndarray:
    """The betas that a config names, by diffusers' own formulas in float64."""
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    size, name = int(config.get("num_train_timesteps", 1000)), config["beta_schedule"]
    if name == "squaredcos_cap_v2":
        turns = np.arange(size + 1) / size
        bars = [math.cos((turn + 0.008) / 1.008 * math.pi / 2) ** 2 for turn in turns]
        return np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bars)])
    for key in ("beta_start", "beta_end"):
        check(key in config, key, "missing", "give the scheduler's own config")
    start, end = float(config["beta_start"]), float(config["beta_end"])
    if name == "linear":
        return np.linspace(start, end, size)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, size) ** 2
    if name == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, size)))
    remedy = "use linear, scaled_linear, squaredcos_cap_v2, sigmoid or trained_betas"
    raise WrongUse(f"beta_schedule is {name!r}; {remedy}")


def _edm(config: dict[str, Any]) -> Levels:
    """EDM's own ramp from `sigma_min` to `sigma_max`, over as many levels as training timesteps."""
    ramp = np.linspace(0, 1, int(config["num_train_timesteps"]))
    low, high = float(config["sigma_min"]), float(config["sigma_max"])
    if config["sigma_schedule"] == "karras":
        root = 1 / float(config["rho"])
        sigmas = (low**root + ramp * (high**root - low**root)) ** (1 / root)
    else:
        sigmas = np.exp(np.log(low) + ramp * (np.log(high) - np.log(low)))
    data, zero = float(config["sigma_data"]), config["final_sigmas_type"] == "zero"
    betas, prediction = _betas_of(1 / (1 + sigmas**2)), config["prediction_type"]
    return Levels("edm", betas, prediction, sigma_data=data, ends_at_zero=zero)


def _betas_of(bars: np.ndarray) -> np.ndarray:
    """The betas of a falling ᾱ."""
    return 1 - bars / np.concatenate([[1.0], bars[:-1]])


#: What another class's config says of the model itself: CogVideoX's levels.
INHERITED = ("snr_shift_scale",)


def completed(scheduler: Any) -> dict[str, Any]:
    """A scheduler's config as its own class reads it, and with the shift that is in force.

    What it leaves out has the class's default: Heun's own betas differ from DDIM's, and only DDIM
    clips. What an earlier class has left in it, which diffusers' `from_config` keeps, counts for
    nothing, but for `INHERITED`. The config of a class that is not known stays as it is. Raises
    WrongUse for what is no config.
    """
    config = getattr(scheduler, "config", scheduler)
    kind, remedy = type(scheduler).__name__, "give a diffusers scheduler or its config"
    check(isinstance(config, Mapping), "scheduler", kind, remedy)
    values = {key: value for key, value in config.items() if key != "_use_default_values"}
    source = _class_of(scheduler, config)
    if source is None:
        return values
    known = _settings(source)
    values = {k: v for k, v in values.items() if k in (*known, *INHERITED) or k[0] == "_"}
    for key, default in known.items():
        if default is not inspect.Parameter.empty:
            values.setdefault(key, default)
    if "shift" in values:  # `set_shift` may have moved it
        values["shift"] = getattr(scheduler, "shift", values["shift"])
    return values


def for_class(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """`completed`, and what an earlier class has left that `kind` takes: `from_config` restores it.

    So do diffusers' own classes. What the config's own class takes goes before it.
    """
    left = {key: value for key, value in config.items() if key in _settings(kind)}
    return {**left, **completed(config)}


def _class_of(scheduler: Any, config: Mapping[str, Any]) -> Any:
    """The class that a scheduler has, or its config says; None where that is not known.

    The config of a scheduler that comes from no file does not name it. It holds all settings of
    its class, and says which of them are defaults. A dict of the user's own says what it says.
    """
    import diffusers
    from diffusers.configuration_utils import FrozenDict

    if isinstance(scheduler, diffusers.SchedulerMixin):
        return type(scheduler)
    if "_class_name" in config:
        name = str(config["_class_name"])
        homes = (diffusers, importlib.import_module("asddim_lib"))
        found = (getattr(home, name, None) for home in homes)
        return next((one for one in found if isinstance(one, type)), None)
    if not isinstance(config, FrozenDict) or "_use_default_values" not in config:
        return None
    plain, every = set(config["_use_default_values"]), _below(diffusers.SchedulerMixin)
    right = [one for one in every if plain <= set(_settings(one)) <= set(config)]
    return max(right, key=lambda one: len(_settings(one)), default=None)


def _below(kind: Any) -> list[Any]:
    return [one for child in kind.__subclasses__() for one in (child, *_below(child))]


@functools.lru_cache(maxsize=256)
def _settings(kind: type) -> Mapping[str, Any]:
    """The settings that a class and those above it take, and their defaults."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        own = inspect.signature(base).parameters if "__init__" in vars(base) else {}
        for name, parameter in own.items():
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(name, parameter.default)
    return MappingProxyType(found)


def noise_schedule(scheduler: Any, mu: float | None = None) -> NoiseSchedule:
    """The noise schedule of a scheduler or its config, with `mu` as `Levels.from_diffusers`.

    A flow-matching model mixes (1 − s) of picture with s of noise. Its schedule is the one with the
    same ratio of the two, from which it differs by a scaling of x_t alone. Raises WrongUse for a
    scheduler whose noise levels are not known.
    """
    return NoiseSchedule(Levels.from_diffusers(scheduler, mu).betas)
