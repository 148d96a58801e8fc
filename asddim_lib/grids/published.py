"""Grids that projects publish for a model, as facts: `published.yml` states numbers and sources.

A published grid belongs to one model, shift, resolution, guidance and solver.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from asddim_lib.grids.rules import Rule, log_linear
from asddim_lib.levels import Levels, sigma_of
from asddim_lib.paper import NoiseSchedule

#: Stable Diffusion's betas, √β even: what a fraction of its T = 1000 timesteps means.
SD_BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


@dataclass(frozen=True)
class Published:
    """An entry of `published.yml`, where the fields are explained; `given` are its `levels`."""

    name: str
    model: str
    kind: str
    numbers: str
    given: tuple[float, ...] | str
    end: float
    source: str
    checked: str
    shift: float | None = None
    resolution: str = "not stated"
    guidance: str = "not stated"
    solver: str = "not stated"

    @property
    def levels(self) -> tuple[float, ...]:
        """The K published numbers, read from diffusers where it ships them."""
        return _of_diffusers(self.given) if isinstance(self.given, str) else tuple(self.given)

    @property
    def steps(self) -> int:
        """K, the number of steps that the grid was published for."""
        return len(self.levels)

    def sigmas(self, steps: int | None = None) -> np.ndarray:
        """K falling σ, float64; the first may be infinite.

        For another number of steps, log-linear between the published σ; a flow model's between s.
        """
        count = self.steps if steps is None else steps
        if self.numbers == "flow sigmas":
            return sigma_of(log_linear(self.levels, count))
        if self.numbers == "fractions of t":
            table = np.log(NoiseSchedule(SD_BETAS).sigmas)
            places = len(table) * np.array(self.levels) - 1
            return log_linear(np.exp(np.interp(places, np.arange(len(table)), table)), count)
        return log_linear(self.levels, count)


def _of_diffusers(place: str) -> tuple[float, ...]:
    module, constant = place.removeprefix("diffusers: ").split()
    if module == "AysSchedules":
        from diffusers.schedulers import AysSchedules

        return tuple(AysSchedules[constant][:-1])  # the last is 0, clean data
    return tuple(getattr(importlib.import_module(f"diffusers.{module}"), constant))


def _read() -> dict[str, Published]:
    text = Path(__file__).with_suffix(".yml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text)
    return {name: Published(name, given=one.pop("levels"), **one) for name, one in entries.items()}


#: Every published grid by its name.
PUBLISHED: dict[str, Published] = _read()


def rule_of(*names: str) -> Rule:
    """The rule of the published list whose length is nearest to the number of steps."""

    def rule(levels: Levels, steps: int) -> list[int]:
        nearest = min((PUBLISHED[name] for name in names), key=lambda one: abs(one.steps - steps))
        return levels.nearest(nearest.sigmas(steps))

    return rule
