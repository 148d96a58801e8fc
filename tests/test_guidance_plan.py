"""A guidance plan: the scale of each step, and what it refuses."""

import inspect
import json
import math
from fractions import Fraction

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.ideogram4.pipeline_ideogram4 import _logit_normal_sigmas
from hypothesis import example, given
from hypothesis import strategies as st

from asddim_lib import ASDDIMScheduler
from asddim_lib.grids.table import METHODS
from asddim_lib.guidance.law import SOLVERS, growth
from asddim_lib.guidance.plan import PUBLISHED, GuidancePlan
from asddim_lib.guidance.steps import steps_of
from asddim_lib.pipeline.run import Run
from tests import tiny
from tests.refusals import refuses

SIGMAS = [14.6, 6.0, 2.2, 0.9, 0.2, 0.0]
falling = st.lists(st.floats(0.01, 150), min_size=2, max_size=12, unique=True).map(
    lambda levels: [*sorted(levels, reverse=True), 0.0]
)


GRIDS = [one.name for one in METHODS.values() if one.needs == "nothing" and one.kind != "flow"]


def test_without_arguments_it_is_the_pipeline_s_own_scale():
    assert GuidancePlan.constant().at(SIGMAS, 7.5) == [7.5] * 5


def test_the_cap_is_c_over_the_step_s_shrinking():
    ratios = np.array(SIGMAS[1:]) / SIGMAS[:-1]
    wanted = np.minimum(7.5, np.maximum(1, 2 / (1 - ratios)))
    assert GuidancePlan.capped().at(SIGMAS, 7.5) == pytest.approx(wanted)
    above = GuidancePlan.capped(above=1.0).at(SIGMAS, 7.5)
    assert above == pytest.approx([*wanted[:3], 7.5, 7.5])


def test_a_late_plan_is_not_guided_above_its_sigma_and_capped_below():
    sigmas = [10.0, 4.0, 1.5, 1.0, 0.0]
    plan = GuidancePlan.named("late-1.5")
    assert plan.at(sigmas, 7.5) == [1, 1, *GuidancePlan.capped().at(sigmas, 7.5)[2:]]


def test_a_name_may_have_the_cap_s_c():
    for name, c in (("capped", 2.0), ("capped-1", 1.0), ("capped-1.5", 1.5), ("capped-2", 2.0)):
        assert GuidancePlan.named(name) == GuidancePlan.capped(c)


@given(sigmas=falling, scale=st.floats(1, 20), solver=st.sampled_from(["euler", "ancestral"]))
def test_no_capped_step_is_unstable_and_none_is_raised(sigmas, scale, solver):
    scales = GuidancePlan.capped(2.0).at(sigmas, scale, solver)
    for before, after, own in zip(sigmas[:-1], sigmas[1:], scales, strict=True):
        assert 1 <= own <= scale
        assert growth(after / before, own, solver) <= 1 + 1e-9 or own == 1


def test_a_first_step_from_pure_noise_bears_c():
    levels = [math.inf, 3.0, 1.0, 0.0]
    for solver in ("euler", "dpm++", "unipc"):
        assert GuidancePlan.capped(1.5).at(levels, 7.5, solver)[0] == 1.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_higher_c_caps_less_for_each_solver(solver):
    low, high = (GuidancePlan.capped(c).at(SIGMAS, 7.5, solver) for c in (1.0, 2.0))
    assert all(a <= b for a, b in zip(low, high, strict=True))
    assert low != high


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("allocation", GRIDS)
def test_each_grid_takes_a_cap_also_where_its_last_step_stays_at_one_sigma(allocation, alone):
    """diffusers' DDIM ends at its lowest σ unless `set_alpha_to_one`, and some grids reach it."""
    scheduler = ASDDIMScheduler(allocation=allocation, set_alpha_to_one=alone)
    for steps in (2, 5, 20):
        scheduler.set_timesteps(steps)
        set_steps = steps_of(scheduler)
        for solver in SOLVERS:
            scales = GuidancePlan.capped().at(set_steps.sigmas, 7.5, solver)
            assert len(scales) == steps
            assert all(1 <= scale <= 7.5 for scale in scales)


def test_an_interval_is_in_sigma_whatever_the_grid():
    plan = GuidancePlan.interval(5.42, 0.28)
    assert plan.at(SIGMAS, 7.5) == [1, 1, 7.5, 7.5, 1]
    assert plan.at([14.6, 5.42, 0.28, 0.0], 7.5) == [1, 7.5, 1]
    assert GuidancePlan.interval(5.42).at(SIGMAS, 7.5) == [1, 1, 7.5, 7.5, 7.5]
    assert GuidancePlan.named("interval-sdxl") == plan


def test_a_ramp_rises_from_none_and_its_mean_is_the_scale():
    times = np.linspace(1, 0, 1001)
    for ramp in ("linear", "cosine"):
        scales = GuidancePlan(ramp=ramp).at(np.arange(1001, -1, -1.0), 7.5, times=times)
        assert scales == sorted(scales)
        assert scales[0] == 1
        assert np.mean(7.5 * (2 * (1 - times))) == pytest.approx(7.5, rel=1e-3)
        assert scales[-1] == pytest.approx(15)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_published_plan_is_guided_somewhere(name):
    scales = GuidancePlan.named(name).at([80, 20, 5, 2, 1, 0.5, 0.1, 0], 6.0)
    assert max(scales) > 1


#: Ideogram 4's sampler presets: steps, how many of the last ones are lowered, μ and spread.
IDEOGRAM = ((48, 3, 0.0, 1.5), (20, 2, 0.0, 1.75), (12, 1, 0.5, 1.75))


@pytest.mark.parametrize(("steps", "last", "mu", "std"), IDEOGRAM)
def test_ideogram_s_plan_is_its_list_for_each_of_its_step_counts(steps, last, mu, std):
    shares = _logit_normal_sigmas(steps, mu, std).double().numpy()
    sigmas = [*(shares / (1 - shares)), 0.0]
    scales = GuidancePlan.named("ideogram-4").at(sigmas, 1.0)
    assert scales == [7.0] * (steps - last) + [3.0] * last
    if steps == 48:
        default = inspect.signature(diffusers.Ideogram4Pipeline.__call__).parameters
        assert scales == list(default["guidance_schedule"].default)


def test_ideogram_s_plan_draws_by_its_own_arithmetic():
    """As its code has it: v = g · v_c + (1 − g) · v_u, and z moves by v (s − t)."""
    pipe, how = tiny.sd3()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe.set_progress_bar_config(disable=True)
    steps, last, mu, std = IDEOGRAM[2]
    sigmas = _logit_normal_sigmas(steps, mu, std)
    start = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    call = {"prompt": "a red boot", "sigmas": sigmas.tolist(), "latents": start, **how}
    with GuidancePlan.named("ideogram-4").on(pipe):
        drawn = pipe(guidance_scale=4.0, output_type="latent", **call).images
    with torch.no_grad():
        c, u, c_pooled, u_pooled = pipe.encode_prompt("a red boot", None, None)
        z, begins = start, [*sigmas.tolist(), 0.0]
        for k, g in enumerate([7.0] * (steps - last) + [3.0] * last):
            given = {"hidden_states": z, "timestep": torch.tensor([1000 * begins[k]])}
            v_c, v_u = (
                pipe.transformer(encoder_hidden_states=e, pooled_projections=p, **given).sample
                for e, p in ((c, c_pooled), (u, u_pooled))
            )
            z = z + (g * v_c + (1 - g) * v_u) * (begins[k + 1] - begins[k])
    torch.testing.assert_close(drawn, z, rtol=1e-4, atol=1e-4)


@given(
    scales=st.lists(st.floats(1, 12), min_size=1, max_size=30),
    steps=st.integers(1, 30),
)
def test_a_stretched_list_has_the_scale_at_each_step_s_end(scales, steps):
    at = GuidancePlan(scales=scales, stretched=True).at(np.arange(steps, -1, -1.0), 5.0)
    places = [math.ceil(Fraction(k + 1, steps) * len(scales)) - 1 for k in range(steps)]
    assert at == [scales[place] for place in places]
    if steps == len(scales):
        assert at == GuidancePlan.steps(scales).at(np.arange(steps, -1, -1.0), 5.0)


plans = st.builds(
    GuidancePlan,
    ramp=st.sampled_from([None, "linear", "cosine"]),
    c=st.none() | st.floats(0.1, 2),
    above=st.floats(0, 5),
    gate=st.none() | st.floats(0.5, 1),
    zero_steps=st.integers(0, 2),
    bands=st.none() | st.just(((5.42, 1.0), (0.28, None), (0.0, 1.0))),
)


@given(plan=plans)
@example(plan=GuidancePlan.named("ideogram-4"))
def test_a_plan_survives_its_file(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    plan.save(folder)
    assert GuidancePlan.load(folder) == plan
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("c", lambda: GuidancePlan.capped(0)),
        ("c", lambda: GuidancePlan.capped(2.5)),
        ("above", lambda: GuidancePlan.capped(above=-1)),
        ("scales", lambda: GuidancePlan.steps([7.5, 0.5])),
        ("scales", lambda: GuidancePlan.steps([7.5] * 4).at(SIGMAS, 7.5)),
        ("bands", lambda: GuidancePlan(bands=((0.3, 1.0), (5.0, 7.5)))),
        ("bands", lambda: GuidancePlan(scales=(3.0,), bands=((0.0, 1.0),))),
        ("sigma_high", lambda: GuidancePlan.interval(0.28, 5.42)),
        ("stretched", lambda: GuidancePlan(stretched=True)),
        ("stretched", lambda: GuidancePlan(scales=(), stretched=True)),
        ("ramp", lambda: GuidancePlan(ramp="square")),
        ("gate", lambda: GuidancePlan(gate=2.0)),
        ("zero_steps", lambda: GuidancePlan(zero_steps=-1)),
        ("guidance_plan", lambda: GuidancePlan.named("caped")),
        ("guidance_plan", lambda: GuidancePlan.named("capped-")),
        ("guidance_plan", lambda: GuidancePlan.named("capped-nan")),
        ("guidance_plan", lambda: GuidancePlan.named("capped-1.5-0.2")),
        ("c", lambda: GuidancePlan.named("capped-0")),
        ("c", lambda: GuidancePlan.named("capped-2.5")),
        ("solver", lambda: GuidancePlan.capped().at(SIGMAS, 7.5, None)),
        ("d", lambda: GuidancePlan.from_dict({"d": 1})),
        ("folder", lambda: GuidancePlan.load("/nowhere")),
    ],
)
def test_wrong_input_is_one_line_that_names_it(name, wrong):
    with refuses(name):
        wrong()


def test_a_plan_is_put_on_once_and_taken_off_once(small):
    plan = GuidancePlan.capped()
    plan.apply(small)
    with refuses("pipe"):
        plan.apply(small)
    plan.remove(small)
    with refuses("pipe"):
        plan.remove(small)


def test_a_scheduler_set_under_a_plan_is_refused(small):
    own = small.scheduler
    with GuidancePlan.capped().on(small):
        small.scheduler = own
        with refuses("pipe.scheduler"):
            small("a red boot", num_inference_steps=2)


def drawn(pipe, seeds, plan, **how):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with plan.on(pipe):
        call = {"num_inference_steps": 6, "guidance_scale": 7.5, "output_type": "latent", **how}
        return pipe(prompt=["a red boot"] * len(seeds), generator=generators, **call).images


def test_a_gated_picture_does_not_depend_on_its_batch(pipe):
    plan = GuidancePlan(gate=0.97)
    together = drawn(pipe, [0, 1, 2], plan)
    for k in range(3):
        torch.testing.assert_close(together[k], drawn(pipe, [k], plan)[0], rtol=1e-4, atol=1e-4)


def test_an_unguided_pipeline_is_refused_in_its_first_step(small):
    with refuses("pipe"):
        drawn(small, [0], GuidancePlan.capped(), guidance_scale=1.0)


def test_a_run_draws_with_its_plan_and_is_another_run(pipe):
    plan = GuidancePlan.interval(2.0)
    plain, guided = (
        Run(pipe, ["a red boot"] * 2, [0, 1], 7.5, 1, guidance_plan=p) for p in (None, plan)
    )
    assert plain.inputs != guided.inputs
    generators = [torch.Generator().manual_seed(0)]
    with plan.on(pipe) as rows:
        wanted = pipe(
            "a red boot",
            generator=generators,
            num_inference_steps=4,
            guidance_scale=7.5,
            output_type="latent",
        )
    drawn = guided.pictures(num_inference_steps=4)
    assert torch.equal(drawn.latents[:1], wanted.images.float())
    assert plain.rows is None
    assert guided.rows.count == 2 * rows.count - 1  # it learns how the pipeline guides only once
    assert (rows.learned, guided.rows.learned) == (1, 1)
    assert drawn.rows == 2 * (rows.count - 1)
    assert plain.pictures(num_inference_steps=1).rows is None
    assert not torch.equal(drawn.latents, plain.pictures(num_inference_steps=4).latents)


def test_no_path_is_recorded_under_a_plan(small):
    with refuses("guidance_plan"):
        Run(small, ["a red boot"], guidance_plan=GuidancePlan.capped()).path(4)


def test_what_was_learned_is_dropped_with_another_scale_or_number_of_pictures(pipe):
    def draw(seeds, scale):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        call = {"num_inference_steps": 3, "guidance_scale": scale, "output_type": "latent"}
        return pipe(["a red boot"] * len(seeds), generator=generators, **call).images

    wanted = draw([0, 1], 2.0)
    with GuidancePlan(bands=((0.0, 2.0),)).on(pipe):
        for seeds, scale in (([0], 7.5), ([0, 1], 7.5), ([0], 4.0), ([0], 7.5)):
            found = draw(seeds, scale)
            torch.testing.assert_close(found, wanted[: len(seeds)], rtol=1e-4, atol=1e-4)


def test_a_scale_that_a_callback_changes_is_followed(pipe):
    """The pipeline guides by another scale from its second step on; the plan's stays."""

    def change(pipe, step, timestep, values):
        pipe._guidance_scale = 5.0
        return values

    def draw(scale, **more):
        generators = [torch.Generator().manual_seed(0)]
        call = {"num_inference_steps": 4, "guidance_scale": scale, "output_type": "latent"}
        return pipe(["a red boot"], generator=generators, **call, **more).images

    wanted = draw(2.0)
    with GuidancePlan(bands=((0.0, 2.0),)).on(pipe):
        found = draw(7.5, callback_on_step_end=change)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_cap_on_a_solver_without_a_known_law_names_the_scheduler(small):
    own = small.scheduler
    small.scheduler = diffusers.PNDMScheduler.from_config(own.config)
    with refuses("pipe.scheduler"):
        drawn(small, [0], GuidancePlan.capped())
    assert drawn(small, [0], GuidancePlan.interval(2.0)).isfinite().all()


def test_a_zero_start_is_refused_where_the_model_is_no_flow(small):
    with refuses("zero_steps"):
        GuidancePlan.named("zero-start").apply(small)
    assert drawn(small, [0], GuidancePlan.constant()).isfinite().all()
