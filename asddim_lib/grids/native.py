"""A model's noise levels in the numbers that its own community counts them in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asddim_lib.paper import NoiseSchedule


@dataclass(frozen=True)
class Table:
    """A model's levels in its own numbers, rising: σ, or a flow model's share of noise s.

    `end` is the timestep, a real number, at which ComfyUI's `normal` ends.
    """

    levels: np.ndarray
    flow: bool
    end: float

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> Table:
        """The table of a noise schedule, of which it tells whether it is a flow model's.

        With shift a, a flow model's σ at timestep t is a (t + 1) / (T − t − 1). So (t + 1) / σ
        falls in a straight line, and it does so for no other model.
        """
        sigmas, size = schedule.finite_sigmas, len(schedule)
        line = np.arange(1, size + 1) / schedule.sigmas
        straight = np.linspace(line[0], line[-1], size)
        bent = np.abs(line - straight).max() > 1e-6 * line[0]
        if size < 3 or bent or line[-1] >= line[0]:
            return cls(sigmas, False, 0.0)
        shift = (size - 1) / (line[0] - line[-1])
        shares = 1 / (1 + 1 / schedule.sigmas)
        # ComfyUI takes s × 1000 for the timestep, and puts the shift on it a second time.
        return cls(shares, True, (1 + shift * line[0]) * float(shares[0]) - 1)

    def sigmas(self, levels: np.ndarray) -> np.ndarray:
        """σ of levels in the table's own numbers; that of s = 1 is infinite."""
        if not self.flow:
            return levels
        s = np.minimum(levels, 1.0)
        with np.errstate(divide="ignore"):
            return s / (1 - s)
