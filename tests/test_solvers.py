"""One grid for any solver: each lands on it, and follows the exact path of a Gaussian."""

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib import (
    ASDDIMScheduler,
    Profile,
    UniPCGridScheduler,
    load_pipeline,
    sigmas,
    timesteps,
)
from asddim_lib.levels import fingerprint, noise_schedule
from asddim_lib.schedulers.solvers import SOLVERS
from experiments.mixtures import GaussianMixture
from experiments.pictures import draw
from tests.refusals import refuses

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = noise_schedule(SD)
BARS = SCHEDULE.alphas_cumprod
PROFILE = Profile(
    timesteps=[900, 500, 50],
    g=[1.0, 1.5, 4.0],
    stderr=[0.1] * 3,
    norm="frobenius",
    estimator="vjp",
    probes=1,
    samples=4,
    seed=0,
    guidance_scale=7.5,
    model="test",
    schedule=fingerprint(SCHEDULE),
    evaluations=100,
)
GRIDS = [
    {"allocation": "noise"},
    {"allocation": "combined", "profile": PROFILE},
    {"allocation": "ays-sd15"},
]
DATA = GaussianMixture(torch.zeros(1, 4), 0.6)
ZERO = {"final_sigmas_type": "zero"}
LAST = {"final_sigmas_type": "sigma_min", "lower_order_final": True}
#: How each solver takes a grid, and its largest error after 40 steps, in the data's deviations.
CASES = [
    (ASDDIMScheduler, {"clip_sample": False}, "timesteps", 0.08),
    (EulerDiscreteScheduler, {}, "timesteps", 0.08),
    (EulerDiscreteScheduler, {}, "sigmas", 0.08),
    (HeunDiscreteScheduler, {}, "timesteps", 0.05),
    (DPMSolverMultistepScheduler, ZERO, "timesteps", 0.03),
    (DPMSolverSinglestepScheduler, LAST, "timesteps", 0.05),
    (UniPCGridScheduler, ZERO, "timesteps", 0.03),
]


def solve(solver, x):
    """The end of the solver's path from noise x, by the exact network, and the times it asked."""
    x, asked = x * solver.init_noise_sigma, []
    for t in solver.timesteps:
        asked.append(float(t))
        # Given sigmas may name a time between two timesteps.
        bar = float(np.exp(np.interp(float(t), np.arange(1000), np.log(BARS))))
        x = solver.step(DATA.eps(solver.scale_model_input(x, t), bar).to(x), t, x).prev_sample
    return x, asked


@pytest.mark.parametrize(
    ("kind", "options", "takes", "tolerance"),
    CASES,
    ids=lambda v: getattr(v, "__name__", v if isinstance(v, str) else ""),
)
@pytest.mark.parametrize("how", GRIDS, ids=lambda how: how["allocation"])
def test_a_solver_lands_on_the_grid_and_near_the_exact_end(kind, options, takes, tolerance, how):
    solver, steps = kind(**SD, **options), 40
    grid = timesteps(solver, steps, **how)
    if takes == "timesteps":
        solver.set_timesteps(timesteps=grid)
    else:
        solver.set_timesteps(sigmas=sigmas(solver, steps, **how))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end, asked = solve(solver, x)
    assert sorted({round(t) for t in asked}, reverse=True) == grid
    error = (end.double() - DATA.solve(x, float(BARS[-1]), 1.0)).square().mean().sqrt() / 0.6
    assert error < tolerance


def test_euler_is_ddim():
    pipe, ends = load_pipeline(), {}
    config = {**pipe.scheduler.config, "set_alpha_to_one": True}  # Euler's path ends at clean data
    grid = timesteps(config, 6, allocation="noise")
    prompts = ["a red boot on a white ground", "two blue bags on a tan ground"]
    for name in ("ddim", "euler"):
        pipe.scheduler = SOLVERS[name][0].from_config(config)
        ends[name] = draw(pipe, prompts, [0, 1], guidance_scale=5.0, timesteps=grid).latents
    torch.testing.assert_close(ends["euler"], ends["ddim"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"final_sigmas_type": "sigma_min"},
        {"rescale_betas_zero_snr": True},
        {"prediction_type": "v_prediction"},
    ],
)
def test_unipc_on_its_own_grid_is_diffusers_own(config):
    kinds = (UniPCGridScheduler, UniPCMultistepScheduler)
    ours, theirs = (kind(**SD, timestep_spacing="linspace", **config) for kind in kinds)
    x = y = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(2):  # nothing of the first run is left in the second
        theirs.set_timesteps(9)
        ours.set_timesteps(timesteps=theirs.timesteps.tolist())
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=1e-4)
        for t in theirs.timesteps:
            x = ours.step(torch.sin(x), t, x).prev_sample
            y = theirs.step(torch.sin(y), t, y).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


# Forms of a grid

OURS = [ASDDIMScheduler, UniPCGridScheduler]
GRID = [120, 96, 8, 0]  # exact in every type below
ARRAYS = [np.array(GRID, kind) for kind in (np.uint8, np.int16, np.int32, np.int64, np.float64)]
TENSORS = [
    torch.tensor(GRID, dtype=dtype)
    for dtype in (
        torch.int8,
        torch.uint8,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
]
FORMS = [GRID, tuple(GRID), [float(t) for t in GRID], [np.int64(t) for t in GRID]]
FORMS += [[torch.tensor(t) for t in GRID], np.array(GRID[::-1])[::-1]]
FORMS += [torch.tensor(GRID, dtype=torch.float32, requires_grad=True)]


def describe(form):
    first = getattr(form[0], "dtype", type(form[0]).__name__)
    return f"{type(form).__name__} of {getattr(form, 'dtype', first)}"


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("form", [*FORMS, *ARRAYS, *TENSORS], ids=describe)
def test_a_grid_comes_as_a_list_an_array_or_a_tensor(kind, form):
    scheduler, expected = kind(**SD), kind(**SD)
    scheduler.set_timesteps(timesteps=form)
    expected.set_timesteps(timesteps=GRID)
    assert scheduler.timesteps.tolist() == GRID
    assert scheduler.timesteps.dtype == torch.int64
    assert scheduler.num_inference_steps == 4
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    ends = [s.step(x, s.timesteps[0], x).prev_sample for s in (scheduler, expected)]
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", OURS)
def test_a_range_is_a_grid(kind):
    scheduler = kind(**SD)
    scheduler.set_timesteps(timesteps=range(900, -1, -300))
    assert scheduler.timesteps.tolist() == [900, 600, 300, 0]


WRONG = [[5, 5], [1, 2], [1000], [3, -1], [], [5.5, 2], [float("nan")], [float("inf"), 3]]
WRONG += [np.array([5, 5]), torch.tensor([1, 2]), torch.tensor([5.5, 2.0]), np.array([[5, 3]])]
WRONG += [torch.tensor([]), torch.tensor(5), np.array(5), "5, 3", ["5", "3"], [True, False], [None]]
WRONG += [[[5, 3], [2]], np.array([5, 3], complex), torch.tensor([True, False])]


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_what_is_no_grid_is_refused(kind, wrong):
    with refuses("timesteps"):
        kind(**SD).set_timesteps(timesteps=wrong)


def test_unipc_refuses_timesteps_for_flow_matching():
    with refuses("timesteps"):
        UniPCGridScheduler(use_flow_sigmas=True).set_timesteps(timesteps=[5, 3])


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_a_pipeline_takes_timesteps(kind, form):
    pipe, asked = load_pipeline(), []
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    grid = timesteps(pipe.scheduler, 6, allocation="noise")
    pipe.unet.register_forward_pre_hook(lambda network, args: asked.append(int(args[1])))
    pipe("a red boot on a white ground", timesteps=form(grid), output_type="latent")
    assert asked == grid
