"""The core against independent implementations, closed forms and properties."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib import ASDDIMScheduler, SensitivityProfile, sigmas, timesteps
from asddim_lib.core.allocation import (
    allocate,
    gradient_step,
    noise_weights,
    normalize,
    step_sizes,
    steps_per_timestep,
)
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.sensitivity import gradient_norm
from asddim_lib.evidence.profile import fingerprint

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SCHEDULE = NoiseSchedule.from_config(SD)


def profile(g=(1.0, 4.0), t=(900, 50), schedule=SCHEDULE):
    return SensitivityProfile(
        list(t),
        list(g),
        [0.1] * len(g),
        "frobenius",
        "vjp",
        1,
        4,
        0,
        7.5,
        "test",
        fingerprint(schedule),
        100,
    )


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_schedule_equals_diffusers(name, rescale):
    reference = DDIMScheduler(beta_schedule=name, rescale_betas_zero_snr=rescale)
    ours = NoiseSchedule.from_config(reference)
    np.testing.assert_allclose(
        ours.alphas_cumprod, reference.alphas_cumprod.double().numpy(), rtol=2e-3, atol=2e-6
    )


def test_schedule_known_values():  # Eq 4
    made = NoiseSchedule(np.array([0.1, 0.5, 1.0]))
    np.testing.assert_allclose(made.alphas_cumprod, [0.9, 0.45, 0.0], atol=1e-15)
    np.testing.assert_allclose(made.variance, [0.1, 0.55, 1.0])
    np.testing.assert_allclose(made.sigmas[:2], [1 / 3, (0.55 / 0.45) ** 0.5])
    np.testing.assert_allclose(
        made.finite_sigmas, [1 / 3, (0.55 / 0.45) ** 0.5, (2**24 - 1) ** 0.5]
    )
    np.testing.assert_allclose(made.snr, [9.0, 0.45 / 0.55, 0.0])
    assert len(made) == 3


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.0, 0.1], [0.1, 1.1], [0.1, float("nan")]])
def test_wrong_betas_are_refused(betas):
    with pytest.raises(ValueError, match="betas"):
        NoiseSchedule(np.array(betas))


def test_forward_steps_compose_to_the_closed_form():  # Eq 1
    mean, variance = torch.tensor(1.0, dtype=torch.float64), 0.0
    for t in range(500):
        mean, beta = SCHEDULE.forward_step(mean, t)
        variance = (1 - beta) * variance + beta
    assert mean.item() == pytest.approx(SCHEDULE.alphas_cumprod[499] ** 0.5, rel=1e-12)
    assert variance == pytest.approx(SCHEDULE.variance[499], rel=1e-12)


@pytest.mark.parametrize(("kind", "theirs"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_reverse_step_equals_ddpm(kind, theirs):  # Eq 2
    config = {k: SD[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    reference = DDPMScheduler(**config, clip_sample=False, variance_type=theirs)
    x, e = torch.randn(2, 4), torch.randn(2, 4)
    mean, _variance = SCHEDULE.reverse_step(x, e, 0)
    torch.testing.assert_close(reference.step(e, 0, x).prev_sample, mean, rtol=1e-4, atol=1e-5)
    assert float(reference._get_variance(600)) == pytest.approx(
        SCHEDULE.reverse_step(x, e, 600, kind)[1], rel=1e-3
    )


@st.composite
def problems(draw):
    """A noise schedule of some T, weights by some p and ε, a step-size factor by some g and λ, and a K that T allows."""
    size = draw(st.integers(1, 1500))
    steps = draw(st.integers(1, size))
    schedule = NoiseSchedule.from_config(
        {
            "num_train_timesteps": size,
            "beta_schedule": draw(
                st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])
            ),
        }
    )
    g = np.exp(
        draw(st.floats(0, 4)) * np.random.default_rng(draw(st.integers(0, 99))).normal(size=size)
    )
    weights = noise_weights(
        schedule.variance, draw(st.floats(0, 8)), draw(st.sampled_from([0.0, 1e-8, 1e-3, 1.0]))
    )
    return steps, weights, gradient_step(g, draw(st.floats(0, 50)), normalized=draw(st.booleans()))


@given(problem=problems(), reading=st.sampled_from(["intent", "density", "literal"]))
@settings(max_examples=200, deadline=None)
def test_every_grid_is_strict_and_has_its_ends(problem, reading):  # Eqs 11–13
    steps, weights, factor = problem
    grid = allocate(step_sizes(weights, factor, reading), steps)
    assert len(grid) == steps
    assert grid[0] == len(weights) - 1
    assert grid[-1] >= 0
    assert all(a > b for a, b in itertools.pairwise(grid))


@given(
    steps=st.integers(1, 100),
    lam=st.floats(0, 20),
    first=st.integers(0, 899),
    width=st.integers(10, 100),
    rise=st.floats(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_more_g_somewhere_never_thins_the_grid_there(steps, lam, first, width, rise, seed):
    g, weights = (
        np.random.default_rng(seed).lognormal(size=1000),
        noise_weights(SCHEDULE.variance, 0.5),
    )
    higher = g.copy()
    higher[first : first + width] *= rise
    counts = []
    for sensitivity, slack in (
        (g, 0),
        (higher, 1),
    ):  # a timestep may round to the other side of a border
        grid = allocate(step_sizes(weights, gradient_step(sensitivity, lam), "intent"), steps)
        counts.append(sum(first - slack <= t < first + width + slack for t in grid))
    assert counts[1] >= counts[0]


@given(low=st.floats(0, 3), more=st.floats(0, 3), steps=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_more_p_never_moves_a_timestep_up_in_noise(low, more, steps):
    a, b = (allocate(1 / noise_weights(SCHEDULE.variance, p), steps) for p in (low, low + more))
    assert all(y <= x for x, y in zip(a, b, strict=True))


def test_weights_known_values():  # Eqs 5–7, 9
    assert noise_weights(np.array([0.25]), 2.0, 0.0)[0] == 4.0
    assert normalize(np.arange(5.0)).sum() == pytest.approx(1)
    assert steps_per_timestep(np.arange(5.0), 20).sum() == pytest.approx(20)
    np.testing.assert_allclose(gradient_step(np.array([1.0, 3.0]), 2.0), [1 / 2, 1 / 4])
    assert timesteps(SD | {"timestep_spacing": "trailing"}, 7, allocation="uniform") == allocate(
        np.ones(1000), 7
    )
    assert sigmas(SD, 7)[-1] == 0


NOISE = [
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    {"trained_betas": np.geomspace(1e-4, 0.03, 1000).tolist()},
]
REST = [
    {
        "prediction_type": prediction,
        "steps_offset": offset,
        "set_alpha_to_one": bool(offset),
        "clip_sample": clip,
    }
    for prediction in ("epsilon", "v_prediction", "sample")
    for offset in (0, 1)
    for clip in (False, True)
]


@pytest.mark.parametrize("noise", NOISE, ids=lambda noise: "-".join(map(str, noise))[:40])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_uniform_equals_ddim_to_the_bit(spacing, noise):  # Eq 3
    """Every K from 1 to 1000, with prediction type, offset, clipping and η in turn: at both ends of the grid and at places between."""
    pairs = []
    for rest in REST:
        config = {**SD, **noise, **rest, "timestep_spacing": spacing}
        pairs.append((ASDDIMScheduler(**config, allocation="uniform"), DDIMScheduler(**config)))
    generator, compared = torch.Generator().manual_seed(0), 0
    for steps in range(1, 1001):
        ours, theirs = pairs[steps % len(pairs)]
        if spacing == "leading" and steps == 1000 and theirs.config.steps_offset:
            continue  # begins at timestep 1000, which is none
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        assert (
            ours.timesteps.tolist() == theirs.timesteps.tolist()[:steps]
        )  # K = 61, 103, … : diffusers' trailing grid has one more, −1
        x, output, noise_ = torch.randn(3, 2, 4, generator=generator)
        for k in {0, steps // 3, steps - 2, steps - 1} - {-1}:
            t, eta = theirs.timesteps[k], (0.0, 0.7, 1.0)[(steps + k) % 3]
            follows = int(theirs.timesteps[k + 1]) if k + 1 < steps else -1
            if max(int(t) - 1000 // steps, -1) != follows:
                continue  # where 1000 / K is no whole number, diffusers steps beside its own grid: see below
            if (
                theirs.config.rescale_betas_zero_snr
                and theirs.config.prediction_type == "epsilon"
                and int(t) == 999
            ):
                continue  # ᾱ is 0: pure noise says nothing of the picture, and both divide by it
            one, other = (
                scheduler.step(output, t, x, eta=eta, variance_noise=noise_).prev_sample
                for scheduler in (ours, theirs)
            )
            assert one.isfinite().all()
            assert torch.equal(one, other) or other.isnan().any(), (
                steps,
                k,
            )  # η = 1 from ᾱ = 0: diffusers takes the root of −1e-8
            compared += 1
    assert compared > (900 if spacing == "leading" else 40)


@pytest.mark.parametrize("steps", [3, 7, 30, 150])
def test_diffusers_steps_beside_its_own_trailing_grid_and_ours_does_not(steps):
    """It goes back by T // K whatever the grid. Ours lands on the next timestep, as an independent first-order solver does."""
    config = {**SD, "timestep_spacing": "trailing"}
    ours, theirs = ASDDIMScheduler(**config, allocation="uniform"), DDIMScheduler(**config)
    exact = DPMSolverMultistepScheduler(
        **{k: SD[k] for k in ("beta_start", "beta_end", "beta_schedule")},
        solver_order=1,
        final_sigmas_type="sigma_min",
    )
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    exact.set_timesteps(timesteps=ours.timesteps.tolist())
    ends = []
    for scheduler in (ours, theirs, exact):
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(steps), dtype=torch.float64)
        for t in ours.timesteps:
            x = scheduler.step(torch.sin(x), t, x).prev_sample
        ends.append(x)
    assert (ends[0] - ends[2]).norm() < 1e-5 * ends[2].norm()
    assert (ends[1] - ends[2]).norm() > 1e-4 * ends[2].norm()


@pytest.mark.parametrize("seed", range(20))
def test_random_grids_equal_first_order_dpm_solver(seed):
    draw = np.random.default_rng(seed)
    steps = int(draw.integers(1, 200))
    grid = sorted((int(t) for t in draw.choice(1000, steps, replace=False)), reverse=True)
    ours = ASDDIMScheduler(**SD)
    config = {k: SD[k] for k in ("beta_start", "beta_end", "beta_schedule")}
    theirs = DPMSolverMultistepScheduler(**config, solver_order=1, final_sigmas_type="sigma_min")
    ours.set_timesteps(timesteps=grid)
    theirs.set_timesteps(timesteps=grid)
    x = y = torch.randn(
        2, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    for t in grid:
        x = ours.step(torch.sin(x), t, x).prev_sample
        y = theirs.step(torch.sin(y), t, y).prev_sample
    assert (x - y).norm() < 1e-5 * y.norm()


@pytest.mark.parametrize("estimator", ["vjp", "difference"])
def test_gradient_norm_of_a_linear_map(estimator):  # Eq 8
    matrix = torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 16, dtype=torch.float64)
    value, error = gradient_norm(
        lambda x, t: x @ matrix.T,
        x,
        torch.tensor(5),
        estimator=estimator,
        probes=400,
        generator=torch.Generator().manual_seed(2),
    )
    assert torch.all((value - matrix.norm()).abs() < 4 * error)
    assert torch.all(error < 0.05 * value)


def test_profile_round_trip_and_refusals(tmp_path):
    made = profile()
    made.save(tmp_path / "p.json")
    assert SensitivityProfile.load(tmp_path / "p.json") == made
    (tmp_path / "p.json").write_text('{"timesteps": [1')
    with pytest.raises(ValueError, match="calibrate again"):
        SensitivityProfile.load(tmp_path / "p.json")
    with pytest.raises(ValueError, match="another noise schedule"):
        timesteps({"beta_schedule": "linear"}, 10, allocation="combined", profile=made)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"allocation": "magic"}, "allocation is magic"),
        ({"p": -1.0}, "p is -1.0"),
        ({"allocation": "combined"}, "profile is None"),
        ({"allocation": "combined", "profile": profile(), "lam": -1.0}, "lam is -1.0"),
        ({"reading": "free"}, "reading is free"),
    ],
)
def test_wrong_input_is_named(how, message):
    with pytest.raises(ValueError, match=message):
        timesteps(SD, **{"num_inference_steps": 10, **how})


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_wrong_eta_is_refused(eta):
    scheduler = ASDDIMScheduler(**SD)
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="eta is"):
        scheduler.step(
            torch.ones(1, 4),
            scheduler.timesteps[0],
            torch.ones(1, 4),
            eta=eta,
            variance_noise=torch.ones(1, 4),
        )


@pytest.mark.parametrize("wrong", [[5, 5], [1, 2], [1000], [3, -1], []])
def test_wrong_timesteps_are_refused(wrong):
    with pytest.raises(ValueError, match="timesteps"):
        ASDDIMScheduler(**SD).set_timesteps(timesteps=wrong)


def test_a_network_that_fails_is_named_with_step_timestep_and_sigma():
    scheduler = ASDDIMScheduler(**SD)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[3]
    scheduler.step(torch.ones(1, 4), scheduler.timesteps[2], torch.ones(1, 4))
    with pytest.raises(ValueError, match=rf"step 3 \(timestep {int(t)}, σ 0\.\d+\)"):
        scheduler.step(torch.tensor([[1.0, float("inf"), 0, 0]]), t, torch.ones(1, 4))
    scheduler.step(
        torch.ones(1, 4), t, torch.ones(1, 4)
    )  # named once: a sound output is taken again


@pytest.mark.parametrize("stop", [10, 6])
def test_on_an_accelerator_a_failure_is_named_when_the_run_is_done(monkeypatch, stop):
    monkeypatch.setattr(ASDDIMScheduler, "_has_values", staticmethod(lambda device: False))
    scheduler = ASDDIMScheduler(**SD)
    scheduler.set_timesteps(10)

    def run():
        for number, t in enumerate(scheduler.timesteps[:stop]):
            scheduler.step(
                torch.full((1, 4), float("nan") if number == 4 else 1.0), t, torch.ones(1, 4)
            )
        assert stop == 6  # denoising_end: the last steps are another pipeline's
        scheduler.set_timesteps(10)

    with pytest.raises(ValueError, match=rf"step 4 \(timestep {int(scheduler.timesteps[4])}, σ"):
        run()
    scheduler.set_timesteps(10)  # named once


def test_one_timestep_a_sample_equals_one_at_a_time():
    scheduler = ASDDIMScheduler(**SD)
    scheduler.set_timesteps(12)
    x, e = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = scheduler.timesteps[[0, 5, 11]]
    together = scheduler.step(e, t, x).prev_sample
    apart = torch.cat(
        [scheduler.step(e[i : i + 1], t[i], x[i : i + 1]).prev_sample for i in range(3)]
    )
    torch.testing.assert_close(together, apart)


def test_a_profile_made_for_something_else_is_refused_unless_overridden(tmp_path):
    made = profile()
    made.save(tmp_path / "p.json")
    load = lambda **how: SensitivityProfile.load(tmp_path / "p.json", **how)  # noqa: E731
    assert load(model="test", schedule=SCHEDULE, guidance_scale=7.5) == made
    other = NoiseSchedule.from_config({})
    for name, value in (("model", "sd15"), ("schedule", other), ("guidance_scale", 3.0)):
        with pytest.raises(ValueError, match=f"override '{name}'"):
            load(**{name: value})
        assert load(**{name: value}, override=(name,)) == made
    with pytest.raises(ValueError, match="override is steps"):
        load(override=("steps",))


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(1e-6, 1e6),
    steps=st.integers(1, 200),
    reading=st.sampled_from(["intent", "density", "literal"]),
    seed=st.integers(0, 2**16),
)
def test_units_of_g_and_of_the_noise_weight_do_not_matter(scale, steps, reading, seed):  # Eqs 6, 9
    g = np.random.default_rng(seed).lognormal(size=1000)
    weights = noise_weights(SCHEDULE.variance, 0.5)
    one, other = (
        allocate(step_sizes(w, gradient_step(f, 1.0), reading), steps)
        for w, f in ((weights, g), (scale * weights, scale * g))
    )
    assert np.abs(np.array(one) - other).max() <= 1  # rounding at a tie may fall either way
