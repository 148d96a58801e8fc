"""`DPMSolverGridScheduler` against diffusers' own, to the bit, and its order on flow's grids."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import DPMSolverGridScheduler, UniPCGridScheduler
from asddim_lib.errors import WrongUse
from asddim_lib.schedulers.place import set_grid
from asddim_lib.schedulers.solvers import FLOW_SOLVERS, SOLVERS

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
KINDS = (DPMSolverGridScheduler, DPMSolverMultistepScheduler)
#: Settings that change the method, on any grid.
METHODS = [
    {},
    {"solver_order": 1},
    {"solver_order": 3},
    {"solver_type": "heun"},
    {"algorithm_type": "sde-dpmsolver++"},
    {"final_sigmas_type": "sigma_min"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    {"lower_order_final": False},
    {"euler_at_final": True},
    {"thresholding": True},
    {"trained_betas": [0.01] * 1000},
]
#: Settings that change the grid as well, where none is given.
GRIDS = [
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
    {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    {**FLOW, "flow_shift": 3.0},
]


def shown(value):
    """A short name of a case."""
    return str(value)[:50]


def run(scheduler, seed=0):
    """All that a run gives: its levels, its times, and every sample."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 4, 4, generator=generator)
    noisy = scheduler.add_noise(x, x + 1, scheduler.timesteps[-1:].repeat(2))
    found = [scheduler.sigmas, scheduler.timesteps, noisy]
    for step, t in enumerate(scheduler.timesteps):
        how = {"generator": generator, "return_dict": step % 2 == 0}
        x = scheduler.step(torch.sin(x + step), t, x, **how)[0]
        found.append(x)
    return found


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def built(config, **set_to):
    made = []
    for kind in KINDS:
        scheduler = kind(**{**SD, **config})
        for _ in range(2):  # nothing of the first run is left in the second
            scheduler.set_timesteps(**set_to)
            found = run(scheduler)
        made.append(found)
    return made


@pytest.mark.parametrize("config", [*METHODS, *GRIDS], ids=shown)
@pytest.mark.parametrize("steps", [2, 9, 16])
def test_without_a_grid_it_is_diffusers_own_to_the_bit(config, steps):
    same(*built(config, num_inference_steps=steps))


@settings(max_examples=10)
@pytest.mark.parametrize("config", METHODS, ids=shown)
@given(
    grid=st.lists(st.integers(1, 999), min_size=1, max_size=17, unique=True),
    top=st.booleans(),
)
def test_given_timesteps_are_laid_as_diffusers_lays_them_to_the_bit(config, grid, top):
    grid = sorted({*grid, 999} if top else grid, reverse=True)
    same(*built(config, timesteps=grid))


def test_a_held_grid_is_what_diffusers_makes_of_the_same_timesteps():
    grid = [981, 650, 300, 120, 9]
    ours, theirs = KINDS[0](**SD, grid=grid), KINDS[1](**SD)
    ours.set_timesteps(5)
    theirs.set_timesteps(timesteps=grid)
    same(run(ours), run(theirs))


def test_it_has_diffusers_defaults_and_its_interface():
    ours, theirs = (inspect.signature(kind.__init__).parameters for kind in KINDS)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    known = [list(inspect.signature(kind.step).parameters) for kind in KINDS]
    assert known[0] == known[1]  # the same places, for calls without names
    ends = []
    for kind in KINDS:
        scheduler = kind(**FLOW, use_dynamic_shifting=True)
        scheduler.set_timesteps(5, mu=1.15)
        ends.append(run(scheduler))
    same(*ends)


@pytest.mark.parametrize("flag", ["use_karras_sigmas", "use_beta_sigmas", "use_lu_lambdas"])
def test_a_grid_stands_where_diffusers_refuses_it(flag):
    grid = [981, 650, 300, 9]
    with pytest.raises(ValueError, match=flag):
        KINDS[1](**SD, **{flag: True}).set_timesteps(timesteps=grid)
    ours, plain = KINDS[0](**SD, **{flag: True}), KINDS[0](**SD)
    for scheduler in (ours, plain):
        scheduler.set_timesteps(timesteps=grid)
    same(run(ours), run(plain))


@pytest.mark.parametrize("how", [{"solver_type": "heun"}, {"solver_order": 3}], ids=shown)
def test_a_last_step_of_no_length_changes_nothing(how):
    config = {**SD, **how, "final_sigmas_type": "sigma_min", "lower_order_final": False}
    ends = []
    for kind in KINDS:
        scheduler = kind(**config)
        scheduler.set_timesteps(timesteps=[900, 600, 300, 100, 0])
        ends.append(run(scheduler))
    assert torch.isnan(ends[1][-1]).any()  # 0 divided by 0
    same(ends[0][:-1], ends[1][:-1])
    same([ends[0][-1]], [ends[0][-2]])


# flow matching


def velocity(x, s, mean, deviation):
    """Flow matching's exact network for normal data, at the share of noise s."""
    spread = ((1 - s) * deviation) ** 2 + s**2
    growth = (s - (1 - s) * deviation**2) / spread
    return -mean + growth * (x - (1 - s) * mean)


MEAN, DEVIATION = 0.7, 1.5
NOISE = torch.linspace(-2, 2, 9).reshape(1, 1, 3, 3)


def exact(s):
    """Where the path of the noise is at s."""
    return (1 - s) * MEAN + (((1 - s) * DEVIATION) ** 2 + s**2) ** 0.5 * NOISE


def error(scheduler, steps):
    """The greatest distance from the exact path after so many steps from its first level."""
    x = exact(float(scheduler.sigmas[0]))
    for t in scheduler.timesteps[:steps]:
        told = float(t) / 1000
        x = scheduler.step(velocity(x, told, MEAN, DEVIATION), t, x).prev_sample
    return float((x - exact(float(scheduler.sigmas[steps]))).abs().max())


def order(levels, counts, to_zero, **changes):
    """The powers of the number of steps by which the error falls, on grids `levels(steps)`."""
    errors = []
    for steps in counts:
        scheduler = DPMSolverGridScheduler(**FLOW, **changes)
        set_grid(scheduler, levels(steps).tolist())
        errors.append(error(scheduler, len(scheduler.timesteps) - (not to_zero)))
    return np.log2(np.array(errors[:-1]) / errors[1:])


def even_in_log(steps):
    ratios = np.geomspace(9, 1 / 9, steps + 1)
    return ratios / (1 + ratios)


WITHIN = {
    "even": lambda steps: np.linspace(0.9, 0.1, steps + 1),
    "even in log σ": even_in_log,
    "warped": lambda steps: 0.1 + 0.8 * np.linspace(1, 0, steps + 1) ** 1.7,
    "other way": lambda steps: 0.9 - 0.8 * np.linspace(0, 1, steps + 1) ** 1.7,
}


@pytest.mark.parametrize("name", WITHIN)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_it_is_of_second_order_on_any_flow_grid(name, shift):
    assert order(WITHIN[name], (32, 64, 128), False, flow_shift=shift).min() > 1.75
    first = order(WITHIN[name], (32, 64), False, flow_shift=shift, solver_order=1)
    assert first.max() < 1.3  # so this test can fail


@pytest.mark.parametrize(("power", "shift"), [(1.0, 1.0), (2.0, 1.0), (1.5, 3.0)])
def test_so_it_is_from_pure_noise_to_data_but_for_a_logarithm(power, shift):
    """Near pure noise the steps are of no small length in λ: the error falls as log(K)/K²."""

    def whole(steps):
        return np.linspace(1, 0, steps + 1)[:-1] ** power

    slopes = order(whole, (64, 128, 256), True, flow_shift=shift)
    assert slopes.min() > 1.7
    assert order(whole, (128, 256), True, flow_shift=shift, solver_order=1).max() < 1.2


def test_times_that_are_cut_to_whole_numbers_would_cost_the_order():
    """So diffusers tells them; ours tells each level itself."""
    errors = []
    for steps in (32, 128):
        scheduler = DPMSolverGridScheduler(**FLOW)
        set_grid(scheduler, WITHIN["even"](steps).tolist())
        scheduler.timesteps = scheduler.timesteps.floor()
        errors.append(error(scheduler, steps))
    assert errors[1] > errors[0]


@pytest.mark.parametrize("changes", [{}, {"solver_type": "heun"}, {"solver_order": 3}], ids=shown)
@pytest.mark.parametrize("grid", [[1.0], [1.0, 0.5], [1.0, 0.9999999, 0.5, 0.001], [1.0, 0.6, 0.2]])
def test_pure_noise_is_a_level_as_any_other(changes, grid):
    scheduler = DPMSolverGridScheduler(**FLOW, **changes, grid=grid)
    scheduler.set_timesteps(len(grid))
    assert all(torch.isfinite(x).all() for x in run(scheduler))
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("kind", [DPMSolverGridScheduler, UniPCGridScheduler])
def test_a_step_of_no_length_returns_as_any_other(kind):
    """Also where its caller names no argument, as diffusers allows."""
    scheduler = kind(**SD, final_sigmas_type="sigma_min", grid=[900, 0])
    scheduler.set_timesteps(2)
    between = [None, None] if kind is DPMSolverGridScheduler else []
    x = torch.ones(1, 3, 4, 4)
    for t in scheduler.timesteps:
        (x,) = scheduler.step(torch.sin(x), t, x, *between, False)
    assert x.isfinite().all()


def test_only_flow_s_is_ours():
    assert SOLVERS["dpm++"][0] is DPMSolverMultistepScheduler  # which the records were drawn with
    assert FLOW_SOLVERS["dpm++"] == (DPMSolverGridScheduler, 2)


@pytest.mark.parametrize(
    ("config", "how", "words"),
    [
        (FLOW, {"timesteps": [5, 3]}, "timesteps"),
        (FLOW, {"sigmas": [0.5, 0.9]}, "sigmas"),
        ({}, {"sigmas": [0.5, 0.9]}, "sigmas"),
        ({}, {"timesteps": [3, 5]}, "timesteps"),
        ({}, {"num_inference_steps": 2, "timesteps": [5, 3]}, "num_inference_steps"),
        ({**FLOW, "use_dynamic_shifting": True}, {"sigmas": [0.9]}, "mu"),
    ],
    ids=shown,
)
def test_a_wrong_call_is_one_line(config, how, words):
    with pytest.raises(WrongUse) as caught:
        DPMSolverGridScheduler(**config).set_timesteps(**how)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
