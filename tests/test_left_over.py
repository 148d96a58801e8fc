"""What an earlier class has left in a scheduler's config counts for nothing.

diffusers' `from_config` keeps the settings of the class before, which the new one makes no use of.
"""

import diffusers
import pytest
from diffusers import DDIMScheduler

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, sigmas, timesteps
from asddim_lib.configs import completed
from asddim_lib.levels import Levels
from asddim_lib.schedulers.mixin import OPTIONS
from asddim_lib.schedulers.place import check_set, drawing, with_grid

SD = {"beta_start": 0.00085, "beta_end": 0.012}
WAN = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}


def named(scheduler):
    """A scheduler's config as a pipeline's file holds it: the class, and every setting said."""
    values = {key: value for key, value in scheduler.config.items() if key[0] != "_"}
    return {**values, "_class_name": type(scheduler).__name__}


def remade(kind, source, from_file, **changes):
    """A scheduler of class `kind`, made of another one's config, new or from a file."""
    return kind.from_config(named(source) if from_file else source.config, **changes)


def shifts(scheduler):
    """The shift of a flow scheduler, by all that take it from there."""
    yield Levels.from_diffusers(scheduler).shift
    for made in (drawing(ASFlowScheduler, scheduler), drawing(type(scheduler), scheduler)):
        yield made.shift
    levels = sigmas(scheduler, 2, shifted=True, allocation="trailing")
    held = with_grid(scheduler, [999, 499])
    held.set_timesteps(2)
    for level in (levels[1], float(held.sigmas[1])):
        yield level / (1 - level)


@pytest.mark.parametrize("from_file", [False, True])
def test_the_shift_is_the_scheduler_s_own_and_not_an_earlier_class_s(from_file):
    """Wan's solver is changed for Euler: `use_flow_sigmas` and `flow_shift` stay in the config."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    made = remade(flow, diffusers.UniPCMultistepScheduler(**WAN), from_file, shift=7.0)
    assert "use_flow_sigmas" in made.config
    assert list(shifts(made)) == pytest.approx([7.0] * 5)
    assert Levels.from_diffusers(made.config).shift == 7.0
    assert ASFlowScheduler.from_config(made.config).shift == 7.0
    made.set_timesteps(sigmas=[1.0, 0.5])
    check_set(made, [999, 499])


def test_a_shift_that_was_set_later_is_the_one_in_force():
    for kind in (diffusers.FlowMatchEulerDiscreteScheduler, ASFlowScheduler):
        made = kind(shift=1.0)
        made.set_shift(7.0)
        assert list(shifts(made)) == pytest.approx([7.0] * 5)
        made.set_timesteps(sigmas=[1.0, 0.5])
        check_set(made, [999, 499])


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("left", [{"grid": [999, 500, 100]}, {"allocation": "logsnr"}], ids=str)
def test_a_grid_that_an_earlier_class_laid_is_not_the_scheduler_s(left, from_file):
    made = remade(diffusers.DDIMScheduler, ASDDIMScheduler(**SD, **left), from_file)
    assert set(left) <= set(made.config)
    made.set_timesteps(10)
    for source in (made, made.config):
        assert timesteps(source, 10) == made.timesteps.tolist()
    again = ASDDIMScheduler.from_config(made.config)  # as with diffusers' own, it comes back
    assert {name: again.config[name] for name in left} == left


@pytest.mark.parametrize("from_file", [False, True])
def test_what_ddim_clips_and_where_it_ends_is_not_euler_s(from_file):
    ddim = diffusers.DDIMScheduler(**SD, clip_sample=True, set_alpha_to_one=False)
    made = remade(diffusers.EulerDiscreteScheduler, ddim, from_file)
    ours = drawing(ASDDIMScheduler, made)
    assert (ours.config["clip_sample"], ours.config["set_alpha_to_one"]) == (False, True)
    assert Levels.from_diffusers(made).end == 0


def test_a_class_of_one_s_own_takes_what_those_above_it_take():
    class Own(diffusers.DDIMScheduler):
        def __init__(self, *, extra=1, **settings):
            super().__init__(**settings)

    own, plain = Own(**SD, steps_offset=1), diffusers.DDIMScheduler(**SD, steps_offset=1)
    assert timesteps(own, 7) == timesteps(plain, 7)
    assert completed(own) == {**completed(plain), "extra": 1}


def test_of_an_unknown_class_all_settings_count():
    config = {**SD, "beta_schedule": "linear", "allocation": "logsnr", "_class_name": "Foreign"}
    assert completed(config) == config
    assert timesteps(config, 5) == timesteps(config, 5, allocation="logsnr")
    ours = {**SD, "beta_schedule": "linear", "_class_name": "ASDDIMScheduler"}
    assert completed(ours) == {**OPTIONS, **named(ASDDIMScheduler(**SD))}


def test_what_a_user_adds_to_a_config_counts():
    given = {**DDIMScheduler().config, "allocation": "logsnr"}
    assert timesteps(given, 5) == timesteps(DDIMScheduler(), 5, allocation="logsnr")
