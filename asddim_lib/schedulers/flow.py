"""`ASFlowScheduler`: Euler's method for flow-matching models on any grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config

from asddim_lib.errors import check
from asddim_lib.grids.flow import check_sigmas, flow_levels, of_a_pipeline
from asddim_lib.grids.table import check_allocation
from asddim_lib.levels import Levels, completed, for_class, with_boundary, with_fixed_shift
from asddim_lib.schedulers import held

log = logging.getLogger(__name__)


class ASFlowScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler's method for flow matching, whose steps go where an allocation puts them.

    It stands in for `FlowMatchEulerDiscreteScheduler`, and for UniPC or DPM-Solver with flow
    sigmas, in any pipeline, also one that takes no `sigmas`. Beside diffusers' settings it has
    `allocation`, `p`, `eps`, `lam`, `reading` and `profile`, as `ASDDIMScheduler`; `grid`, a list
    of σ in (0, 1] as the network is to see them; and `boundary`, the σ below which a second network
    takes over (Wan 2.2: the pipeline's `boundary_ratio`), where a step then begins.

    Without any of them it is diffusers' own, to the bit. With one, its levels stand as they are
    meant: no shift is put on them again. Sigmas that a call gives go before them, with a warning,
    and mean what they mean to diffusers, unless they are evenly spaced or linear-quadratic: that
    is what a pipeline gives by itself.

    >>> pipe.scheduler = ASFlowScheduler.from_config(pipe.scheduler.config, allocation="logsnr")
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        allocation: str = "uniform",
        p: float = 0.5,
        lam: float = 1.0,
        eps: float = 1e-8,
        reading: str = "intent",
        profile: dict[str, Any] | None = None,
        grid: list[float] | None = None,
        boundary: float | None = None,
    ) -> None:
        check_allocation(allocation, profile)
        if grid is not None:
            check_sigmas("grid", grid)
            held.check_alone(allocation)
            self.register_to_config(grid=[float(sigma) for sigma in grid])  # as a file holds it
        remedy = "give the share of noise where the second network begins, such as 0.875"
        check(boundary is None or 0 < boundary < 1, "boundary", boundary, remedy)
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
            invert_sigmas=invert_sigmas,
            shift_terminal=shift_terminal,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            time_shift_type=time_shift_type,  # type: ignore[arg-type]
            stochastic_sampling=stochastic_sampling,
        )

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As diffusers' `from_config`, of any flow-matching scheduler.

        UniPC's and DPM-Solver's `flow_shift` becomes `shift`. Raises WrongUse for a
        variance-preserving or EDM scheduler, or one whose noise levels are not known.
        """
        remedy = "give pipe.scheduler.config"
        check(isinstance(config, Mapping), "config", type(config).__name__, remedy)
        source = _translated(held.without_retired(config, kwargs), kwargs)
        return super().from_config(source, return_unused_kwargs, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Lays K steps by the scheduler's own allocation or grid, or the given `sigmas`.

        `mu` is the shift that pipelines reckon from the picture's size. Raises WrongUse for a
        missing `mu`, a number of steps that a held `grid` has not, or too few at a boundary.
        """
        known = mu is not None or not self.config["use_dynamic_shifting"]
        remedy = "this scheduler's shift depends on the picture's size: a pipeline gives it"
        check(known, "mu", mu, remedy)
        own = self.lays and of_a_pipeline(sigmas, timesteps, self.config["num_train_timesteps"])
        inverted = self.config["invert_sigmas"]
        remedy = "its levels are turned round: use no allocation, grid or boundary"
        check(not inverted or not own, "invert_sigmas", inverted, remedy)
        if own:
            given = timesteps if sigmas is None else sigmas
            steps = num_inference_steps if given is None else len(given)
            check(steps is not None, "num_inference_steps", steps, "give a number of steps")
            self._lay(self._levels(int(steps or 0), mu), device)
        else:
            if self.lays:
                log.warning(held.OVERRULED, type(self).__name__)
            super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)

    @property
    def lays(self) -> bool:
        """Whether the levels are this scheduler's own, and not diffusers'."""
        own = ("grid", "boundary")
        return self.config["allocation"] != "uniform" or any(self.config[k] for k in own)

    def _levels(self, steps: int, mu: float | None) -> np.ndarray:
        """The K levels of noise, falling, as the network sees them."""
        grid = self.config["grid"]
        if grid is not None:
            held.check_steps(grid, steps)
            levels = np.asarray(grid, np.float64)
        else:
            levels = flow_levels(with_fixed_shift(completed(self), mu), steps)
        boundary = self.config["boundary"]
        return levels if boundary is None else with_boundary(levels, boundary)

    def _lay(self, levels: np.ndarray, device: Any) -> None:
        self.num_inference_steps = len(levels)
        self.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float32, device=device)
        self.timesteps = self.sigmas[:-1] * self.config["num_train_timesteps"]
        self._step_index = None
        self._begin_index = None


def _translated(config: Mapping[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A source scheduler's config in the words of flow matching's Euler, all of it said."""
    source = for_class(ASFlowScheduler, config)
    changed = {**source, **changes, "invert_sigmas": False}  # turned round it is of no other kind
    remedy = "its samples are not flow matching's: use ASDDIMScheduler"
    kind = Levels.from_diffusers(changed, mu=1.0).kind  # any shift tells the kind
    check(kind == "flow", "config", f"of a {kind} scheduler", remedy)
    if source.pop("use_flow_sigmas", False):  # a solver's, which has DDPM's settings beside them
        source["shift"] = source.pop("flow_shift")
        source = {k: v for k, v in source.items() if "beta" not in k or k.startswith("use_")}
    return source
