"""Where the last step of a grid ends: as its scheduler says, whatever class and setting."""

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib import (
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    UniPCGridScheduler,
    sigmas,
)
from asddim_lib.errors import WrongUse
from asddim_lib.levels import Levels
from asddim_lib.schedulers.place import drawing, set_grid

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
BY_ALPHA = [{"set_alpha_to_one": True}, {"set_alpha_to_one": False}]
BY_SIGMA = [{"final_sigmas_type": "zero"}, {"final_sigmas_type": "sigma_min"}]
CASES = [(kind, {**SD, **end}) for kind in (DDIMScheduler, ASDDIMScheduler) for end in BY_ALPHA]
for _kind in (
    EulerDiscreteScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverGridScheduler,
    UniPCMultistepScheduler,
    UniPCGridScheduler,
):
    CASES += [(_kind, {**SD, **end}) for end in BY_SIGMA]
for _kind in (
    DPMSolverMultistepScheduler,
    DPMSolverGridScheduler,
    UniPCMultistepScheduler,
    UniPCGridScheduler,
):
    CASES += [(_kind, {**FLOW, **end}) for end in BY_SIGMA]
CASES += [(EDMEulerScheduler, end) for end in BY_SIGMA]
CASES += [(EDMDPMSolverMultistepScheduler, end) for end in BY_SIGMA]
CASES += [(FlowMatchEulerDiscreteScheduler, {"shift": 3.0}), (ASFlowScheduler, {"shift": 3.0})]


def end_of(scheduler, grid):
    """Where the scheduler's last step on the grid ends, read from what it has set.

    Of a class that takes no grid, where its own last step ends.
    """
    try:
        set_grid(scheduler, grid)
    except WrongUse:
        scheduler.set_timesteps(len(grid) - 1)
    if hasattr(scheduler, "sigmas"):
        rests = scheduler.sigmas[-1] == scheduler.sigmas[-2]
        return grid[-2] if rests else min(grid[-2], float(scheduler.sigmas[-1]))
    bar = float(scheduler.final_alpha_cumprod)
    return ((1 - bar) / bar) ** 0.5


@pytest.mark.parametrize("allocation", ["trailing", "karras", "linspace"])
@pytest.mark.parametrize(("kind", "config"), CASES, ids=str)
def test_a_grid_s_last_step_ends_where_the_scheduler_s_does(kind, config, allocation):
    scheduler = kind(**config)
    grid = sigmas(scheduler, 5, allocation=allocation, shifted=True)
    assert len(grid) == 6
    levels = Levels.from_diffusers(scheduler)
    assert len(levels.to_timesteps(grid)) == 5  # its end is read as its end
    assert levels.grid_of(grid).tolist() == grid
    assert end_of(scheduler, grid) == pytest.approx(grid[-1], rel=1e-4)
    if kind not in (DDIMScheduler, EDMEulerScheduler, EDMDPMSolverMultistepScheduler):
        same = drawing(kind, scheduler)
        assert sigmas(same, 5, allocation=allocation, shifted=True) == grid
