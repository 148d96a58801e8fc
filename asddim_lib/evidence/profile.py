"""A profile: a model's sensitivity g(t) and its steps' error, as `calibrate` measured them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import MISSING, asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from asddim_lib.cache import write_whole
from asddim_lib.errors import WrongUse, check
from asddim_lib.evidence.fit import fit_paper
from asddim_lib.evidence.path import spread
from asddim_lib.levels import Levels, fingerprint

SCHEMA = 4
#: Up to so many prompts are named in full.
FEW = 8
#: A step's local error, its effect on the final latents, and on an encoder's features.
KINDS = ("local", "adjoint", "feature")
#: Schema 3 (versions 0.1 and 0.2) has other names for them.
OLD_KINDS = {"made": "local", "carried": "adjoint", "seen": "feature"}
_NEEDED = {"local": "", "adjoint": ", with adjoint_probes", "feature": ", with feature_probes"}
#: What each field of a profile is.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("timesteps", "g", "stderr"), (list, tuple)),
    **dict.fromkeys(("norm", "estimator", "model", "schedule"), str),
    **dict.fromkeys(("probes", "samples", "seed", "evaluations"), Integral),
    "guidance_scale": Real,
    "local_error": (dict, type(None)),
    "prompts": (list, tuple, str),
    "options": dict,
    "dtype": str,
    "kappa": (dict, type(None)),
}


@dataclass(frozen=True)
class Profile:
    """g(t) along a model's sampling path, at some timesteps, and how it was measured.

    `stderr` is the standard error of g's mean over prompts; None where a single prompt says nothing
    of it. `evaluations` counts the network evaluations spent: a derivative counts as two, guidance
    doubles. `local_error` has the path's N timesteps and, by the solver's order, how many steps
    each of the N − 1 intervals between them deserves: `local` for the step's error, `adjoint` for
    its effect on the final latents, `feature` for its effect on an encoder's features.
    `schedule` is the noise schedule's `fingerprint`. `prompts` are the texts, or the hash of more
    than `FEW`. `options` went to the pipeline's call: plain values, and the hash of any other.
    `dtype` is the network's. These three are empty in files of 0.1 and 0.2. `kappa` has `values`
    of κ, the largest eigenvalue of σ ∂ε/∂y (`guidance.law`), at the falling `sigmas` of the
    timesteps: a high quantile over prompts, at the guidance `scale`. None if not measured.
    Raises WrongUse for values that no measurement gives.
    """

    timesteps: list[int]
    g: list[float]
    stderr: list[float | None]
    norm: str
    estimator: str
    probes: int
    samples: int
    seed: int
    guidance_scale: float
    model: str
    schedule: str
    evaluations: int
    local_error: dict[str, Any] | None = None
    prompts: list[str] | str = ""
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = ""
    kappa: dict[str, Any] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        reads = f"this version reads {SCHEMA}; calibrate again"
        check(self.schema == SCHEMA, "profile schema", self.schema, reads)
        for name, kind in _TYPES.items():
            _check(isinstance(getattr(self, name), kind), name)
        _check(_falling(self.timesteps), "timesteps")
        _check(_positive(self.g, len(self.timesteps)), "g")
        known = all(isinstance(error, (Real, type(None))) for error in self.stderr)
        _check(known and len(self.stderr) == len(self.timesteps), "stderr")
        if self.kappa is not None:
            known = set(self.kappa) == {"sigmas", "values", "scale"}
            _check(known and isinstance(self.kappa["scale"], Real), "kappa")
            sigmas, values = self.kappa["sigmas"], self.kappa["values"]
            _check(_positive(sigmas, len(self.timesteps)), "kappa sigmas")
            _check(list(sigmas) == sorted(set(sigmas), reverse=True), "kappa sigmas")
            _check(_finite(values, len(sigmas)), "kappa values")
        measured = self.local_error or {"timesteps": self.timesteps}
        points = measured.get("timesteps", [])
        _check(_falling(points), "local_error timesteps")
        _check(isinstance(measured.get("encoder", ""), str), "local_error encoder")
        for kind in KINDS:
            orders = measured.get(kind, {})
            _check(isinstance(orders, dict), f"local_error {kind}")
            for order, counts in orders.items():
                _check(_positive(counts, len(points) - 1), f"local_error {kind} of order {order}")

    def at(self, schedule: Levels) -> np.ndarray:
        """g at every training timestep, log-linear between the measured ones.

        It is constant beyond them. Raises WrongUse for a profile of another noise schedule.
        """
        self.check_schedule(schedule)
        known = np.asarray(self.timesteps[::-1])
        return np.exp(np.interp(np.arange(len(schedule)), known, np.log(self.g[::-1])))

    def density(self, schedule: Levels, order: int = 1, kind: str = "local") -> np.ndarray:
        """How many steps of a solver of this order each training timestep deserves, up to a factor.

        `kind` is one of `KINDS`.
        The array goes from timestep 0 to the first of the path: to T − 1, unless the path began
        lower, as an image-to-image pipeline's does. Raises WrongUse when that was not measured, or
        for a profile of another noise schedule.
        """
        self.check_schedule(schedule)
        check(kind in KINDS, "kind", kind, f"use one of {', '.join(KINDS)}")
        measured = self.local_error or {}
        known = measured.get(kind, {})
        remedy = f"calibrate again{_NEEDED[kind]}"
        what = f"without the error {kind} at order {order}"
        check(str(order) in known, "profile", what, remedy)
        return spread(known[str(order)], measured["timesteps"])

    def check_schedule(self, schedule: Levels) -> None:
        """Raises WrongUse for a profile that was measured on another noise schedule."""
        same = self.schedule == fingerprint(schedule)
        what = "measured on another noise schedule"
        check(same, "profile", what, "calibrate on this scheduler")
        first = max(self.timesteps[0], *(self.local_error or {"timesteps": [0]})["timesteps"][:1])
        beyond = f"of timesteps up to {first}, beyond {len(schedule) - 1}"
        check(first < len(schedule), "profile", beyond, "calibrate again")

    def fit(
        self, schedule: Levels, order: int = 1, kind: str = "adjoint"
    ) -> tuple[float, float, float]:
        """The paper's p and λ whose density comes nearest to `density`.

        The third number is the factor by which their error exceeds that density's
        (`fit.fit_paper`).
        """
        density = self.density(schedule, order, kind)
        g, variance = self.at(schedule), schedule.variance
        return fit_paper(variance[: len(density)], g[: len(density)], density, order)

    def described(self) -> str:
        """What it was measured on, in one line: the model, prompts, guidance, dtype and options."""
        texts = [] if isinstance(self.prompts, str) else self.prompts
        hashed = f" ({self.prompts})" if self.prompts and not texts else ""
        parts = [self.model or "unnamed model", f"prompts {self.samples}{hashed}"]
        parts += [f"guidance {self.guidance_scale:g}", self.dtype or "dtype unknown"]
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self.options.items())])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a scheduler's config; without `kappa` if it was not measured."""
        return {k: v for k, v in asdict(self).items() if k != "kappa" or v is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Profile:
        """The profile of a `to_dict()`, of this version, 0.1 or 0.2.

        Raises WrongUse that names the wrong keys.
        """
        remedy = "give a profile from calibrate"
        check(isinstance(values, dict), "profile", type(values).__name__, remedy)
        known = {one.name: one.default is one.default_factory is MISSING for one in fields(cls)}
        needed = {name for name, always in known.items() if always} | {"schema"}
        names = ", ".join(sorted((needed - set(values)) | (set(values) - set(known))))
        check(not names, "profile keys", f"missing or unknown: {names}", remedy)
        if values.get("schema") == 3:
            local = values.get("local_error")
            if isinstance(local, dict):
                local = {OLD_KINDS.get(name, name): value for name, value in local.items()}
            values = {**values, "schema": SCHEMA, "local_error": local}
        return cls(**values)

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        write_whole(Path(path), lambda part: part.write_text(text))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        model: str | None = None,
        schedule: Levels | None = None,
        guidance_scale: float | None = None,
        override: tuple[str, ...] = (),
    ) -> Profile:
        """Reads what `save` wrote, for the model, noise schedule and guidance scale given.

        Raises WrongUse when it is no profile, or was measured for others, unless `override` names
        what may differ: "model", "schedule", "guidance_scale".
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else f"no whole JSON: {error}"
            read = f"profile is {str(path)!r}, which could not be read ({reason})"
            raise WrongUse(f"{read}; give a file that calibrate wrote") from error
        profile = cls.from_dict(values)
        made_on = fingerprint(schedule) if schedule else None
        wanted: dict[str, Any] = {"model": model, "schedule": made_on}
        wanted["guidance_scale"] = guidance_scale
        foreign = ", ".join(sorted(set(override) - set(wanted)))
        check(not foreign, "override", foreign, f"use some of {', '.join(wanted)}")
        for name, value in wanted.items():
            known = getattr(profile, name)
            same = value is None or name in override or known == value
            remedy = f"calibrate again, or override {name!r}"
            check(same, f"profile {path}", f"for {name} {known}, not {value}", remedy)
        return profile


def _check(holds: bool, name: str) -> None:
    check(holds, f"profile {name}", "not what calibrate writes", "calibrate again")


def _positive(values: Any, count: int) -> bool:
    """Whether these are so many finite positive numbers."""
    return _finite(values, count) and all(v > 0 for v in values)


def _finite(values: Any, count: int) -> bool:
    """Whether these are so many finite numbers."""
    listed = isinstance(values, (list, tuple)) and len(values) == count
    return listed and all(isinstance(v, Real) and math.isfinite(v) for v in values)


def _falling(values: Any) -> bool:
    """Whether these are strictly falling timesteps, at least one."""
    listed = isinstance(values, (list, tuple)) and len(values) > 0
    whole = listed and all(isinstance(t, Integral) and int(t) >= 0 for t in values)
    return whole and list(values) == sorted(set(values), reverse=True)
