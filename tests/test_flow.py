"""`ASFlowScheduler` against diffusers' Euler, against `sigmas`, and against DDIM's step."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asddim_lib import ASFlowScheduler, sigmas
from asddim_lib.grids.table import METHODS
from asddim_lib.levels import Levels
from asddim_lib.paper import ddim_step
from tests.refusals import refuses

#: Settings with which diffusers' Euler makes levels of its own.
FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
GRIDS = [
    name
    for name, m in METHODS.items()
    if m.needs == "nothing" and m.kind in (None, "flow") and name != "uniform"
]
CONFIGS = st.fixed_dictionaries(
    {
        "num_train_timesteps": st.sampled_from([1000, 300]),
        "shift": st.floats(0.2, 12),
        "use_dynamic_shifting": st.booleans(),
        "time_shift_type": st.sampled_from(["exponential", "linear"]),
        "shift_terminal": st.sampled_from([None, 0.02, 0.1]),
        "invert_sigmas": st.booleans(),
        "stochastic_sampling": st.booleans(),
    }
)


@st.composite
def falling(draw, least=1, most=12):
    """Levels of noise in (0, 1], whole thousandths."""
    found = st.lists(st.integers(1, 1000), min_size=least, max_size=most, unique=True)
    return [number / 1000 for number in sorted(draw(found), reverse=True)]


@st.composite
def asked(draw):
    """What a pipeline may ask `set_timesteps` for, timesteps in shares of T; and how many steps."""
    values = draw(falling())
    steps = len(values)
    even = np.linspace(1, 1 / steps, steps)
    ways = [{"num_inference_steps": steps}, {"sigmas": values}, {"sigmas": even}]
    ways += [{"timesteps": values}, {"timesteps": values, "sigmas": even}]
    return draw(st.sampled_from(ways)), steps


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def line(error):
    """The one line of a refusal."""
    assert "\n" not in str(error.value)
    return str(error.value)


@settings(max_examples=150)
@given(config=CONFIGS, flag=st.sampled_from([None, *FLAGS]), ask=asked(), data=st.data())
def test_without_a_grid_it_is_diffusers_own_to_the_bit(config, flag, ask, data):
    config = {**config, **({flag: True} if flag else {})}
    how, steps = ask
    if "timesteps" in how:
        how = {**how, "timesteps": [config["num_train_timesteps"] * t for t in how["timesteps"]]}
    assume(steps > 1 or not config["shift_terminal"])  # diffusers divides 0 by 0
    needed = config["use_dynamic_shifting"]
    mu = data.draw(st.floats(0.1, 3) if needed else st.none() | st.floats(0.1, 3))
    begin = data.draw(st.integers(0, steps - 1))  # above 0 it is image-to-image
    image, noise, output = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(steps))
    ends = []
    for kind in (ASFlowScheduler, FlowMatchEulerDiscreteScheduler):
        scheduler = kind(**config)
        scheduler.set_timesteps(**how, mu=mu)
        if begin:
            scheduler.set_begin_index(begin)
        times = scheduler.timesteps[begin:]
        x = scheduler.scale_noise(image, times[:1], noise)
        seen, generator = [x], torch.Generator().manual_seed(1)
        for k, t in enumerate(times):
            known = {"generator": generator, "return_dict": k % 2 == 0}
            found = scheduler.step(output, t, seen[-1], **known)
            seen.append(found.prev_sample if k % 2 == 0 else found[0])
        state = [scheduler.sigmas, scheduler.timesteps, torch.tensor(scheduler.step_index)]
        ends.append([*state, *seen])
        assert scheduler.num_inference_steps == steps
    for ours, theirs in zip(*ends, strict=True):
        same(ours, theirs)


def test_it_has_diffusers_defaults_and_refuses_what_it_refuses():
    ours, theirs = ASFlowScheduler(), FlowMatchEulerDiscreteScheduler()
    own = {"allocation", "profile", "grid"}
    keys = {key for key in theirs.config if not key.startswith("_")}
    assert {key for key in ours.config if not key.startswith("_")} - keys == own
    assert all(ours.config[key] == theirs.config[key] for key in keys)
    x = torch.ones(1, 4)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(3)
        with pytest.raises(ValueError, match="integer indices"):
            scheduler.step(x, 0, x)
    with pytest.raises(ValueError, match="must either be"):
        ASFlowScheduler(time_shift_type="cubic")
    with refuses("allocation"):
        ASFlowScheduler(allocation="soup")


# levels of its own


@pytest.mark.parametrize("allocation", GRIDS)
@pytest.mark.parametrize(("steps", "shift", "mu"), [(2, 3.0, None), (9, 7.0, None), (9, 1.0, 0.8)])
def test_an_allocation_s_levels_are_those_of_sigmas_under_any_flag(allocation, steps, shift, mu):
    """The shift is put on once, and nothing else: for sigmas itself see `test_place.py`."""
    dynamic = {"shift": shift, "use_dynamic_shifting": mu is not None}
    theirs = FlowMatchEulerDiscreteScheduler(**dynamic)
    steps = 2 if allocation == "dmn" else steps  # its search takes seconds
    meant = sigmas(theirs, steps, allocation=allocation, shifted=True, mu=mu)
    for flags in ({}, *({flag: True} for flag in FLAGS), {"shift_terminal": 0.1}):
        scheduler = ASFlowScheduler(**dynamic, **flags, allocation=allocation)
        scheduler.set_timesteps(steps, mu=mu)
        np.testing.assert_allclose(scheduler.sigmas, meant, rtol=1e-6)
        same(scheduler.timesteps, scheduler.sigmas[:-1] * 1000)
        assert meant[-1] == 0
        again = sigmas(scheduler, steps, shifted=True, mu=mu)  # its own config says the same
        assert again == meant


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 40])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_the_trailing_allocation_is_what_diffusers_makes_of_even_sigmas(steps, kind):
    config = {"use_dynamic_shifting": True, "time_shift_type": kind}
    ours = ASFlowScheduler(**config, allocation="trailing")
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    ours.set_timesteps(steps, mu=1.15)
    theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=1.15)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=0)


def test_a_shift_set_later_counts_as_in_diffusers():
    ours, theirs = ASFlowScheduler(allocation="trailing"), FlowMatchEulerDiscreteScheduler()
    for scheduler in (ours, theirs):
        scheduler.set_shift(5.0)
        scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=0)


@pytest.mark.parametrize("allocation", ["uniform", "logsnr"])
def test_each_run_begins_anew(allocation):
    scheduler, x = ASFlowScheduler(allocation=allocation), torch.ones(1, 4)
    for steps in (4, 3):
        scheduler.set_timesteps(steps)
        assert scheduler.begin_index is None
        assert scheduler.step_index is None
        scheduler.set_begin_index(1)
        scheduler.step(x, scheduler.timesteps[1], x)


@pytest.mark.parametrize("how", [{}, {"allocation": "logsnr"}])
def test_a_missing_mu_is_one_line(how):
    scheduler = ASFlowScheduler(use_dynamic_shifting=True, **how)
    with refuses("mu") as error:
        scheduler.set_timesteps(2)
    line(error)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 28, 50])
def test_a_pipeline_s_even_sigmas_leave_the_allocation_in_force(steps):
    ours = ASFlowScheduler(shift=3.0, allocation="karras")
    ours.set_timesteps(steps)
    meant, even = ours.sigmas.clone(), np.linspace(1, 1 / steps, steps)
    spans = np.linspace(1000, 1, steps), np.linspace(1000, 1, steps + 1)[:-1]
    times = [span.astype(np.int64).astype(np.float32) for span in spans]
    ways = [
        {"sigmas": even},
        {"sigmas": even.tolist()},
        {"sigmas": torch.tensor(even, dtype=torch.float32)},
        {"sigmas": np.linspace(1, 0, steps + 1)[:-1]},  # HunyuanVideo
        *({"timesteps": t, "sigmas": t / 1000} for t in times),  # CogView 4, GLM-Image
    ]
    for way in ways:
        ours.set_timesteps(**way)
        same(ours.sigmas, meant)


@settings(max_examples=30)
@given(values=falling(2))
def test_other_given_sigmas_or_timesteps_go_before_the_allocation(values):
    values[0] -= 5e-4  # so that they are not a pipeline's own
    ours = ASFlowScheduler(shift=3.0, allocation="karras", boundary=0.9)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    times = [1000 * value for value in values]
    for way in ({"sigmas": values}, {"timesteps": times}, {"timesteps": times, "sigmas": values}):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(**way)
        same(ours.sigmas, theirs.sigmas)
        same(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("how", [{"allocation": "trailing"}, {"grid": [0.9, 0.5]}])
def test_inverted_levels_are_refused_where_they_would_not_be_turned_round(how):
    with refuses("invert_sigmas") as error:
        ASFlowScheduler(invert_sigmas=True, **how)
    line(error)


# Euler's method on flow matching's grid is DDIM


def velocity(x, s):
    """Some smooth field, in x and in s."""
    return torch.sin(1.7 * x + s) + 0.4 * math.cos(3 * s) * x.roll(1, -1)


def scale(s):
    """√((1 − s)² + s²), by which flow matching's sample is longer than DDIM's at the same σ."""
    return math.hypot(1 - s, s)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@settings(max_examples=40)
@given(levels=falling(2, 20), seed=st.integers(0, 99), to_zero=st.booleans())
def test_euler_on_flow_s_grid_is_ddim_on_the_same_sigmas(prediction, levels, seed, to_zero):
    """With σ = s / (1 − s) and ᾱ = 1 / (1 + σ²): x / √((1 − s)² + s²) takes DDIM's step."""
    if prediction == "epsilon":  # at pure noise it says nothing of the picture
        levels[0] = min(levels[0], 0.9995)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = x / scale(levels[0])
    for s, following in itertools.pairwise([*levels, *([0.0] if to_zero else [])]):
        at = scale(s) * y  # DDIM's own sample, as the network of flow matching takes it
        v = velocity(at, s)
        clean, noise = at - s * v, at + (1 - s) * v
        bar, bar_next = ((1 - each) ** 2 / scale(each) ** 2 for each in (s, following))
        if s < 1:
            assert bar == pytest.approx(1 / (1 + (s / (1 - s)) ** 2), rel=1e-9)
        outputs = {"epsilon": noise, "sample": clean}
        outputs["v_prediction"] = bar**0.5 * noise - (1 - bar) ** 0.5 * clean
        alphas = (torch.tensor(a, dtype=torch.float64) for a in (bar, bar_next))
        y, _ = ddim_step(y, outputs[prediction], *alphas, prediction_type=prediction)
        x = x + (following - s) * velocity(x, s)
        torch.testing.assert_close(x / scale(following), y, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(levels=falling(1, 20))
def test_its_step_is_euler_s_and_its_sample_ddim_s(levels):
    """The scheduler itself, whose arithmetic is single precision, as diffusers' is."""
    scheduler, coordinates = ASFlowScheduler(grid=levels), Levels.from_diffusers(ASFlowScheduler())
    scheduler.set_timesteps(len(levels))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    exact = x.double()
    for t, s, following in zip(scheduler.timesteps, levels, [*levels[1:], 0.0], strict=True):
        v = velocity(exact, s)
        sigma = s / (1 - s) if s < 1 else math.inf
        clean, noise = coordinates.predict(exact, v, sigma)
        torch.testing.assert_close((1 - s) * clean + s * noise, exact, rtol=1e-12, atol=1e-12)
        exact = (1 - following) * clean + following * noise
        x = scheduler.step(velocity(x, s), t, x).prev_sample
        torch.testing.assert_close(x.double(), exact, rtol=1e-4, atol=1e-4)
