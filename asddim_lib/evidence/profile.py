"""A profile: a model's sensitivity g(t) and the error of its steps, as `calibrate` measured them."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asddim_lib.core.allocation import fit_paper
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.errors import check
from asddim_lib.evidence.trajectory import spread
from asddim_lib.files import write_whole

SCHEMA = 3


@dataclass(frozen=True)
class SensitivityProfile:
    """g(t) as measured on a model's own sampling path: values and standard errors at some timesteps, how they were made, and how many network
    evaluations that cost (a derivative counts as two, guidance doubles).

    `local_error`, where it was measured, has the path's N timesteps and, by a solver's order, how many steps each of the N − 1 stretches
    between them deserves: `made` for the error as it is made, `carried` for what of it reaches the picture.
    """

    timesteps: list[int]
    g: list[float]
    stderr: list[float]
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
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        g = np.asarray(self.g, np.float64)
        check(
            self.schema == SCHEMA,
            "profile schema",
            self.schema,
            f"this version reads {SCHEMA}; calibrate again",
        )
        check(
            len(self.timesteps) == len(g) == len(self.stderr) > 0,
            "profile",
            "uneven or empty lists",
            "calibrate again",
        )
        check(
            bool(np.all(np.isfinite(g) & (g > 0))),
            "profile g",
            "not all finite and positive",
            "calibrate again",
        )
        check(
            list(self.timesteps) == sorted(set(self.timesteps), reverse=True),
            "profile timesteps",
            "unsorted",
            "calibrate again",
        )

    def at(self, schedule: NoiseSchedule) -> np.ndarray:
        """g at every training timestep, log-linear between the measured ones and constant beyond them.

        Raises ValueError when the profile was made on another noise schedule.
        """
        check(
            self.schedule == fingerprint(schedule),
            "profile",
            "made on another noise schedule",
            "calibrate on this scheduler",
        )
        known = np.asarray(self.timesteps[::-1])
        return np.exp(np.interp(np.arange(len(schedule)), known, np.log(self.g[::-1])))

    def density(self, schedule: NoiseSchedule, order: int = 1, carried: bool = False) -> np.ndarray:
        """How many steps a solver of this order should take at every training timestep, up to a factor, by its local error.

        Raises ValueError when that was not measured, or on another noise schedule.
        """
        check(
            self.schedule == fingerprint(schedule),
            "profile",
            "made on another noise schedule",
            "calibrate on this scheduler",
        )
        kind = "carried" if carried else "made"
        measured = self.local_error or {}
        known = measured.get(kind, {})
        check(
            str(order) in known,
            "profile",
            f"without the error {kind} at order {order}",
            f"calibrate again{', with adjoint_probes' if carried else ''}",
        )
        return spread(known[str(order)], measured["timesteps"])

    def fit(
        self, schedule: NoiseSchedule, order: int = 1, carried: bool = True
    ) -> tuple[float, float, float]:
        """The paper's p and λ that come nearest to `density`, and by what factor their error still exceeds its own (`allocation.fit_paper`)."""
        return fit_paper(
            schedule.variance, self.at(schedule), self.density(schedule, order, carried), order
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as a scheduler's config holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SensitivityProfile:
        """The profile of a dict made by `to_dict`; raises ValueError that names missing or foreign keys."""
        check(
            isinstance(values, dict),
            "profile",
            type(values).__name__,
            "give a profile made by calibrate",
        )
        wrong = (set(values) | {"local_error"}) ^ set(cls.__dataclass_fields__)
        check(
            not wrong,
            "profile keys",
            f"missing or unknown: {', '.join(sorted(wrong))}",
            "give a profile made by calibrate",
        )
        return cls(**values)

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON, whole or not at all."""
        path = Path(path)
        write_whole(path, lambda part: part.write_text(json.dumps(self.to_dict(), indent=1) + "\n"))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        model: str | None = None,
        schedule: NoiseSchedule | None = None,
        guidance_scale: float | None = None,
        override: tuple[str, ...] = (),
    ) -> SensitivityProfile:
        """Reads what `save` wrote, for the model, noise schedule and guidance scale that are given.

        Raises ValueError when it is no profile, or was made for others, unless `override` names what may differ: "model", "schedule",
        "guidance_scale".
        """
        try:
            values = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"profile {path} is no whole JSON file ({error}); calibrate again"
            ) from error
        found = cls.from_dict(values)
        wanted = {
            "model": model,
            "schedule": schedule and fingerprint(schedule),
            "guidance_scale": guidance_scale,
        }
        foreign = set(override) - set(wanted)
        check(
            not foreign, "override", ", ".join(sorted(foreign)), f"use some of {', '.join(wanted)}"
        )
        for name, value in wanted.items():
            same = value is None or name in override or getattr(found, name) == value
            check(
                same,
                f"profile {path}",
                f"made for {name} {getattr(found, name)}, not {value}",
                f"calibrate again, or override {name!r}",
            )
        return found


def fingerprint(schedule: NoiseSchedule) -> str:
    """A short name of a noise schedule: equal for equal betas."""
    return hashlib.sha256(np.round(schedule.betas, 12).tobytes()).hexdigest()[:16]
