"""`ASFlowScheduler`: Euler's method for flow-matching models on any grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.flow import check_sigmas, flow_levels, of_a_pipeline
from asddim_lib.grids.table import check_allocation
from asddim_lib.levels import Levels, completed, for_class, with_boundary, with_fixed_shift
from asddim_lib.schedulers import held, told

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

    `look_ahead`, −1 to 1, tells the network another time than the step's own: the one that lies
    this share of the step ahead in log σ, σ = s / (1 − s), or behind for a share below 0
    (`schedulers.told`). The last step counts as one to the lowest level. `timesteps` are then the
    told times; `sigmas`, and so the steps and `scale_noise`, are unchanged.

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
        look_ahead: float = 0.0,
    ) -> None:
        check_allocation(allocation, profile)
        told.check_look_ahead(look_ahead)
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
        return super().from_config(_translated(config, kwargs), return_unused_kwargs, **kwargs)

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
        missing `mu`, a number of steps that a held `grid` has not, or too few at a boundary; with
        `look_ahead` also for given `timesteps`, which tell the network other times already.
        """
        known = mu is not None or not self.config["use_dynamic_shifting"]
        remedy = "this scheduler's shift depends on the picture's size: a pipeline gives it"
        check(known, "mu", mu, remedy)
        own = self.lays and of_a_pipeline(sigmas, timesteps, self.config["num_train_timesteps"])
        ahead, inverted = self.config["look_ahead"], self.config["invert_sigmas"]
        remedy = "its levels are turned round: use no allocation, grid, boundary or look_ahead"
        check(not inverted or not (own or ahead), "invert_sigmas", inverted, remedy)
        if own:
            given = timesteps if sigmas is None else sigmas
            steps = num_inference_steps if given is None else len(given)
            check(steps is not None, "num_inference_steps", steps, "give a number of steps")
            self._lay(self._levels(int(steps or 0), mu), device)
        else:
            remedy = "the network is told these times already: give look_ahead=0, or an allocation"
            check(timesteps is None or ahead == 0, "timesteps", "given", remedy)
            if self.lays:
                log.warning(held.OVERRULED, type(self).__name__)
            super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        if ahead != 0:
            self.timesteps = self._told(mu).to(device=device)

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

    def _told(self, mu: float | None) -> Tensor:
        """What the network is told at each step (K)."""
        levels = self.sigmas[:-1].double().cpu().numpy()
        check_sigmas("sigmas", np.minimum(levels, 1.0))  # a shift may round 1 up
        ahead, boundary = self.config["look_ahead"], self.config["boundary"]
        return told.of_flow(levels, ahead, with_fixed_shift(completed(self), mu), boundary)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers'. Raises WrongUse for `per_token_timesteps` beside a `look_ahead`."""
        ahead, given = self.config["look_ahead"], per_token_timesteps is not None
        remedy = "they are taken for levels, and would be told times: give look_ahead=0"
        check(not given or ahead == 0, "per_token_timesteps", "given", remedy)
        churn = (s_churn, s_tmin, s_tmax, s_noise)
        rest = (generator, per_token_timesteps, return_dict)
        return super().step(model_output, timestep, sample, *churn, *rest)

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
    kind = Levels.from_diffusers(changed, mu=0.0).kind  # any shift tells the kind
    check(kind == "flow", "config", f"of a {kind} scheduler", remedy)
    if source.pop("use_flow_sigmas", False):  # a solver's, which has DDPM's settings beside them
        source["shift"] = source.pop("flow_shift")
        source = {k: v for k, v in source.items() if "beta" not in k or k.startswith("use_")}
    return source
