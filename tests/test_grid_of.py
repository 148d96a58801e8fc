"""A grid that somebody gives, in the numbers of any program, becomes one array of sigmas."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import AysSchedules

from asddim_lib.errors import WrongUse
from asddim_lib.levels import LARGEST_SIGMA, Levels, check_timesteps, share_of, sigma_of
from tests.refusals import refuses

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP = Levels.from_diffusers(DDIMScheduler(**SD))
FLOW = Levels.from_diffusers(FlowMatchEulerDiscreteScheduler(shift=3.0))
EDM = Levels.from_diffusers(EDMEulerScheduler())
PRINTED = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113, 0.0]
FORMS = [list, tuple, np.array, torch.tensor]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [10, 11])
def test_sigmas_as_the_page_of_diffusers_prints_them(form, count):
    assert AysSchedules["StableDiffusionXLSigmas"][:2] == PRINTED[:2]
    grid = VP.grid_of(form(PRINTED[:count]))
    assert grid.dtype == np.float64
    np.testing.assert_allclose(grid, PRINTED, rtol=1e-6)
    theirs = EulerDiscreteScheduler(**SD)
    theirs.set_timesteps(sigmas=PRINTED)
    np.testing.assert_allclose(grid, theirs.sigmas, rtol=1e-6)
    np.testing.assert_allclose(VP.timesteps_at(grid[:-1]), theirs.timesteps, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_whole_numbers_are_timesteps(form):
    for values in ([999, 500, 0], [999.0, 500.0, 0.0]):
        np.testing.assert_array_equal(VP.grid_of(form(values))[:-1], VP.sigmas[[999, 500, 0]])
    for levels, table in ((FLOW, FLOW.shares), (EDM, EDM.sigmas)):
        grid = levels.grid_of(form([999, 5]))
        np.testing.assert_allclose(grid[:-1], table[[999, 5]], rtol=1e-12)
    stops = Levels.from_diffusers(DDIMScheduler(**SD, set_alpha_to_one=False))
    assert stops.grid_of([999, 0]).tolist() == stops.sigmas[[999, 0, 0]].tolist()
    assert stops.grid_of([1.0, 0.5]).tolist() == [1.0, 0.5, stops.sigmas[0]]
    assert stops.grid_of([1.0, 0.5, 0.0]).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("end", [[], [0.0]])
def test_a_flow_model_s_sigmas_are_those_after_its_shift(end):
    grid = FLOW.grid_of([1.0, 0.9, 0.3, *end])
    assert grid.tolist() == [1.0, 0.9, 0.3, 0.0]


def test_an_edm_model_takes_any_sigma():
    np.testing.assert_array_equal(EDM.grid_of([100.0, 80.0, 1.0]), [100.0, 80.0, 1.0, 0.0])


WRONG = [
    [],
    [[1.0, 0.5]],
    [[1.0], [0.5, 0.2]],
    [1.0, float("nan")],
    [float("inf"), 0.5],
    [0.5, 1.0],
    [1.0, 1.0, 0.0],
    [0.7, 0.7 - 1e-9],  # one number in float32
    [0.7, -0.1],
    [0.7, 0.0, 0.0],
    [0.7, 0.0, 0.1],
    ["a", "b"],
    "0.7",
    None,
    {"a": 1},
    [True, False],
    [700.5, 0.1],
    [1000, 0],
    [5, -1],
    [5, 5],
]


@pytest.mark.parametrize("values", WRONG, ids=str)
@pytest.mark.parametrize("levels", [VP, FLOW], ids=["vp", "flow"])
def test_what_is_no_grid_is_refused_in_one_line(levels, values):
    with refuses("nodes") as caught:
        levels.grid_of(values, "nodes")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [*WRONG[:6], *WRONG[-3:], [7.5, 1]], ids=str)
def test_wrong_timesteps_are_refused_in_one_line(values):
    with refuses("timesteps"):
        check_timesteps(values, 1000)


def test_shares_and_sigmas_are_each_other_s_inverse():
    share = np.linspace(1e-4, 1, 50)
    np.testing.assert_allclose(share_of(sigma_of(share)), share, rtol=1e-12)
    assert sigma_of(np.array(1.0)) == np.inf
    np.testing.assert_allclose(FLOW.unshifted(FLOW.shifted(share)), share)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas.flip(0)
    np.testing.assert_allclose(FLOW.shares, theirs, rtol=1e-6)
    assert FLOW.finite_sigmas.max() == LARGEST_SIGMA < 4096


@pytest.mark.parametrize("size", [10, 1000])
def test_no_shift_makes_more_noise_than_pure_noise(size):
    """Rounded, a shifted 1 may exceed 1, and σ would be negative."""
    for shift in np.linspace(0.1, 12, 300):
        config = {"shift": float(shift), "num_train_timesteps": size}
        levels = Levels.from_diffusers(FlowMatchEulerDiscreteScheduler(**config))
        assert (np.diff([0.0, *levels.sigmas]) > 0).all()
        times = list(range(size))[::-1]
        assert levels.to_timesteps(levels.sigmas_at(times)) == times


def test_timesteps_of_more_noise_than_float32_tells_apart_come_back():
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    levels = Levels.from_diffusers(DDIMScheduler(**config))
    assert levels.sigmas[-2] > LARGEST_SIGMA
    times = list(range(1000))[::-1]
    assert levels.to_timesteps(levels.sigmas_at(times)) == times


FLOWS = [
    (FlowMatchEulerDiscreteScheduler, "shift", {}),
    (diffusers.FlowMatchHeunDiscreteScheduler, "shift", {}),
    (UniPCMultistepScheduler, "flow_shift", {"use_flow_sigmas": True}),
]


@pytest.mark.parametrize("shift", ["3", 0, -1.0, None, True, float("nan"), float("inf"), [3]])
@pytest.mark.parametrize(("kind", "name", "more"), FLOWS, ids=lambda v: str(v)[:30])
def test_a_shift_that_is_none_is_named(kind, name, more, shift):
    config = {"_class_name": kind.__name__, name: shift, **more}
    with pytest.raises(WrongUse, match=rf"^{name} is "):
        Levels.from_diffusers(config)


@pytest.mark.parametrize(
    ("kind", "mu"),
    [
        *(("exponential", mu) for mu in (800, -800, "1", True, float("nan"), float("inf"))),
        *(("linear", mu) for mu in (0, -1.0, "1", True, float("nan"), float("inf"))),
    ],
)
def test_a_mu_that_gives_no_shift_is_named(kind, mu):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    with refuses("mu"):
        Levels.from_diffusers(scheduler, mu)
