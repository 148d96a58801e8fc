"""Published grids: against other publications of the same grid, and laid on their own models."""

import re
from math import exp

import numpy as np
import pytest
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import (
    _logit_normal_sigmas,
    _resolution_aware_mu,
)

import asddim_lib
from asddim_lib.grids.published import PUBLISHED
from asddim_lib.grids.rules import IDEOGRAM, ideogram, linear_quadratic
from asddim_lib.grids.table import METHODS, Options, timesteps_of
from asddim_lib.levels import Levels
from experiments import rivals as rivals  # its grids are in the table then
from tests.refusals import refuses

SD = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
METHOD = {name: name.removesuffix("-5").removesuffix("-8") for name in PUBLISHED}
FLOW = [name for name, one in PUBLISHED.items() if one.kind == "flow"]


def model(one):
    """The scheduler of a model like the one that a grid was published for."""
    if one.kind == "vp":
        return SD
    return FlowMatchEulerDiscreteScheduler(shift=one.shift or 1.0)


def table(scheduler):
    """diffusers' own levels, rising: log σ, float64."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        s = scheduler.sigmas.double().numpy()[::-1]
    else:
        bars = scheduler.alphas_cumprod.double().numpy()
        return np.log((1 - bars) / bars) / 2
    with np.errstate(divide="ignore"):
        return np.log(s) - np.log1p(-s)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_says_where_it_stands_and_what_for(name):
    one = PUBLISHED[name]
    assert one.name == name
    assert re.search(r"\b20\d\d\b", one.source)
    assert re.search(r"arXiv:\d{4}\.\d{5}|github\.com/\w+/\w+", one.source)
    assert one.kind in ("vp", "flow")
    assert one.numbers in ("sigmas", "flow sigmas", "fractions of t")
    assert (one.numbers == "flow sigmas") == (one.kind == "flow")
    assert all((one.model, one.checked, one.resolution, one.guidance, one.solver))
    assert (one.shift is None) or one.kind == "flow"
    levels = np.array(one.levels)
    assert np.all(np.diff([*levels, one.end]) < 0)
    assert one.end >= 0
    assert one.numbers == "sigmas" or levels[0] <= 1
    method = METHODS[METHOD[name]]
    assert method.needs == "nothing"
    words = re.split(r"[ ,]+", one.model.replace("Stable Diffusion 1", "SD 1"))
    assert words[0] in method.summary or "SDXL" in method.summary  # whose model it is
    assert ("(flow" in method.summary) == (one.kind == "flow")


def test_every_project_s_method_has_a_list():
    lists = {name for name, one in METHODS.items() if one.kind}
    assert set(METHOD.values()) == lists - {"ideogram-4"}  # a formula for any number of steps
    assert {name for name in METHODS if name.startswith("ays-")} <= set(PUBLISHED)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in ("ays-svd",)])
def test_at_its_own_length_no_level_of_its_model_is_nearer(name):
    one, scheduler = PUBLISHED[name], model(PUBLISHED[name])
    found = timesteps_of(METHOD[name], Levels.from_diffusers(scheduler), one.steps, Options())
    levels = table(scheduler)
    if one.numbers == "fractions of t":
        distances = np.abs(np.array(found) + 1 - 1000 * np.array(one.levels))
        assert distances.max() <= 0.5 + 1e-9  # half a timestep
        return
    for t, level in zip(found, one.levels, strict=True):
        if one.kind == "flow":
            wanted = np.log(level) - np.log1p(-level) if level < 1 else np.inf
        else:
            wanted = np.log(level)
        if wanted >= levels[-2:].mean():  # as noisy as the model goes, or more
            assert t == len(levels) - 1
        else:
            inside = levels[:-1] if one.kind == "flow" else levels  # the last one is infinite
            least = np.abs(inside - wanted).min()
            assert abs(levels[t] - wanted) == pytest.approx(least, abs=1e-4)


def test_those_that_begin_above_a_model_s_noise_begin_at_its_top():
    sd = Levels.from_diffusers(SD)
    assert timesteps_of("ays-svd", sd, 10, Options())[:3] == [999, 998, 997]  # σ 700, 54.5, 15.9
    found = timesteps_of("ltx2", sd, 8, Options(other_model=True))
    assert found[:4] == [999, 998, 997, 996]


@pytest.mark.parametrize("name", sorted(set(METHOD.values())))
def test_a_grid_of_another_kind_of_model_is_used_only_if_asked_for(name):
    """Six of eight steps of LTX-2's would begin at what Stable Diffusion takes for pure noise."""
    kind = METHODS[name].kind
    assert kind == PUBLISHED.get(name, PUBLISHED["gits-sd15-5"]).kind
    models = {"vp": SD, "flow": FlowMatchEulerDiscreteScheduler(), "edm": EDMEulerScheduler()}
    for other, scheduler in models.items():
        how = {"allocation": name}
        if other == kind:
            assert len(asddim_lib.sigmas(scheduler, 8, **how)) >= 8
            continue
        with refuses("allocation"):
            asddim_lib.sigmas(scheduler, 8, **how)
        anyway = asddim_lib.sigmas(scheduler, 8, other_model=True, **how)
        wanted = Levels.from_diffusers(scheduler).finite_sigmas
        assert wanted.min() / 2 <= anyway[0] <= wanted.max()


def test_gits_lists_are_ld3_s():
    """LD3 publishes the same grids as σ (utils.py, ipndm), rounded to four places."""
    theirs = {
        "gits-sd15-5": [14.6146, 4.39, 1.5286, 0.6526, 0.2667],
        "gits-sd15-8": [14.6146, 6.4477, 2.7391, 1.4467, 0.8319, 0.4936, 0.2667, 0.1258],
    }
    for name, printed in theirs.items():
        np.testing.assert_allclose(PUBLISHED[name].sigmas(), printed, rtol=2e-3)


def test_gits_takes_the_list_that_is_nearest_in_length():
    schedule = Levels.from_diffusers(SD)
    for steps, name in ((3, "gits-sd15-5"), (5, "gits-sd15-5"), (6, "gits-sd15-5")):
        assert nearest_of(name, schedule, steps) == timesteps_of(
            "gits-sd15", schedule, steps, Options()
        )
    for steps in (7, 8, 20):
        wanted = nearest_of("gits-sd15-8", schedule, steps)
        assert timesteps_of("gits-sd15", schedule, steps, Options()) == wanted


def nearest_of(name, schedule, steps):
    """A list's K levels by their places on the schedule's own log σ, where none come twice."""
    wanted = np.log(PUBLISHED[name].sigmas(steps))
    return [int(np.abs(np.log(schedule.sigmas) - level).argmin()) for level in wanted]


def test_optimal_stepsize_for_flux_has_the_shift_of_a_square_megapixel():
    """FLUX's shift is e^1.15 at 4096 tokens. Without it the nodes are multiples of 1/200."""
    shifted, shift = np.array(PUBLISHED["oss-flux"].levels), exp(1.15)
    even = shifted / (shift - (shift - 1) * shifted)
    np.testing.assert_allclose(even, np.round(even * 200) / 200, atol=3e-4)
    assert PUBLISHED["oss-flux"].shift == pytest.approx(shift)


def test_optimal_stepsize_for_wan_sums_to_what_comfyui_s_copy_does():
    levels = PUBLISHED["oss-wan"].levels
    assert len(levels) == 20
    assert sum(levels) == pytest.approx(17.955, abs=1e-9)


def test_ltx2_is_a_linear_quadratic_schedule():
    np.testing.assert_allclose(PUBLISHED["ltx2"].levels, linear_quadratic(8), rtol=1e-12)


def test_wan_lightning_is_an_even_grid_after_diffusers_shift():
    solver = FlowMatchEulerDiscreteScheduler(shift=5.0)
    solver.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    levels = np.array(PUBLISHED["wan-lightning"].levels)
    np.testing.assert_allclose(levels, solver.sigmas[:-1], rtol=1e-6)
    np.testing.assert_allclose(levels * 1000, [1000, 937.5, 833.3333, 625], rtol=1e-6)


@pytest.mark.parametrize("steps", IDEOGRAM)
def test_ideogram_4_s_grid_is_the_one_that_diffusers_sets(steps):
    mean, spread = IDEOGRAM[steps]
    wanted = _logit_normal_sigmas(steps, mean, spread).numpy()
    np.testing.assert_allclose(ideogram(steps), wanted, rtol=1e-6)
    assert _resolution_aware_mu(512, 512, mean) == mean


@pytest.mark.parametrize("name", PUBLISHED)
def test_between_the_published_levels_it_is_log_linear(name):
    one = PUBLISHED[name]
    finer = one.sigmas(2 * one.steps - 1)
    np.testing.assert_allclose(finer[::2], one.sigmas(), rtol=1e-9)
    if one.kind == "vp":
        np.testing.assert_allclose(finer[1::2] ** 2, finer[:-1:2] * finer[2::2], rtol=1e-9)
    else:  # in the share of noise, as Optimal Stepsize's own node does it
        s = np.array(one.levels)
        between = np.sqrt(s[:-1] * s[1:])
        np.testing.assert_allclose(finer[1::2], between / (1 - between), rtol=1e-9)


@pytest.mark.parametrize("name", ["ays-sd15", "ays-sdxl", "ays-deepfloyd"])
@pytest.mark.parametrize("steps", [4, 10, 25])
def test_align_your_steps_is_laid_by_the_same_numbers(name, steps):
    schedule, sigmas = Levels.from_diffusers(SD), PUBLISHED[name].sigmas(steps)
    found = timesteps_of(name, schedule, steps, Options())
    inside = (sigmas > schedule.sigmas[0]) & (sigmas < schedule.sigmas[-1])
    wanted = np.array(nearest_of(name, schedule, steps))
    np.testing.assert_array_equal(np.array(found)[inside], wanted[inside])


def test_flow_models_spend_early_and_align_your_steps_late():
    above = {}
    for name in PUBLISHED:
        found = PUBLISHED[name].sigmas()
        assert np.all(np.diff(found) < 0)
        above[name] = float(np.mean(found > 0.82 / 0.18))
    assert above["oss-flux"] == 0.8  # 8 of 10 begin at s of 0.82 or more
    assert min(above[name] for name in FLOW if name != "wan-lightning") >= 0.75
    assert above["ays-sd15"] == above["ays-sdxl"] == 0.2
    assert PUBLISHED["ltx2"].sigmas()[0] == np.inf  # s = 1
