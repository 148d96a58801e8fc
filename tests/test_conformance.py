"""What diffusers requires of a scheduler (its SchedulerCommonTest) and of DDIM, in uniform mode.

The numbers are those of diffusers' tests. Where the two agree by design, our results must equal
`DDIMScheduler`'s bit for bit. `test_conformance_config.py` has the part about configs.
"""

import inspect
import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from asddim_lib import ASDDIMScheduler
from tests.ddim import deterministic, make, model, reloaded, run, same, step

LINSPACE = {"timestep_spacing": "linspace"}  # diffusers leaves this grid: see the test below
#: Every setting that diffusers' tests of DDIM try, and their neighbours.
SETTINGS = [
    *({"num_train_timesteps": size} for size in (100, 500, 1000)),
    *({"steps_offset": offset} for offset in (0, 1)),
    *(
        {"beta_start": start, "beta_end": end}
        for start, end in ((0.0001, 0.002), (0.001, 0.02), (0.01, 0.2), (0.1, 2))
    ),
    *({"beta_schedule": name} for name in ("linear", "scaled_linear", "squaredcos_cap_v2")),
    *({"prediction_type": name} for name in ("epsilon", "sample", "v_prediction")),
    *({"clip_sample": clip} for clip in (True, False)),
    *({"timestep_spacing": spacing} for spacing in ("leading", "trailing", "linspace")),
    *({"rescale_betas_zero_snr": rescale} for rescale in (True, False)),
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"thresholding": False},
    *(
        {"thresholding": True, "prediction_type": name, "sample_max_value": limit}
        for name, limit in itertools.product(("epsilon", "v_prediction"), (0.5, 1.0, 2.0))
    ),
    {"set_alpha_to_one": False},
]


# Settings


def test_without_an_allocation_it_is_ddim():
    assert ASDDIMScheduler().config["allocation"] == "uniform"
    ours = inspect.signature(ASDDIMScheduler.__init__).parameters
    for name, theirs in inspect.signature(DDIMScheduler.__init__).parameters.items():
        assert ours[name].default == theirs.default, name


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_a_setting_survives_saving_and_steps_as_in_diffusers(changes, tmp_path):
    scheduler = make(**changes)
    ours, again = step(scheduler, 0), step(reloaded(scheduler, tmp_path), 0)
    same(ours.prev_sample, again.prev_sample)
    theirs = make(DDIMScheduler, **changes)
    same(ours.prev_sample, step(theirs, 0).prev_sample)
    same(scheduler.timesteps, theirs.timesteps)


@pytest.mark.parametrize("changes", [s for s in SETTINGS if s != LINSPACE], ids=str)
def test_a_whole_run_equals_diffusers(changes):
    # With beta_end = 2, ᾱ is −0 and diffusers divides 0 by 0 for a noise that η = 0 does not add.
    scheduler, theirs = make(**changes), run(make(DDIMScheduler, **changes))
    scheduler.strict = changes.get("beta_end") != 2  # there x̂₀ is infinite before it is clipped
    ours = run(scheduler)
    assert bool(theirs.isnan().any()) == (changes.get("beta_end") == 2)
    same(torch.where(theirs.isnan(), theirs, ours), theirs)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 50, 500, 1000])
def test_the_timesteps_are_diffusers_own(spacing, steps):
    grids = []
    for kind in (ASDDIMScheduler, DDIMScheduler):
        scheduler = make(kind, timestep_spacing=spacing)
        scheduler.set_timesteps(steps)
        grids.append(scheduler.timesteps)
    same(*grids)


def test_the_offset_moves_the_timesteps():
    scheduler = make(steps_offset=1)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [801, 601, 401, 201, 1]


@pytest.mark.parametrize(
    "how",
    [
        {"clip_sample": True, "clip_sample_range": 0.5},
        {"clip_sample": False, "thresholding": True, "sample_max_value": 0.8},
    ],
)
@pytest.mark.parametrize("clipped", [False, True])
def test_clipping_and_thresholding_equal_diffusers(how, clipped):
    x, t = 3 * deterministic() - 1, 375
    results = []
    for kind in (ASDDIMScheduler, DDIMScheduler):
        scheduler = make(kind, **how)
        scheduler.set_timesteps(8)
        noise = torch.ones_like(x)
        results.append(scheduler.step(model(x, t), t, x, 0.3, clipped, variance_noise=noise))
    assert not torch.equal(results[0].pred_original_sample, x)
    same(results[0].prev_sample, results[1].prev_sample)


# Steps


@pytest.mark.parametrize(
    ("t", "steps", "eta"),
    [
        *((t, 50, 0.0) for t in (1, 10, 49)),  # diffusers' time indices
        *((t, steps, 0.0) for t, steps in ((1, 10), (10, 50), (50, 500))),
        *((t, 50, eta) for t, eta in ((1, 0.0), (10, 0.5), (49, 1.0))),
    ],
)
def test_a_step_off_the_grid_is_eq_3_and_survives_saving(t, steps, eta, tmp_path):
    scheduler = make(clip_sample=False)
    ours = step(scheduler, t, steps, eta).prev_sample
    same(ours, step(reloaded(scheduler, tmp_path), t, steps, eta).prev_sample)
    below = [s for s in scheduler.timesteps.tolist() if s < t]
    bars = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64).sub(1).neg().cumprod(0)
    a, b = float(bars[t]), float(bars[below[0]]) if below else 1.0
    x = deterministic().double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
    clean = (x - (1 - a) ** 0.5 * 0.1 * x) / a**0.5
    exact = b**0.5 * clean + (1 - b - sigma**2) ** 0.5 * 0.1 * x + sigma * noise
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [0, 1, 10, 49, 500])
def test_a_step_off_the_grid_leads_to_the_next_smaller_point(t):
    scheduler = make(timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = deterministic()
    output = scheduler.step(model(x, t), t, x).prev_sample
    below = [s for s in scheduler.timesteps.tolist() if s < t]
    reference = make()
    reference.set_timesteps(timesteps=[t, below[0]] if below else [t])
    same(output, reference.step(model(x, t), t, x).prev_sample)


@pytest.mark.parametrize("eta", [0.25, 1.0])
def test_ddpm_s_noise_equals_diffusers(eta):
    same(
        step(make(), 500, eta=eta).prev_sample,
        step(make(DDIMScheduler), 500, eta=eta).prev_sample,
    )


@pytest.mark.parametrize(
    ("t", "previous", "variance"),
    [
        (0, 0, 0.0),
        (420, 400, 0.14771),
        (980, 960, 0.32460),
        (487, 486, 0.00979),
        (999, 998, 0.02),
    ],
)
def test_the_variance(t, previous, variance):
    assert float(make()._get_variance(t, previous)) == pytest.approx(variance, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "start", "total", "mean"),
    [
        ({}, 0, 172.0067, 0.223967),
        ({"prediction_type": "v_prediction"}, 0, 52.5302, 0.0684),
        ({"set_alpha_to_one": True, "beta_start": 0.01}, 0, 149.8295, 0.1951),
        ({"set_alpha_to_one": False, "beta_start": 0.01}, 0, 149.0784, 0.1941),
        ({}, 8, 354.5418, 0.4616),
    ],
)
def test_a_full_run_has_diffusers_sums(changes, start, total, mean):
    output = run(make(**changes), start=start).abs()
    assert float(output.sum()) == pytest.approx(total, abs=1e-2)
    assert float(output.mean()) == pytest.approx(mean, abs=1e-3)


def test_steps_keep_the_shape():
    outputs = [step(make(), t).prev_sample for t in (980, 960)]
    assert outputs[0].shape == outputs[1].shape == deterministic().shape


def test_outputs_as_tuple_and_dict_agree():
    for eta in (0.0, 1.0):
        named = step(make(), 980, eta=eta)
        plain = step(make(), 980, eta=eta, return_dict=False)
        assert isinstance(plain, tuple)
        assert list(named) == ["prev_sample", "pred_original_sample"]
        for a, b in zip(named.values(), plain, strict=True):
            same(a, b)


def test_linspace_where_diffusers_is_wrong():
    """diffusers' DDIM goes back by T // K, and so leaves this grid; DPM-Solver-1 stays on it."""
    scheduler = make(timestep_spacing="linspace", clip_sample=False)
    scheduler.set_timesteps(7)
    x, t = deterministic().double(), scheduler.timesteps
    options = {"solver_order": 1, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
    exact = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, **options)
    exact.set_timesteps(timesteps=t.tolist())
    ours = scheduler.step(model(x, t[2]), t[2], x).prev_sample
    exact._step_index = 2
    theirs = exact.step(model(x, t[2]), t[2], x).prev_sample
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
