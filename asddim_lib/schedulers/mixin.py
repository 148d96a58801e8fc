"""`TakesGrid`: the options by which every scheduler here places its steps.

`grid` is an explicit grid: K whole timesteps, or sigmas, which a flow model's config has as s after
the shift. `allocation` names a method of `grids.table`, which may need a `profile` or read the
paper's `p`, `lam`, `eps` and `reading`. `boundary` is the s below which a second network takes over
(Wan 2.2: the pipeline's `boundary_ratio`); a step then begins there. They are in the scheduler's
config and so are saved with a pipeline. Without any of them a scheduler equals diffusers' class to
the bit.

Grids leave here as diffusers' classes step: as K whole timesteps, or K values of s of a flow model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict, register_to_config

from asddim_lib.configs import completed, for_class, is_flow, kind_of
from asddim_lib.errors import check, check_whole
from asddim_lib.grids.grid import sigmas, timesteps
from asddim_lib.grids.rules import linear_quadratic
from asddim_lib.grids.table import DEFAULTS, check_profile, method_of
from asddim_lib.levels import Levels, as_numbers, check_timesteps, with_boundary

log = logging.getLogger(__name__)

#: What each scheduler here takes besides the settings of its diffusers class.
OPTIONS: dict[str, Any] = {**DEFAULTS, "grid": None, "boundary": None}
#: Options that only some methods read. At their default they are in no other scheduler's config.
PAPER_OPTIONS, PAPER = ("p", "lam", "eps", "reading"), ("noise", "gradient", "combined")
#: Settings that describe the model. Their defaults differ between classes, so a config states them.
MODEL = {
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "clip_sample",
    "thresholding",
    "set_alpha_to_one",
    "shift",
    "use_dynamic_shifting",
    "use_flow_sigmas",
    "flow_shift",
}


def init_of(parent: Any) -> Callable[..., None]:
    """The `__init__` of a subclass of the diffusers scheduler `parent` with `OPTIONS` added.

    For DDIM, written out::

        @register_to_config  # puts every argument into self.config
        def __init__(self, num_train_timesteps=1000, …, *, allocation="uniform", …, grid=None):
            DDIMScheduler.__init__(self, num_train_timesteps, …)
            self._check_options()

    diffusers reads in its signature which settings a class has.
    """
    theirs = inspect.signature(parent.__init__).parameters
    keyword = inspect.Parameter.KEYWORD_ONLY
    ours = [inspect.Parameter(name, keyword, default=value) for name, value in OPTIONS.items()]

    def init(self: Any, *args: Any, **settings: Any) -> None:
        with torch.device("cpu"):  # tables do not follow torch.set_default_device
            parent.__init__(self, **{name: self.config[name] for name in list(theirs)[1:]})
            self._check_options()

    signature = inspect.Signature([*theirs.values(), *ours])
    init.__signature__ = signature  # type: ignore[attr-defined]
    return register_to_config(init)


class TakesGrid:
    """Mixed in before a diffusers scheduler class; `__init__` is then `init_of` that class."""

    config: Any
    register_to_config: Callable[..., None]

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **changes: Any
    ) -> Any:
        """As diffusers' `from_config`, from any scheduler of the same kind of model.

        Settings of the model that the config leaves out are those of its own class. An `allocation`
        among the `changes` replaces the config's grid, and a `grid` its allocation. Raises WrongUse
        for another kind of model, and for a change that is no setting.
        """
        remedy = "give pipe.scheduler.config"
        check(isinstance(config, Mapping), "config", type(config).__name__, remedy)
        ahead = changes.pop("look_ahead", config.get("look_ahead", 0))  # version 0.2 had it
        remedy = "it gained nothing and is gone: set it to 0, which draws other pictures"
        check(ahead == 0, "look_ahead", ahead, remedy)
        known = inspect.signature(cls.__init__).parameters
        for name in () if return_unused_kwargs else changes:
            check(name in known, name, changes[name], f"{cls.__name__} has no such setting")
        if changes.get("grid") is not None:
            changes = {"allocation": "uniform", "profile": None, **changes}
        elif "allocation" in changes:
            changes = {"grid": None, **changes}
        stated = for_class(cls, config)
        stated.pop("look_ahead", None)
        source = cls._translated(dict(stated), changes, _kind_of({**stated, **changes}))
        unstated = set(config.get("_use_default_values", ())) - MODEL
        changed = {key for key, value in source.items() if value is not stated.get(key)}
        source["_use_default_values"] = list(unstated - changed)
        return super().from_config(source, return_unused_kwargs, **changes)  # type: ignore[misc]

    @classmethod
    def _translated(
        cls, source: dict[str, Any], changes: Mapping[str, Any], kind: str
    ) -> dict[str, Any]:
        """The settings of a source scheduler for a `kind` of model, as this class names them."""
        raise NotImplementedError

    def _check_options(self) -> None:
        """Checks a new scheduler's options, reads its grid, and settles what its config states."""
        config = self.config
        allocation, grid, boundary = (config[key] for key in ("allocation", "grid", "boundary"))
        check_profile(config["profile"])
        method_of(allocation, ("nothing", "profile"))
        remedy = "give a flow model the s where its second network begins, such as 0.875"
        within = boundary is None or (self._flow and 0 < boundary < 1)
        check(within, "boundary", boundary, remedy)
        remedy = "a grid states where the steps are: give grid=None, or no allocation"
        check(grid is None or allocation == "uniform", "allocation", allocation, remedy)
        inverted = config.get("invert_sigmas", False)
        remedy = "its levels are reversed: give no allocation, grid or boundary"
        check(not (inverted and self.places_steps), "invert_sigmas", inverted, remedy)
        if grid is not None:
            self.register_to_config(grid=self._read(grid))
        stated = dict(self.config)
        for name in ("boundary", *(() if allocation in PAPER else PAPER_OPTIONS)):
            if stated[name] == OPTIONS[name]:
                del stated[name]
        unstated = set(stated.pop("_use_default_values", ())) & stated.keys() - MODEL
        stated |= {"_use_default_values": sorted(unstated)} if unstated else {}
        self._internal_dict = FrozenDict({**stated, "_class_name": type(self).__name__})

    @property
    def _flow(self) -> bool:
        return is_flow(self)

    @property
    def places_steps(self) -> bool:
        """Whether it places its steps itself, rather than as diffusers' class does."""
        options = (self.config.get(key) for key in ("grid", "boundary"))
        return self.config["allocation"] != "uniform" or any(one is not None for one in options)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Sets K steps by the scheduler's grid or allocation, or a given grid.

        A grid of another number of steps is interpolated in log σ, with a warning. Given
        `timesteps` are whole numbers. Given `sigmas` are σ, or of a flow model s before its shift,
        as diffusers' own flow scheduler takes them; the last 0 is optional. `mu` is the shift that
        depends on the picture's size. They take precedence over the scheduler's
        steps, with a warning, unless they are what a pipeline passes by itself. Raises WrongUse for
        what is no grid of this model, and where `mu` is missing.
        """
        given, name = (timesteps, "timesteps") if sigmas is None else (sigmas, "sigmas")
        count = num_inference_steps if given is None else len(as_numbers(given, name))
        size = self.config["num_train_timesteps"]
        plain = passed_by_pipeline(sigmas, timesteps, size) if self._flow else given is None
        known = mu is not None or not self.config.get("use_dynamic_shifting")
        remedy = "its shift depends on the picture's size: a pipeline gives it"
        check(known or (plain and self.places_steps), "mu", mu, remedy)
        with torch.device("cpu"):
            if not plain:
                if self.places_steps:
                    log.warning(
                        "the call gives %s a grid, which takes precedence over its grid or "
                        "allocation; leave it out, or use schedulers.place.with_grid",
                        type(self).__name__,
                    )
                self._set_given(num_inference_steps, device, timesteps, sigmas, mu)
            elif self.places_steps:
                self._set(self._steps_by_options(count, mu), device)
            else:
                self._set_uniform(count, device, timesteps, sigmas, mu)

    def _set(self, grid: Any, device: Any) -> None:
        """Sets K falling timesteps, or K falling s of a flow model, after its shift."""
        raise NotImplementedError

    def _set_uniform(
        self, steps: int | None, device: Any, timesteps: Any, sigmas: Any, mu: float | None
    ) -> None:
        """Sets what diffusers' class sets."""
        raise NotImplementedError

    def _set_given(
        self, steps: int | None, device: Any, timesteps: Any, sigmas: Any, mu: float | None
    ) -> None:
        """Sets a grid that the call gives."""
        twice = timesteps is not None and (steps is not None or sigmas is not None)
        check(not twice, "num_inference_steps, timesteps and sigmas", "given together", "give one")
        if self._flow:
            check(timesteps is None, "timesteps", "given", "it is a flow model: give sigmas")
            unshifted = np.array(self._read(sigmas, "sigmas"))
            self._set(self._noise_levels(mu).shifted(unshifted), device)
        else:
            given, name = (timesteps, "timesteps") if sigmas is None else (sigmas, "sigmas")
            self._set(self._read(given, name), device)

    def _noise_levels(self, mu: float | None = None) -> Levels:
        return Levels.from_diffusers({**completed(self), "invert_sigmas": False}, mu)

    def _read(self, values: Any, name: str = "grid") -> list[Any]:
        """A given grid as K whole timesteps, or as K values of s of a flow model.

        Whole timesteps of a flow model become s after the shift; given s are returned unchanged.
        Raises WrongUse, naming `name`, for what is no such grid.
        """
        given, levels = as_numbers(values, name), self._noise_levels(1.0)  # s needs no mu
        whole = name != "sigmas" and levels.are_timesteps(given)
        if whole and self._flow:
            levels = self._noise_levels()
        elif name == "grid" and self._flow:  # a config's, read whenever it is loaded, has no end
            levels = replace(levels, end=0.0)
        sigmas = levels.grid_of(given, name, whole=whole)[:-1]
        if self._flow:
            times = np.float32(sigmas) * np.float32(len(levels))
            remedy = "two of its steps are the same in float32: leave one out"
            check(bool((np.diff(times) < 0).all()), name, given.tolist(), remedy)
            return sigmas.tolist()
        if whole or name == "timesteps":
            return check_timesteps(given, len(levels), name)
        remedy = "sigmas that begin so low are a flow model's: give whole timesteps"
        check(name != "grid" or sigmas[0] > 1, name, given.tolist(), remedy)
        return levels.nearest(sigmas)

    def _steps_by_options(self, steps: int | None, mu: float | None) -> Any:
        """K steps by the scheduler's grid or allocation, as `_set` takes them."""
        grid, boundary = self.config["grid"], self.config.get("boundary")
        check_whole("num_inference_steps", steps, 1)
        assert steps is not None
        if grid is not None and len(grid) != steps:
            log.warning("a grid of %d steps is interpolated to %d steps", len(grid), steps)
            grid = self._resampled(grid, steps)
        name = self.config["allocation"]  # named, the scheduler is not asked for its steps again
        if grid is None and self._flow:
            return sigmas(self, steps, allocation=name, mu=mu, shifted=True)[:-1]
        if grid is None:
            return timesteps(self, steps, allocation=name)
        return grid if boundary is None else with_boundary(np.asarray(grid), boundary)

    def _resampled(self, grid: list[Any], steps: int) -> Any:
        """The grid at another number of steps."""
        if self._flow:
            return resampled(np.array(grid), steps, 1 / self.config["num_train_timesteps"])
        levels = self._noise_levels()
        remedy = f"only {grid[0] + 1} timesteps lie within the grid: give fewer"
        check(steps <= grid[0] + 1, "num_inference_steps", steps, remedy)
        table = levels.finite_sigmas
        return levels.nearest(resampled(table[grid], steps, table[0]))


def _kind_of(stated: Mapping[str, Any]) -> str:
    """The kind of model, also of a config that has passed through a class of another kind."""
    betas = stated.get("trained_betas") is not None or "beta_schedule" in stated
    discrete = stated.get("timestep_type") != "continuous"
    return "vp" if betas and discrete and not is_flow(stated) else kind_of(stated)


def passed_by_pipeline(sigmas: Any, timesteps: Any, num_train_timesteps: int) -> bool:
    """Whether a flow pipeline passes these by itself, whatever its user says.

    Nothing; or evenly spaced sigmas, from 1 down to 1/K (FLUX, Chroma, Lumina 2, Qwen-Image,
    HunyuanVideo, LTX); or evenly spaced whole timesteps, from T down to 1, and also their sigmas
    (CogView 4, GLM-Image); or linear-quadratic levels, as sigmas (Mochi) or as timesteps (LTX with
    conditions).
    """
    if sigmas is None and timesteps is None:
        return True
    size = num_train_timesteps
    if timesteps is None:
        steps = len(sigmas)
        evenly = _near(sigmas, np.linspace(1, 1 / max(1, steps), steps))
        return evenly or _near(sigmas, linear_quadratic(steps))
    steps = len(timesteps)
    if sigmas is None:
        return _near(np.asarray(timesteps, float) / size, linear_quadratic(steps))
    cog, glm = np.linspace(size, 1, steps), np.linspace(size, 1, steps + 1)[:-1]
    even = next((e for e in (cog.astype(int), glm.astype(int)) if _near(timesteps, e)), None)
    return even is not None and _near(sigmas, even / size)


def _near(given: Any, values: np.ndarray) -> bool:
    return len(given) == len(values) and np.allclose(np.asarray(given, float), values, atol=1e-6)


def resampled(sigmas: np.ndarray, steps: int, lowest: float) -> np.ndarray:
    """`steps` falling σ along a grid of σ: log σ is interpolated, as by Align Your Steps.

    `lowest` stands for the end of the last step, whose logarithm is infinite where it is 0.
    """
    ends = sigmas[-1] > lowest * (1 + 1e-6)
    points = np.log(np.append(sigmas, lowest) if ends else sigmas)
    at = np.linspace(0, 1, steps + 1)[:-1] if ends or steps == 1 else np.linspace(0, 1, steps)
    values = np.exp(np.interp(at, np.linspace(0, 1, len(points)), points))
    values[0] = sigmas[0]
    return values
