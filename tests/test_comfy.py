"""ComfyUI's schedulers against its definitions, restated on a table of 1000 sigmas."""

import itertools
import math

import numpy as np
import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.stats import beta

from asddim_lib import sigmas, timesteps
from asddim_lib.grids.table import METHODS, Options, timesteps_of
from asddim_lib.levels import Levels, sigma_of
from experiments import rivals as rivals  # its grids are in the table then

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHIFT = 3.0
SCHEDULERS = {
    "sd": DDIMScheduler(**CONFIG),
    "flow": FlowMatchEulerDiscreteScheduler(shift=SHIFT),
}
SCHEDULES = {kind: Levels.from_diffusers(one) for kind, one in SCHEDULERS.items()}


class Sampling:
    """What ComfyUI's schedulers ask of a model: its table, and both ways between t and level."""

    def __init__(self, kind):
        self.flow = kind == "flow"
        if self.flow:
            self.sigmas = np.array([self.sigma(i) for i in range(1, 1001)])
        else:
            beta_s = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
            bars = np.cumprod(1 - beta_s)
            self.sigmas = np.sqrt((1 - bars) / bars)

    def timestep(self, sigma):
        if self.flow:
            return 1000 * sigma
        return float(np.abs(np.log(self.sigmas) - math.log(sigma)).argmin())

    def sigma(self, timestep):
        if self.flow:
            u = timestep / 1000
            return SHIFT * u / (1 + (SHIFT - 1) * u)
        return math.exp(np.interp(timestep, np.arange(1000), np.log(self.sigmas)))

    def places(self, levels):
        """Where levels lie in the table, as real numbers, by log σ; σ of s = 1 counts as 4096."""
        levels, table = np.minimum(levels, self.sigmas[-1]), self.sigmas
        if self.flow:
            levels, table = (
                np.minimum(s / (1 - np.minimum(s, 1 - 1e-9)), 4096) for s in (levels, table)
            )
        return np.interp(np.log(levels), np.log(table), np.arange(len(table)))


def simple(s, steps):
    return [s.sigmas[-(1 + int(x * (len(s.sigmas) / steps)))] for x in range(steps)]


def ddim_uniform(s, steps):
    return [s.sigmas[x] for x in range(1, len(s.sigmas), len(s.sigmas) // steps)][::-1]


def evenly(s, count):
    ends = s.timestep(s.sigmas[-1]), s.timestep(s.sigmas[0])
    return [s.sigma(t) for t in np.linspace(*ends, count)]


def normal(s, steps):
    return evenly(s, steps)


def sgm_uniform(s, steps):
    return evenly(s, steps + 1)[:-1]


def linear_quadratic(s, steps, threshold=0.025):
    """The coefficients of Mochi's inference code."""
    linear = steps // 2
    rest, excess = steps - linear, linear - threshold * steps
    a = excess / (linear * rest**2)
    b = threshold / linear - 2 * excess / rest**2
    done = [i * threshold / linear for i in range(linear)]
    done += [a * i**2 + b * i + a * linear**2 for i in range(linear, steps)]
    return [(1 - x) * s.sigmas[-1] for x in done]


def kl_optimal(s, steps):
    high, low = math.atan(s.sigmas[-1]), math.atan(s.sigmas[0])
    shares = [i / (steps - 1) for i in range(steps)]
    return [math.tan(share * low + (1 - share) * high) for share in shares]


def beta57(s, steps):
    quantiles = beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.5, 0.7)
    return [s.sigmas[int(t)] for t in np.rint(quantiles * (len(s.sigmas) - 1))]


def bong_tangent(s, steps):
    def part(count, slope, pivot, start, end):
        curve = [(2 / math.pi * math.atan(-slope * (x - pivot)) + 1) / 2 for x in range(count)]
        return [(v - curve[-1]) / (curve[0] - curve[-1]) * (start - end) + end for v in curve]

    steps += 2
    middle, pivot = int((steps * 0.6 + steps * 0.6) / 2), int(steps * 0.6)
    slope = 0.2 / (steps / 40)
    first = part(middle, slope, pivot, 1.0, 0.5)
    second = part(steps - middle, slope, pivot - middle, 0.5, 0.0)
    assert second[-1] == 0  # the clean picture
    return (first[:-1] + second)[:-1]


DEFINITIONS = {
    "comfy-simple": simple,
    "comfy-sgm-uniform": sgm_uniform,
    "comfy-ddim-uniform": ddim_uniform,
    "comfy-normal": normal,
    "comfy-linear-quadratic": linear_quadratic,
    "comfy-kl-optimal": kl_optimal,
    "comfy-beta57": beta57,
    "comfy-bong-tangent": bong_tangent,
}
#: Their definitions take levels of the table itself.
OF_TIMESTEPS = ("comfy-simple", "comfy-ddim-uniform", "comfy-beta57")
#: Whose first levels lie closer together than Stable Diffusion's timesteps.
CROWDED = ("comfy-linear-quadratic", 20, "sd")


def test_all_are_methods_of_the_table():
    assert set(DEFINITIONS) == {name for name in METHODS if name.startswith("comfy-")}
    for name in DEFINITIONS:
        assert METHODS[name].needs == "nothing"
        assert name.removeprefix("comfy-").replace("-", "_") in METHODS[name].summary


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [4, 8, 20])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_no_timestep_is_nearer_to_the_definition(name, steps, kind):
    sampling = Sampling(kind)
    places = sampling.places(DEFINITIONS[name](sampling, steps))
    found = np.array(timesteps_of(name, SCHEDULES[kind], steps, Options()))
    assert len(found) == len(places) == steps
    if name in OF_TIMESTEPS:
        np.testing.assert_array_equal(found, np.round(places))
    # Halfway between two timesteps both are as near. No timestep is taken twice.
    near = np.abs(found - places) <= 0.51
    crowded = np.append(False, np.diff(found) == -1) & (places > found)
    assert np.all(near | crowded)
    assert np.all(near) == ((name, steps, kind) != CROWDED)


@pytest.mark.parametrize("count", [1, 2, 10, 300])
def test_a_model_of_few_levels_is_still_of_its_kind(count):
    """Cut from above, as for image-to-image: a flow model's grids stay in its shares of noise."""
    for kind, levels in SCHEDULES.items():
        few = levels.below(count - 1)
        assert (len(few), few.kind) == (count, levels.kind)
        own = few.shares if kind == "flow" else few.sigmas
        wanted = np.linspace(own[-1] ** (1 / 7), own[0] ** (1 / 7), count) ** 7
        found = timesteps_of("karras", levels, count, Options(begin=count - 1))
        assert found == few.nearest(sigma_of(wanted) if kind == "flow" else wanted)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 600, 999, 1000])
def test_strict_and_within_range_on_flow_models(name, steps):
    for shift in (1.0, 12.0):
        schedule = Levels.from_diffusers(FlowMatchEulerDiscreteScheduler(shift=shift))
        grid = timesteps_of(name, schedule, steps, Options())
        assert len(grid) == steps
        assert all(a > b for a, b in itertools.pairwise(grid))
        assert 0 <= grid[-1] <= grid[0] < 1000


def test_ddim_uniform_is_diffusers_leading_with_an_offset():
    for steps in (1, 3, 7, 20, 333):
        theirs = timesteps({**CONFIG, "steps_offset": 1}, steps, allocation="leading")
        assert timesteps(CONFIG, steps, allocation="comfy-ddim-uniform") == theirs
    # ComfyUI draws with one step more where 7 does not divide 1000; it begins above ours.
    longer = ddim_uniform(Sampling("sd"), 7)
    assert len(longer) == 8
    ours = SCHEDULES["sd"].sigmas[timesteps(CONFIG, 7, allocation="comfy-ddim-uniform")]
    np.testing.assert_allclose(ours, longer[1:], rtol=1e-9)


def test_others_that_are_the_same_grid():
    for steps in (4, 8, 20, 125):
        trailing = timesteps(CONFIG, steps, allocation="trailing")
        assert timesteps(CONFIG, steps, allocation="comfy-simple") == trailing
        even = timesteps(CONFIG, steps, allocation="arctan")
        assert timesteps(CONFIG, steps, allocation="comfy-kl-optimal") == even


@pytest.mark.parametrize("steps", [3, 7, 30, 64])
@pytest.mark.parametrize("name", ["comfy-simple", "comfy-beta57"])
def test_step_counts_that_do_not_divide_the_timesteps(name, steps):
    sampling = Sampling("sd")
    places = sampling.places(DEFINITIONS[name](sampling, steps))
    np.testing.assert_allclose(timesteps(CONFIG, steps, allocation=name), places, atol=1e-6)


def test_bong_tangent_begins_where_sigma_is_1():
    first = timesteps(CONFIG, 8, allocation="comfy-bong-tangent")[0]
    assert SCHEDULES["sd"].sigmas[first] == pytest.approx(1, rel=2e-3)
    assert timesteps_of("comfy-bong-tangent", SCHEDULES["flow"], 8, Options())[0] == 999


@pytest.mark.parametrize("steps", [5, 8, 10, 20])
def test_what_the_book_says_to_choose_in_comfyui(steps):
    """sgm_uniform is diffusers' trailing, to a timestep; simple is a flow model's even steps."""
    even, theirs = (
        timesteps(SCHEDULERS["sd"], steps, allocation=name)
        for name in ("trailing", "comfy-sgm-uniform")
    )
    assert max(abs(a - b) for a, b in zip(even, theirs, strict=True)) <= 1
    flow = sigmas(SCHEDULERS["flow"], steps, allocation="comfy-simple")
    np.testing.assert_allclose(flow, 1 - np.arange(steps) / steps, atol=2e-3)
