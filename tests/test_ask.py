"""Without an allocation, `sigmas` and `timesteps` are what the scheduler itself makes.

For every class of diffusers with known levels (tests/test_levels.py) and every flag that moves
them.
"""

import copy
import inspect

import diffusers
import numpy as np
import pytest

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, sigmas, timesteps
from asddim_lib.levels import Levels
from tests.refusals import refuses
from tests.test_levels import FLOW, TABLE, built

MU = 0.7
#: Settings that move a scheduler's levels, each tried where the class knows it.
FLAGS = [
    {},
    *({"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")),
    {"timestep_spacing": "leading", "steps_offset": 1},
    *({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")),
    {"use_lu_lambdas": True},
    *({"final_sigmas_type": end} for end in ("zero", "sigma_min")),
    {"set_alpha_to_one": False},
    {"interpolation_type": "log_linear"},
    {"shift": 3.0},
    {"shift_terminal": 0.1},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    {"rescale_betas_zero_snr": True},
    {"sigma_schedule": "exponential"},
    {"sigma_max": 40.0, "sigma_min": 0.01},
    {"original_inference_steps": 100},
    FLOW,
    {**FLOW, "use_dynamic_shifting": True},
]


def allowed(name, flags):
    """Whether diffusers takes these settings together, as their meaning has it."""
    flow = "use_flow_sigmas" in flags or TABLE[name][0] == "flow"
    if {"use_dynamic_shifting", "shift_terminal"} & set(flags) and not flow:
        return False
    return (name, flags.get("timestep_spacing")) != ("DDIMInverseScheduler", "linspace")


def cases():
    for name in TABLE:
        known = inspect.signature(getattr(diffusers, name).__init__).parameters
        prk = {"skip_prk_steps": True} if "skip_prk_steps" in known else {}  # Stable Diffusion's
        for flags in FLAGS:
            if set(flags) <= set(known) and allowed(name, flags):
                yield name, flags | prk


def itself(scheduler, steps):
    """K timesteps and K + 1 levels (or None) by the scheduler alone, falling."""
    scheduler = copy.deepcopy(scheduler)
    dynamic = scheduler.config.get("use_dynamic_shifting")
    scheduler.set_timesteps(steps, **({"mu": MU} if dynamic else {}))
    times = scheduler.timesteps.double().tolist()
    levels = getattr(scheduler, "sigmas", None)
    if levels is None or len(levels) == 1:  # DDIM and its like have no levels but ᾱ
        times = list(dict.fromkeys(times))  # PNDM repeats one
        return falling(times), None
    levels = levels.double().tolist()
    if getattr(scheduler, "order", 1) == 2:  # two evaluations a step
        times, levels = times[::2], [*levels[: 2 * steps : 2], levels[-1]]
    return falling(times), falling(levels)


def falling(values):
    """Those of inversion rise."""
    return values[::-1] if values[0] < values[-1] else values


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize(("name", "flags"), [*cases()], ids=lambda v: str(v)[:70])
def test_every_scheduler_is_asked_for_its_own_steps(name, flags, steps):
    scheduler = built(name, flags)
    times, levels = itself(scheduler, steps)
    table = Levels.from_diffusers(scheduler, MU)
    config = {**scheduler.config, "_class_name": name}
    assert len(times) == steps
    for source in (scheduler, config):
        found = sigmas(source, steps, mu=MU, shifted=True)
        if levels is None:
            bars = scheduler.alphas_cumprod.double()[times]
            wanted = ((1 - bars) / bars.clamp(min=2.0**-24)).sqrt().tolist()
            np.testing.assert_allclose(found[:-1], wanted, rtol=5e-3)
            one = scheduler.config.get("set_alpha_to_one", True)
            assert found[-1] == (0.0 if one else table.sigmas[0])
        else:
            np.testing.assert_allclose(found, levels, rtol=1e-6)
        if table.kind == "vp":
            assert timesteps(source, steps) == times
            assert sigmas(source, steps, mu=MU) == found
    assert repr(scheduler.timesteps) == repr(built(name, flags).timesteps)  # left alone


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ],
    ids=str,
)
def test_what_it_makes_can_be_given_back_to_it(name, flags, steps):
    scheduler = built(name, flags)
    again, dynamic = copy.deepcopy(scheduler), scheduler.config.get("use_dynamic_shifting")
    how = {"mu": MU} if dynamic else {}
    scheduler.set_timesteps(steps, **how)
    given = sigmas(again, steps, mu=MU)
    again.set_timesteps(sigmas=given, **how)
    np.testing.assert_allclose(again.sigmas, scheduler.sigmas, rtol=1e-5, atol=1e-6)


def test_an_edm_model_begins_at_its_sigma_max():
    assert sigmas(diffusers.EDMEulerScheduler(), 10)[0] == pytest.approx(80)


def test_our_schedulers_make_what_they_say():
    for ours in (
        ASDDIMScheduler(allocation="logsnr"),
        ASDDIMScheduler(),
        ASDDIMScheduler(grid=[9, 1]),
    ):
        ours.set_timesteps(2)
        assert timesteps(ours, 2) == ours.timesteps.tolist()
    for kept in ({"allocation": "karras"}, {"grid": [1.0, 0.3]}, {"boundary": 0.8}, {}):
        ours = ASFlowScheduler(shift=3.0, **kept)
        ours.set_timesteps(2)
        np.testing.assert_allclose(sigmas(ours, 2, shifted=True), ours.sigmas, rtol=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, "4", None, 1001])
@pytest.mark.parametrize("how", [{}, {"allocation": "karras"}, {"allocation": "trailing"}], ids=str)
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_wrong_number_of_steps_is_named(name, how, steps):
    for make in (sigmas, timesteps):
        with refuses("num_inference_steps"):
            make(built(name), steps, **how)


@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerDiscreteScheduler"])
def test_a_scheduler_that_makes_other_steps_is_refused(name):
    """Runge-Kutta's extra evaluations, and trailing steps of which diffusers makes one too many."""
    scheduler = built(name, {"timestep_spacing": "trailing"})
    with refuses("num_inference_steps"):
        sigmas(scheduler, 61)
    assert len(sigmas(scheduler, 61, allocation="trailing")) == 62
