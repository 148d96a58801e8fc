"""A plan leaves the solver alone: it changes what arrives at `step`, and nothing of a scheduler."""

from types import SimpleNamespace

import diffusers
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import schedulers
from asddim_lib.configs import is_flow
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.schedulers.place import with_grid
from tests import switch

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SCHEDULERS = {
    "DDIM": diffusers.DDIMScheduler,
    "Euler": diffusers.EulerDiscreteScheduler,
    "2M": diffusers.DPMSolverMultistepScheduler,
    "UniPC": diffusers.UniPCMultistepScheduler,
    "UniPC of a flow model": lambda: diffusers.UniPCMultistepScheduler(**FLOW),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "our DDIM": lambda: schedulers.ASDDIMScheduler(allocation="logsnr"),
    "our 2M": lambda: schedulers.DPMSolverGridScheduler(allocation="logsnr"),
    "our UniPC": lambda: schedulers.UniPCGridScheduler(allocation="karras"),
    "our flow": lambda: schedulers.ASFlowScheduler(allocation="beta"),
    "our grid": lambda: with_grid(diffusers.DDIMScheduler(), [999, 700, 400, 200, 50]),
}
plans = st.builds(
    GuidancePlan,
    bands=st.none() | st.just(((5.42, 1.0), (0.28, None), (0.0, 1.0))),
    ramp=st.sampled_from([None, "linear", "cosine"]),
    c=st.none() | st.floats(0.1, 2),
    gate=st.none() | st.floats(-1, 1),
    zero_steps=st.integers(0, 2),
)


class Network(torch.nn.Module):
    """Its rows with the prompt, the second half, differ; it notes the state of the scheduler."""

    config = SimpleNamespace()

    def __init__(self, pipe):
        super().__init__()
        self.note = lambda: pipe.states.append(state(pipe.scheduler))

    def forward(self, sample, prompts):
        self.note()
        return (0.5 * sample.roll(1, -1) + prompts.reshape(-1, 1, 1, 1),)


class Pipe:
    """The loop of a pipeline with classifier-free guidance."""

    def __init__(self, scheduler):
        self.scheduler, self.states, self._guidance_scale = scheduler, [], 4.0
        self.unet = Network(self)

    def __call__(self, steps):
        self.states.clear()
        self.scheduler.set_timesteps(steps)
        sample = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        prompts = torch.tensor([0.0, 0.0, 0.3, 0.7])
        for t in self.scheduler.timesteps:
            u, c = self.unet(torch.cat([sample, sample]), prompts=prompts)[0].chunk(2)
            sample = self.scheduler.step(u + 4.0 * (c - u), t, sample).prev_sample
        return [*self.states, state(self.scheduler)]


def state(scheduler):
    """What a scheduler is and holds, but for samples and predictions: those have dimensions."""
    found = {"name": type(scheduler).__name__, "config": dict(scheduler.config)}
    for name, value in vars(scheduler).items():
        if torch.is_tensor(value) and value.ndim < 2:
            found[name] = str(value.tolist())  # equal to itself, though NaN
        elif value is None or isinstance(value, (bool, int, float, str)):
            found[name] = value
    return found


@pytest.mark.parametrize("name", SCHEDULERS)
@settings(deadline=None, max_examples=5)
@given(plan=plans, steps=st.integers(1, 6))
def test_before_within_and_after_a_run_the_scheduler_is_as_without_a_plan(name, plan, steps):
    own = SCHEDULERS[name]()
    plan = plan if is_flow(own) else GuidancePlan(**{**vars(plan), "zero_steps": 0})
    kind, pipe, before = type(own), Pipe(own), state(own)
    alone = Pipe(SCHEDULERS[name]())
    first, second, third = (alone(steps) for _ in range(3))  # which may keep something of the last
    with plan.on(pipe):
        assert state(pipe.scheduler) == before
        assert isinstance(pipe.scheduler, kind)
        assert pipe(steps) == first
        assert pipe(steps) == second
    assert pipe.scheduler is own
    assert type(own) is kind
    assert state(own) == second[-1]
    assert pipe(steps) == third


def test_the_record_of_first_order_has_each_cell_that_its_command_draws():
    """By that record a plan leaves the solver alone."""
    columns = ["model", "scale", "plan", "solver", "steps"]
    found = sorted(pd.read_csv(switch.FILE)[columns].itertuples(index=False, name=None))
    models = switch.MODELS.items()
    assert found == sorted((name, *one) for name, (_, s, _) in models for one in switch.cells(s))
