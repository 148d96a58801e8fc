"""κ, the largest eigenvalue of σ ∂ε/∂y: measured, kept in a profile, and used by a plan."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from asddim_lib import Profile, calibrate
from asddim_lib.cli import app
from asddim_lib.errors import WrongUse
from asddim_lib.evidence.path import Trajectory
from asddim_lib.guidance.law import SOLVERS, growth, largest_kappa
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.guidance.steps import steps_of
from asddim_lib.pipeline.run import Run
from asddim_lib.sensitivity import largest_eigenvalue
from experiments.mixtures import GaussianMixture
from tests.refusals import refuses
from tests.test_profile import PROFILE
from tests.zoo import ZOO

PROMPTS = ["a red boot on a white ground", "two blue bags on a tan ground", "a pink dress"]
SIGMAS = np.geomspace(20, 0.05, 24)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def alpha(sigma):
    return 1 / (1 + sigma**2)


class Guided:
    """ε with guidance w, of a mixture without the prompt and one of its components with it."""

    def __init__(self, scale, spread=0.7, std=(0.2, 0.5, 0.3)):
        means = spread * torch.randn(3, 5, generator=generator(1), dtype=torch.float64)
        self.without, self.scale = GaussianMixture(means, list(std)), scale
        self.prompt = GaussianMixture(means[:1], std[0])

    def both(self, name, x, sigma):
        u, c = (getattr(one, name)(x, alpha(sigma)) for one in (self.without, self.prompt))
        return u + self.scale * (c - u)

    def kappa(self, x, sigma):
        """σ ∂ε/∂y's largest eigenvalue, exactly."""
        matrix = self.both("jacobian", x, sigma) * sigma / (1 + sigma**2) ** 0.5
        return torch.linalg.eigvalsh(matrix)[:, -1]

    def measured(self, x, sigma, probes=6):
        eps = lambda x, t: self.both("eps", x, float(t))  # noqa: E731
        value, _ = largest_eigenvalue(eps, x, sigma, probes=probes, generator=generator())
        return value * sigma / (1 + sigma**2) ** 0.5

    def path(self, count=16):
        """Noisy samples of the prompt's data at each of the σ."""
        clean = self.prompt.sample(count, generator(2))
        noise = torch.randn(clean.shape, generator=generator(3), dtype=torch.float64)
        return [(clean + sigma * noise) / (1 + sigma**2) ** 0.5 for sigma in SIGMAS]


def with_kappa(values, scale, sigmas=SIGMAS):
    """A profile of these κ."""
    timesteps = list(range(len(sigmas), 0, -1))
    ones = [1.0] * len(sigmas)
    kappa = {"scale": scale, "sigmas": list(sigmas), "values": list(values)}
    return replace(PROFILE, timesteps=timesteps, g=ones, stderr=ones, kappa=kappa)


@pytest.mark.parametrize("lowest", [-30.0, 0.1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_eigenvalue_is_not_the_largest_in_size(symmetric, lowest):
    base, _ = torch.linalg.qr(torch.randn(40, 40, generator=generator(), dtype=torch.float64))
    values = torch.cat([torch.tensor([7.5, lowest]), torch.linspace(0.5, 1.2, 38)]).double()
    if not symmetric:
        base = base + 0.1 * torch.randn(40, 40, generator=generator(1), dtype=torch.float64)
    matrix = base @ torch.diag(values) @ torch.linalg.inv(base)
    eps = lambda x, t: x @ matrix.T  # noqa: E731
    x = torch.randn(3, 40, generator=generator(2), dtype=torch.float64)
    found, direction = largest_eigenvalue(eps, x, 0, probes=10, generator=generator(3))
    assert found.numpy() == pytest.approx([7.5] * 3, abs=1e-4)
    assert (direction @ matrix.T - 7.5 * direction).abs().max() < 1e-2
    assert direction.norm(dim=1).numpy() == pytest.approx(np.ones(3))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_more_products_than_dimensions_are_exact(size):
    matrix = torch.diag(torch.tensor([-3.0, -2.0, -5.0], dtype=torch.float64)[:size])
    x = torch.ones(2, size, dtype=torch.float64)
    found, _ = largest_eigenvalue(lambda x, t: x @ matrix, x, 0, probes=9, generator=generator())
    assert found.numpy() == pytest.approx(2 * [float(matrix.diag().max())], abs=1e-6)


def test_a_prompt_s_start_does_not_depend_on_its_batch():
    guided = Guided(7.5)
    x = guided.path(3)[10]
    eps = lambda x, t: guided.both("eps", x, 1.0)  # noqa: E731
    one = [
        largest_eigenvalue(eps, x[n : n + 1], 0, probes=3, generator=[generator(n)])[0]
        for n in range(3)
    ]
    whole, _ = largest_eigenvalue(eps, x, 0, probes=3, generator=[generator(n) for n in range(3)])
    assert torch.cat(one).numpy() == pytest.approx(whole.numpy())


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 4.0, 20.0])
def test_for_gaussians_it_is_the_closed_form(scale, sigma):
    broad, narrow = 3.0, 0.1
    guided = Guided(scale)
    guided.without = GaussianMixture(torch.zeros(1, 5), broad)
    guided.prompt = GaussianMixture(torch.ones(1, 5), narrow)
    x = torch.randn(4, 5, generator=generator(), dtype=torch.float64)
    wanted = scale / (1 + (narrow / sigma) ** 2) - (scale - 1) / (1 + (broad / sigma) ** 2)
    assert guided.measured(x, sigma).numpy() == pytest.approx([wanted] * 4, abs=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0, 7.5])
def test_for_mixtures_it_is_the_exact_jacobian_s(scale):
    guided = Guided(scale)
    for sigma, x in zip(SIGMAS[::4], guided.path()[::4], strict=True):
        exact = guided.kappa(x, sigma).numpy()
        assert guided.measured(x, sigma).numpy() == pytest.approx(exact, abs=1e-3)


@settings(deadline=None)
@given(scale=st.floats(1.5, 15), part=st.floats(0, 1), spread=st.floats(0.1, 5))
def test_kappa_is_at_most_one_without_guidance_and_below_its_chord(scale, part, spread):
    """So 1 + ρ (w − 1) bounds it for every w up to the scale that it was measured at."""
    w = 1 + part * (scale - 1)
    for sigma, x in list(zip(SIGMAS, Guided(scale, spread).path(), strict=True))[::6]:
        assert (Guided(1.0, spread).kappa(x, sigma) <= 1 + 1e-9).all()
        rho = (Guided(scale, spread).kappa(x, sigma) - 1) / (scale - 1)
        bound = (1 + rho * (w - 1)).clamp(min=1)
        assert (Guided(w, spread).kappa(x, sigma) <= bound + 1e-9).all()


@pytest.mark.parametrize("count", [3, 5, 12, 23])
@pytest.mark.parametrize("c", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_with_a_measured_cap_no_step_overshoots_further_than_c(spread, c, count):
    scale, samples = 7.5, Guided(7.5, spread).path()
    values = [
        float(Guided(scale, spread).kappa(x, s).max()) for s, x in zip(SIGMAS, samples, strict=True)
    ]
    plan = GuidancePlan.capped(c, profile=with_kappa(values, scale))
    places = np.unique(np.linspace(0, len(SIGMAS) - 1, count).round().astype(int))
    grid = np.append(SIGMAS[places], 0.0)
    scales = plan.at(grid, scale)
    for k, (before, after) in enumerate(itertools.pairwise(grid)):
        factor = 1 - Guided(scales[k], spread).kappa(samples[places[k]], before) * (
            1 - after / before
        )
        assert float(factor.min()) >= -(c - 1) - 1e-9
        within = [v for s, v in zip(SIGMAS, values, strict=True) if after <= s <= before]
        bears = 1 + (largest_kappa(after / before, c) - 1) / (max(within) - 1) * (scale - 1)
        assert scales[k] == pytest.approx(np.clip(bears, 1, scale) if max(within) > 1 else scale)


@given(
    solver=st.sampled_from(SOLVERS),
    c=st.floats(0.1, 2),
    scale=st.floats(1.1, 12),
    kappas=st.lists(st.floats(-3, 12), min_size=24, max_size=24),
)
def test_it_is_never_stricter_than_the_closed_form_where_kappa_is_at_most_w(
    solver, c, scale, kappas
):
    kappas = np.minimum(kappas, scale)
    grid = np.append(SIGMAS[::4], 0.0)
    measured = GuidancePlan.capped(c, profile=with_kappa(kappas, scale)).at(grid, scale, solver)
    closed = GuidancePlan.capped(c).at(grid, scale, solver)
    assert all(one >= other - 1e-9 for one, other in zip(measured, closed, strict=True))
    same = GuidancePlan.capped(c, profile=with_kappa([scale] * 24, scale)).at(grid, scale, solver)
    assert same == pytest.approx(closed)


def test_where_kappa_exceeds_w_the_cap_is_stricter():
    grid = [4.0, 2.0, 0.0]
    assert GuidancePlan.capped(2, profile=with_kappa([11.0] * 24, 6.0)).at(grid, 6.0)[0] == 2.5
    assert GuidancePlan.capped(2).at(grid, 6.0)[0] == 4.0


def test_beyond_the_measured_levels_the_nearest_kappa_counts():
    plan = GuidancePlan.capped(2, profile=with_kappa([3.0, 2.0], 3.0, [5.0, 1.0]))
    assert plan.at([40.0, 20.0, 0.5, 0.25], 3.0) == pytest.approx([3.0, 2 / (1 - 0.025), 3.0])
    assert plan.at([np.inf, 5.0], 3.0) == [2.0]
    # From 1 down κ is 2 = 1 + 0.5 (w − 1); a step to 0 bears κ = 2.
    assert plan.at([0.9, 0.0], 3.0) == [3.0]


def test_between_the_measured_levels_kappa_is_linear_in_log_sigma():
    plan = GuidancePlan.capped(2, profile=with_kappa([9.0, 1.5], 9.0, [4.0, 1.0]))
    rho = ((9 + 1.5) / 2 - 1) / 8
    assert plan.at([2.0, 1.0], 9.0) == pytest.approx([1 + (4 - 1) / rho])


@pytest.mark.parametrize("scale", [7.6, 12.0])
def test_a_plan_says_nothing_above_the_scale_that_kappa_was_measured_at(scale):
    plan = GuidancePlan.capped(profile=with_kappa([5.0] * 24, 7.5))
    with refuses("guidance_scale"):
        plan.at([4.0, 1.0, 0.0], scale)
    assert plan.at([4.0, 1.0, 0.0], 3.0)  # below it κ is bounded


def test_a_plan_and_a_profile_with_kappa_survive_their_files(tmp_path):
    profile = with_kappa(np.linspace(9, 1, 24), 7.5)
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    plan = GuidancePlan.named("capped-measured-1.2", profile)
    assert plan == GuidancePlan.capped(1.2, profile=profile) != GuidancePlan.named("capped-1.2")
    plan.save(tmp_path)
    assert GuidancePlan.load(tmp_path) == plan
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()


def test_a_profile_without_kappa_is_refused_and_its_file_is_that_of_earlier_versions():
    assert "kappa" not in PROFILE.to_dict()
    with refuses("profile"):
        GuidancePlan.capped(profile=PROFILE)
    with refuses("profile"):
        GuidancePlan.named("capped-measured")
    with refuses("profile"):
        GuidancePlan.named("capped-measured", PROFILE)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("kappa", {"kappa": ((1.0, 3.0),), "kappa_scale": 3.0}),
        ("kappa", {"c": 1.5, "kappa": ((1.0, 3.0), (2.0, 3.0)), "kappa_scale": 3.0}),
        ("kappa", {"c": 1.5, "kappa": ((1.0, 3.0), (0.0, 3.0)), "kappa_scale": 3.0}),
        ("kappa", {"c": 1.5, "kappa": ((1.0, np.nan),), "kappa_scale": 3.0}),
        ("kappa_scale", {"c": 1.5, "kappa": ((1.0, 3.0),)}),
    ],
)
def test_a_wrong_kappa_is_named(name, wrong):
    with refuses(name):
        GuidancePlan(**wrong)


@pytest.mark.parametrize(
    "kappa",
    [
        {"scale": 3.0, "sigmas": [2.0, 1.0]},
        {"scale": 3.0, "sigmas": [2.0], "values": [1.0]},
        {"scale": 3.0, "sigmas": [1.0, 2.0], "values": [1.0, 1.0]},
        {"scale": 3.0, "sigmas": [2.0, 1.0], "values": [1.0, None]},
        {"scale": "3", "sigmas": [2.0, 1.0], "values": [1.0, 1.0]},
        [1.0, 2.0],
    ],
)
def test_a_profile_whose_kappa_no_calibration_gives_is_refused(kappa):
    with refuses("profile"):
        Profile.from_dict({**PROFILE.to_dict(), "kappa": kappa})


HOW = {"num_steps": 3, "estimator": "path", "guidance_scale": 4.0, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def dense(shared_small):
    """σ ∂ε/∂y of each prompt at each point of the tiny pipeline's path, entry by entry."""
    size = {name: HOW[name] for name in ("height", "width")}
    run = Run(shared_small, PROMPTS, None, 4.0, 3, size)
    found = []

    def look(eps, x, t):
        parts = []
        for n in range(len(x)):  # the network takes the whole batch
            one = lambda row, n=n: eps(torch.cat([x[:n], row[None], x[n + 1 :]]), t)[n]  # noqa: E731
            rows = torch.autograd.functional.jacobian(one, x[n], vectorize=False)
            size = x[n].numel()
            parts.append(torch.linalg.eigvals(rows.reshape(size, size).double()).real.max())
        sigma = run.schedule.sigmas[int(t)]
        found.append(torch.stack(parts) * sigma / (1 + sigma**2) ** 0.5)

    path = run.path(3, also=look)
    assert isinstance(path, Trajectory)
    return torch.stack(found)[:3]


def test_calibrate_measures_it_along_the_path(small, dense):
    profile = calibrate(small, PROMPTS, **HOW, kappa_probes=12)
    wanted = dense.quantile(0.9, dim=1).tolist()
    assert profile.kappa["values"] == pytest.approx(wanted, rel=2e-2)
    assert profile.kappa["scale"] == 4.0
    levels = Run(small, PROMPTS[:1]).schedule
    assert profile.kappa["sigmas"] == pytest.approx(levels.sigmas[profile.timesteps])


def test_it_changes_nothing_else_of_a_profile(small):
    for estimator in ("path", "jvp"):
        how = {**HOW, "estimator": estimator}
        plain, measured = (calibrate(small, PROMPTS[:2], **how, kappa_probes=n) for n in (0, 2))
        extra = 2 * 2 * 3 * 2 * 2  # probes, evaluations each, timesteps, prompts, rows
        assert measured.evaluations == plain.evaluations + extra
        assert replace(measured, kappa=None, evaluations=plain.evaluations) == plain


def test_kappa_in_parts_equals_kappa_at_once_and_is_kept(small, tmp_path):
    whole = calibrate(small, PROMPTS, **HOW, kappa_probes=4)
    how = {**HOW, "batch_size": 2, "cache": tmp_path, "kappa_probes": 4}
    first, again = (calibrate(small, PROMPTS, **how) for _ in range(2))
    assert first == again
    assert first.kappa["values"] == pytest.approx(whole.kappa["values"], rel=1e-3)


def test_a_plan_of_it_draws(small):
    profile = calibrate(small, PROMPTS[:1], **HOW, kappa_probes=4)
    plan = GuidancePlan.capped(1.0, profile=profile)
    run = Run(small, PROMPTS[:1], [0], 4.0, guidance_plan=plan)
    assert run.pictures(num_inference_steps=3).finite.all()


@pytest.mark.parametrize(
    ("name", "scale"), [("z-image", 6.0), ("qwen-image", 4.0), ("flux-dev", 1.0)]
)
def test_its_scale_is_that_of_the_formula_whatever_the_pipeline_calls_it(name, scale):
    """Z-Image adds 1, Qwen-Image has a second scale, and FLUX's guidance is distilled."""
    pipe, options = ZOO[name]()
    how = {"num_steps": 2, "estimator": "path", "progress": False}
    profile = calibrate(pipe, PROMPTS[0], **how, kappa_probes=2, **options)
    assert profile.kappa["scale"] == scale
    if scale == 1:
        with refuses("kappa_scale"):
            GuidancePlan.capped(profile=profile)


def test_growth_agrees_with_largest_kappa():
    for solver in SOLVERS:
        kappa = largest_kappa(0.5, 2.0, solver)
        assert growth(0.5, kappa, solver) == pytest.approx(1, abs=1e-9)


def asked(*arguments):
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


def test_the_commands_measure_name_and_cap_unstable_steps(preloaded_small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file, picture = str(tmp_path / "p.json"), str(tmp_path / "boot.png")
    words = "--count 2 --quick --num-steps 3 --kappa-probes 3 --steps 4 --guidance-scale 4"
    stability = asked("calibrate", file, *words.split())["stability"]
    profile = Profile.load(file)
    scheduler = preloaded_small.scheduler
    scheduler.set_timesteps(4)
    sigmas = steps_of(scheduler).sigmas
    bears = GuidancePlan.capped(2, profile=profile).at(sigmas, 4.0)
    assert stability["bears"] == pytest.approx(bears, abs=0.01)
    how = ["--steps", "4", "--guidance-plan", "capped-measured", "--profile", file]
    shown = asked("generate", PROMPTS[0], picture, *how, "--guidance-scale", "4")
    plan = GuidancePlan.capped(profile=profile)
    run = Run(preloaded_small, PROMPTS[:1], [0], 4.0, guidance_plan=plan)
    drawn = run.pictures(num_inference_steps=4).images[0].permute(1, 2, 0).numpy()
    assert shown["timesteps"] == run.pipe.scheduler.timesteps.tolist()
    assert np.array_equal(np.asarray(Image.open(picture)), drawn)


def test_the_command_s_measured_cap_needs_a_profile_of_this_scale(preloaded_small, tmp_path):
    PROFILE.save(tmp_path / "plain.json")
    with_kappa(np.linspace(9, 1, 24), 7.5).save(tmp_path / "other.json")
    for more in ([], ["--profile", "plain.json"], ["--profile", "other.json"]):  # made at 7.5
        given = [str(tmp_path / one) if one.endswith("json") else one for one in more]
        arguments = ["generate", "boot", "--guidance-plan", "capped-measured", *given]
        arguments += ["--guidance-scale", "3"]
        error = CliRunner().invoke(app, arguments).exception
        assert isinstance(error, WrongUse)
        assert str(error).startswith("profile ")


def test_a_measured_cap_keeps_a_margin_that_the_closed_form_has_by_itself():
    profile = with_kappa([5.0] * 24, 7.5)
    assert GuidancePlan.capped(profile=profile) == GuidancePlan.capped(1.5, profile=profile)
    assert GuidancePlan.named("capped-measured", profile).c == 1.5
    assert GuidancePlan.named("capped-measured-2", profile).c == 2
    assert GuidancePlan.capped() == GuidancePlan.named("capped") == GuidancePlan.capped(2)
