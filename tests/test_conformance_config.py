"""What diffusers requires of every scheduler (its SchedulerCommonTest), of each class of ours.

Without a grid and an allocation each is its diffusers class, to the bit.
"""

import inspect
import itertools
import json
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib import (
    ASDDIMInverseScheduler,
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    UniPCGridScheduler,
)
from asddim_lib.schedulers.mixin import OPTIONS
from tests.ddim import deterministic, make, model, reloaded, same
from tests.refusals import refuses


class Case(NamedTuple):
    """A class of ours, its diffusers class, the config of diffusers' tests, and changes to it."""

    ours: Any
    theirs: Any
    config: dict[str, Any]
    changes: tuple[dict[str, Any], ...]


LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
LINEAR |= {"beta_schedule": "linear"}
FLOWING = {"num_train_timesteps": 1000, "use_flow_sigmas": True, "flow_shift": 3.0}
FLOWING |= {"prediction_type": "flow_prediction"}
#: Settings that the tests of all DDPM-like schedulers try.
SHARED: tuple[dict[str, Any], ...] = (
    {},
    *({"num_train_timesteps": size} for size in (25, 50, 100, 999)),
    *({"beta_start": a, "beta_end": b} for a, b in ((0.0001, 0.002), (0.001, 0.02), (0.01, 0.2))),
    *({"beta_schedule": name} for name in ("scaled_linear", "squaredcos_cap_v2")),
    *({"prediction_type": name} for name in ("epsilon", "sample", "v_prediction")),
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    *(
        {"thresholding": True, "prediction_type": name, "sample_max_value": limit}
        for name, limit in itertools.product(("epsilon", "v_prediction"), (0.5, 2.0))
    ),
    *({"timestep_spacing": name} for name in ("leading", "trailing")),
    {"trained_betas": [0.01] * 1000},
)
LEVELS = tuple({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))
SOLVERS = (
    *SHARED,
    *LEVELS,
    *({"solver_order": order, "solver_type": name} for order in (1, 2, 3) for name in ("a", "b")),
    *({"lower_order_final": final} for final in (True, False)),
)
DPM = (
    {"algorithm_type": "sde-dpmsolver++"},
    {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    {"use_lu_lambdas": True},
    {"euler_at_final": True},
    {"lambda_min_clipped": -5.1},
)
EULER = ({}, *({"shift": shift} for shift in (0.5, 3.0)), *LEVELS, {"shift_terminal": 0.1})
EULER += ({"invert_sigmas": True}, {"stochastic_sampling": True}, {"num_train_timesteps": 300})
CASES = {
    "ddim": Case(ASDDIMScheduler, DDIMScheduler, {**LINEAR, "clip_sample": True}, SHARED),
    "inverse": Case(ASDDIMInverseScheduler, None, {**LINEAR, "set_alpha_to_one": False}, SHARED),
    "flow": Case(
        ASFlowScheduler, FlowMatchEulerDiscreteScheduler, {"num_train_timesteps": 1000}, EULER
    ),
    "dpm++": Case(DPMSolverGridScheduler, DPMSolverMultistepScheduler, LINEAR, (*SOLVERS, *DPM)),
    "dpm++ flow": Case(
        DPMSolverGridScheduler, DPMSolverMultistepScheduler, FLOWING, ({}, *DPM[3:])
    ),
    "unipc": Case(UniPCGridScheduler, UniPCMultistepScheduler, LINEAR, SOLVERS),
    "unipc flow": Case(
        UniPCGridScheduler, UniPCMultistepScheduler, FLOWING, ({}, {"shift_terminal": 0.1}, *LEVELS)
    ),
}
NAMES = {"dpm++": {"a": "midpoint", "b": "heun"}, "unipc": {"a": "bh1", "b": "bh2"}}
PAIRS = [
    pytest.param(name, changes, id=f"{name} {str(changes)[:60]}")
    for name, case in CASES.items()
    for changes in case.changes
]
each = pytest.mark.parametrize("name", CASES)


def built(name, kind=None, **changes):
    """A scheduler of a case: ours, or of another class, with changes to the case's config."""
    case = CASES[name]
    if "solver_type" in changes:
        changes["solver_type"] = NAMES[name][changes["solver_type"]]
    return (kind or case.ours)(**{**case.config, **changes})


def drawn(scheduler, steps=5):
    """The levels, times and samples of a run of so many steps."""
    scheduler.set_timesteps(steps)
    generator, x = torch.Generator().manual_seed(0), deterministic()
    found = [torch.as_tensor(getattr(scheduler, "sigmas", 0)), scheduler.timesteps]
    known = inspect.signature(scheduler.step).parameters
    how = {"generator": generator} if "generator" in known else {}
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, float(t)), t, x, **how).prev_sample
        found.append(x)
    return found


def alike(one, other):
    for a, b in zip(one, other, strict=True):
        same(a, b)


def settings(scheduler):
    """A config without what a file adds to it."""
    left_out = ("_use_default_values", "_diffusers_version")
    return {key: value for key, value in scheduler.config.items() if key not in left_out}


# Settings


@pytest.mark.parametrize(("name", "changes"), PAIRS)
def test_a_setting_survives_saving_and_draws_as_in_diffusers(name, changes, tmp_path):
    scheduler = built(name, **changes)
    again = reloaded(scheduler, tmp_path)
    assert settings(again) == settings(scheduler)
    found = drawn(scheduler)
    alike(found, drawn(again))
    if CASES[name].theirs is not None:
        alike(found, drawn(built(name, CASES[name].theirs, **changes)))


@each
def test_its_settings_are_its_diffusers_class_s_and_the_options(name):
    case = CASES[name]
    ours = inspect.signature(case.ours.__init__).parameters
    theirs = inspect.signature((case.theirs or DDIMScheduler).__init__).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert set(ours) - set(theirs) == set(OPTIONS)
    assert all(ours[key].default == theirs[key].default for key in theirs)
    assert not {"args", "kwargs"} & set(ours)
    assert len(case.ours._deprecated_kwargs) == 0
    plain = case.ours(*(one.default for one in list(theirs.values())[1:]))  # by place, too
    assert settings(plain) == settings(case.ours())


@pytest.mark.parametrize("method", ["set_timesteps", "step"])
@each
def test_a_pipeline_finds_the_arguments_that_diffusers_has(name, method):
    case = CASES[name]
    ours = inspect.signature(getattr(case.ours, method)).parameters
    theirs = inspect.signature(getattr(case.theirs or DDIMScheduler, method)).parameters
    assert set(theirs) - set(ours) <= ({*theirs} if name == "inverse" else set())
    if method == "set_timesteps":
        assert {"num_inference_steps", "device", "timesteps", "sigmas", "mu"} < set(ours)


@pytest.mark.parametrize("name", [n for n in CASES if n != "flow" and "flow" not in n])
def test_trained_betas_may_be_an_array_of_another_length(name, tmp_path):
    scheduler = built(name, trained_betas=np.array([0.1, 0.3]))
    assert scheduler.betas.tolist() == pytest.approx([0.1, 0.3])
    assert reloaded(scheduler, tmp_path).betas.tolist() == scheduler.betas.tolist()


# Other classes


@pytest.mark.parametrize("said", [True, False], ids=["said", "by default"])
@each
def test_a_config_that_went_through_any_other_class_is_the_same(name, said):
    case = CASES[name]
    scheduler = built(name) if said else case.ours(**({} if "flow" not in name else case.config))
    others = [*scheduler.compatibles, *([case.theirs] if case.theirs else [])]
    assert all(other is not None for other in others)
    for other in others:
        if hasattr(other, "_backends"):  # a package is not installed
            continue
        back = case.ours.from_config(other.from_config(scheduler.config).config)
        # Exactly, and so with what it says of its defaults.
        assert {k: v for k, v in back.config.items() if k in scheduler.config} == dict(
            scheduler.config
        ), other
        added = set(back.config) - set(scheduler.config)
        assert not added & set(inspect.signature(case.ours.__init__).parameters), other
        alike(drawn(back), drawn(scheduler))


@each
def test_a_whole_config_survives_a_file(name, tmp_path):
    scheduler = built(name)
    again = reloaded(scheduler, tmp_path)
    plain = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    assert plain == again.config
    assert (
        json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"]
        == type(scheduler).__name__
    )


def test_it_is_compatible_with_what_ddim_is():
    # diffusers names the class itself; ours is no part of diffusers, so it names DDIM instead.
    assert set(make().compatibles) >= set(DDIMScheduler().compatibles)
    assert len(DDIMScheduler().compatibles) >= 10


def test_what_a_class_means_by_its_model_s_settings_is_kept():
    """Heun's own betas are Stable Diffusion's, and DDIM's are not; only DDIM clips."""
    ours = ASDDIMScheduler.from_config(HeunDiscreteScheduler().config)
    assert (ours.config["beta_start"], ours.config["beta_end"]) == (0.00085, 0.012)
    assert not ours.config["clip_sample"]
    heun = HeunDiscreteScheduler.from_config(ASDDIMScheduler().config)
    assert (heun.config["beta_start"], heun.config["beta_end"]) == (0.0001, 0.02)


@pytest.mark.parametrize(
    "other",
    [DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler],
)
def test_from_other_schedulers_and_back(other):
    shared = {
        "num_train_timesteps": 500,
        "beta_start": 0.001,
        "beta_end": 0.015,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
    }
    ours = ASDDIMScheduler.from_config(other(**shared).config, allocation="noise", p=0.7)
    back = other.from_config(ours.config)
    for key, value in shared.items():
        assert ours.config[key] == back.config[key] == value
    again = ASDDIMScheduler.from_config(back.config)  # settings that only ours has come back
    assert (again.config["allocation"], again.config["p"]) == ("noise", 0.7)


@pytest.mark.parametrize("shift", [0.5, 3.0, 12.0])
def test_a_flow_model_s_shift_goes_from_class_to_class(shift):
    euler = FlowMatchEulerDiscreteScheduler(shift=shift)
    kinds = (UniPCGridScheduler, DPMSolverGridScheduler, ASFlowScheduler)
    for first, second in itertools.product(kinds, repeat=2):
        made = first.from_config(second.from_config(euler.config).config, grid=[1.0, 0.6])
        name = "shift" if first is ASFlowScheduler else "flow_shift"
        assert made.config[name] == shift
        made.set_timesteps(2)
        np.testing.assert_allclose(made.sigmas, [1.0, 0.6, 0.0], rtol=2e-6)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (ASDDIMScheduler, {}),
        (ASDDIMScheduler, {"allocation": "karras", "p": 0.5}),
        (UniPCGridScheduler, {"allocation": "noise", "p": 0.7}),
        (DPMSolverGridScheduler, {"grid": [900, 500]}),
        (ASFlowScheduler, {"boundary": 0.875}),
    ],
)
def test_a_file_of_version_0_1_or_0_2_loads_and_a_new_one_says_no_more_than_counts(
    kind, config, tmp_path
):
    scheduler = kind(**config)
    names = {"p", "lam", "eps", "reading"} & set(scheduler.config)
    assert len(names) == (4 if config.get("allocation") == "noise" else 0)
    before = {"allocation": "uniform", "p": 0.5, "lam": 1.0, "eps": 1e-8, "reading": "intent"}
    before |= {"profile": None, "look_ahead": 0.0, "grid": None, "boundary": None}
    scheduler.save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps({**before, **json.loads(file.read_text())}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = kind.from_pretrained(tmp_path)
    assert settings(again) == settings(scheduler)


# What pipelines call


@each
def test_the_public_interface(name):
    scheduler, x = built(name), deterministic()
    assert scheduler.order == 1
    assert len(scheduler) == 1000
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.shape == (10,)
    if name != "flow":  # diffusers' Euler for flow matching has neither
        assert scheduler.init_noise_sigma == 1.0
        same(scheduler.scale_model_input(x, 0.0), x)


@each
def test_outputs_as_tuple_and_dict_agree(name):
    results = []
    for named in (True, False):
        scheduler, x = built(name), deterministic()
        scheduler.set_timesteps(10)
        t = scheduler.timesteps[3]
        results.append(scheduler.step(0.1 * x, t, x, return_dict=named))
    assert isinstance(results[1], tuple)
    for a, b in zip(results[0].values(), results[1], strict=True):
        same(a, b)
        assert a.shape == deterministic().shape


@each
def test_noise_is_added_at_the_scheduler_s_own_times(name):
    case, x, noise = CASES[name], deterministic(), deterministic(reverse=True)
    found = []
    for kind in (case.ours, case.theirs or case.ours):
        scheduler = built(name, kind)
        scheduler.set_timesteps(100)
        t = scheduler.timesteps[5][None]
        add = scheduler.scale_noise if name == "flow" else None
        found.append(add(x, t, noise) if add else scheduler.add_noise(x, noise, t))
    same(*found)
    assert found[0].shape == x.shape


@each
def test_attributes_are_looked_up_as_in_diffusers(name):
    scheduler = built(name)
    scheduler.own = 5
    scheduler.register_to_config(registered=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduler.own == 5
        assert scheduler.save_pretrained == scheduler.save_pretrained
    with pytest.warns(FutureWarning):
        assert scheduler.registered == 5
    with pytest.raises(AttributeError, match=f"'{type(scheduler).__name__}' object has no"):
        _ = scheduler.missing


# DDIM


def test_a_step_without_a_grid_is_refused():
    with refuses("num_inference_steps"):
        make().step(deterministic(), 1, deterministic())
    with refuses("num_inference_steps"):
        make().set_timesteps(1001)


def test_add_noise_is_eq_1():
    scheduler, x, noise = make(), deterministic(), deterministic(reverse=True)
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[5][None]
    bar = float(scheduler.alphas_cumprod[int(t)])
    noisy = scheduler.add_noise(x, noise, t)
    torch.testing.assert_close(noisy, bar**0.5 * x + (1 - bar) ** 0.5 * noise)
    velocity = scheduler.get_velocity(x, noise, t)
    torch.testing.assert_close(velocity, bar**0.5 * noise - (1 - bar) ** 0.5 * x)


@each
def test_a_setting_that_does_not_exist_is_named(name):
    with refuses("alocation"):
        CASES[name].ours.from_config(built(name).config, alocation="noise")
