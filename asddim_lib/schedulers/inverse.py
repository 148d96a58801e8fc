"""DDIM inversion on any grid: from a picture's latents back to the noise that draws them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.levels import as_numbers
from asddim_lib.schedulers.ddim import ASDDIMScheduler


class ASDDIMInverseScheduler(ASDDIMScheduler):
    """`ASDDIMScheduler`'s steps in reverse, on the same grid, as `DDIMInverseScheduler` is to DDIM.

    Its timesteps rise. A step at timestep t leads from the grid's next smaller timestep (first from
    the grid's end) to t, and calls the network at t. A call's timesteps or sigmas may rise or fall.

    >>> inverse = ASDDIMInverseScheduler.from_config(pipe.scheduler.config)
    """

    def _read(self, values: Any, name: str = "grid") -> list[Any]:
        given = as_numbers(values, name)
        if name != "grid" and given[0] < given[-1]:
            values = given[::-1]
        return super()._read(values, name)

    def _set(self, grid: Any, device: Any) -> None:
        super()._set(grid, device)
        self.timesteps = self.timesteps.flip(0)

    def _check_start(self, first: int) -> None:
        """A step may end in pure noise: only leaving it needs the picture."""

    def _levels(self, timestep: int | Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        above, below = super()._levels(timestep, sample)
        return below, above

    def step(self, *args: Any, **options: Any) -> Any:
        """As `ASDDIMScheduler.step`, towards noise. Raises WrongUse for η > 0."""
        eta = options.get("eta", args[3] if len(args) > 3 else 0.0)
        check(eta == 0, "eta", eta, "inversion is deterministic: leave it out")
        return super().step(*args, **options)
