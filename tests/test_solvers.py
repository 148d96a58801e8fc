"""The same grid for solvers that are not ours: each lands on it, and on a Gaussian each goes where the exact path goes."""

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

from asddim_lib import SensitivityProfile, load_pipeline, sigmas, timesteps
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.evidence.profile import fingerprint
from asddim_lib.experiment import setting as design
from asddim_lib.experiment.store import draw
from asddim_lib.schedulers.unipc import UniPCGridScheduler
from asddim_lib.testing.mixtures import GaussianMixture

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = NoiseSchedule.from_config(SD)
BARS = SCHEDULE.alphas_cumprod
PROFILE = SensitivityProfile(
    [900, 500, 50],
    [1.0, 1.5, 4.0],
    [0.1] * 3,
    "frobenius",
    "vjp",
    1,
    4,
    0,
    7.5,
    "test",
    fingerprint(SCHEDULE),
    100,
)
GRIDS = [
    {"allocation": "noise"},
    {"allocation": "combined", "profile": PROFILE},
    {"allocation": "ays-sd15"},
]
DATA = GaussianMixture(torch.zeros(1, 4), 0.6)
#: How each solver takes a grid, and how far from the exact end it may be after 40 steps, in units of the data's spread.
SOLVERS = [
    (EulerDiscreteScheduler, {}, "timesteps", 0.08),
    (EulerDiscreteScheduler, {}, "sigmas", 0.08),
    (HeunDiscreteScheduler, {}, "timesteps", 0.05),
    (DPMSolverMultistepScheduler, {"final_sigmas_type": "zero"}, "timesteps", 0.03),
    (
        DPMSolverSinglestepScheduler,
        {"final_sigmas_type": "sigma_min", "lower_order_final": True},
        "timesteps",
        0.05,
    ),
    (UniPCGridScheduler, {"final_sigmas_type": "zero"}, "timesteps", 0.03),
]


def run(solver, x):
    """Draws from noise x, asking the exact network at the times that the solver names, and returns the end and those times."""
    x, asked = x * solver.init_noise_sigma, []
    for t in solver.timesteps:
        at = float(t)
        asked.append(at)
        bar = float(
            np.exp(np.interp(at, np.arange(1000), np.log(BARS)))
        )  # sigmas between timesteps name a time between them
        x = solver.step(DATA.eps(solver.scale_model_input(x, t), bar).to(x), t, x).prev_sample
    return x, asked


@pytest.mark.parametrize(
    ("kind", "options", "takes", "close"),
    SOLVERS,
    ids=lambda v: getattr(v, "__name__", v if isinstance(v, str) else ""),
)
@pytest.mark.parametrize("how", GRIDS, ids=lambda how: how["allocation"])
def test_a_solver_lands_on_the_grid_and_near_the_exact_end(kind, options, takes, close, how):
    solver, steps = kind(**SD, **options), 40
    grid = timesteps(solver, steps, **how)
    if takes == "timesteps":
        solver.set_timesteps(timesteps=grid)
    else:
        solver.set_timesteps(sigmas=sigmas(solver, steps, **how))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end, asked = run(solver, x)
    landed = sorted({round(t) for t in asked}, reverse=True)
    assert landed == grid
    error = (end.double() - DATA.solve(x, float(BARS[-1]), 1.0)).square().mean().sqrt() / 0.6
    assert error < close


def test_the_runner_s_euler_is_ddim():
    pipe, ends = load_pipeline(), {}
    config = {**pipe.scheduler.config, "set_alpha_to_one": True}  # Euler's goes on to clean data
    grid = timesteps(config, 6, allocation="noise")
    for name in ("ddim", "euler"):
        pipe.scheduler = design.SOLVERS[name][0].from_config(config)
        made = draw(
            pipe,
            ["a red boot on a white ground", "two blue bags on a tan ground"],
            [0, 1],
            guidance_scale=5.0,
            timesteps=grid,
        )
        ends[name] = made.latents
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
    ours, theirs = (
        kind(**SD, timestep_spacing="linspace", **config)
        for kind in (UniPCGridScheduler, UniPCMultistepScheduler)
    )
    x = y = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(2):  # the second run remembers nothing of the first
        theirs.set_timesteps(9)
        ours.set_timesteps(timesteps=theirs.timesteps.tolist())
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=1e-4)
        for t in theirs.timesteps:
            x, y = (
                ours.step(torch.sin(x), t, x).prev_sample,
                theirs.step(torch.sin(y), t, y).prev_sample,
            )
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrong", [[5, 5], [1, 2], [1000], [3, -1], [], [5.5, 2]])
def test_unipc_refuses_what_is_no_grid(wrong):
    with pytest.raises(ValueError, match="timesteps"):
        UniPCGridScheduler(**SD).set_timesteps(timesteps=wrong)
    with pytest.raises(ValueError, match="use_flow_sigmas"):
        UniPCGridScheduler(use_flow_sigmas=True).set_timesteps(timesteps=[5, 3])


def test_a_pipeline_takes_timesteps_for_unipc(tmp_path):
    pipe = load_pipeline()
    pipe.scheduler = UniPCGridScheduler.from_config(pipe.scheduler.config)
    grid, seen = timesteps(pipe.scheduler, 6, allocation="noise"), []
    pipe.unet.register_forward_pre_hook(lambda network, args: seen.append(int(args[1])))
    pipe("a red boot on a white ground", timesteps=grid, output_type="latent")
    assert seen == grid
