"""The grid editor's JavaScript computes what the library does: node runs both on many settings."""

import itertools
import json
import re
from functools import cache
from pathlib import Path

import editor
import numpy as np
import pytest
import torch

from asddim_lib import paper as allocation
from asddim_lib.evidence.path import Trajectory, carry_back, shares, spread
from asddim_lib.grids.grid import timesteps
from asddim_lib.guidance.law import propagation
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.levels import Levels
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.paper import ddim_step
from experiments.mixtures import GaussianMixture, follow
from tests import pages

CHAPTER = (Path(editor.BOOK) / "chapters" / "editor.md").read_text()
DATA = json.loads((editor.EDITOR / "data.json").read_text())
CONFIG = DATA["schedule"]
SCHEDULE = Levels.from_diffusers(CONFIG)
BARS, SIZE = SCHEDULE.alphas_cumprod, len(SCHEDULE)
POINTS = torch.tensor(DATA["points"], dtype=torch.float64)
DRAWN, JUDGED = DATA["drawn"], DATA["drawn"] + DATA["measured"]
COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 20, 33, 50, 61, 103, 333)
HEAD = f"""const m = require({json.dumps(str(editor.EDITOR / "maths.js"))});
const given = JSON.parse(require("fs").readFileSync(0)), {{ data }} = given;
const s = m.noiseSchedule(data.schedule), judged = data.drawn + data.measured;
const measured = data.points.slice(data.drawn, judged);
const answer = (values) => console.log(JSON.stringify(values));
const problem = (name, points = data.points.slice(0, data.drawn)) => {{
  const mixture = data.mixtures[name], ends = points.map((x) => m.exactEnd(mixture, s, x));
  const error = (grid) => m.endError(mixture, s, grid, points, ends);
  return {{ mixture, points, ends, error }};
}};
"""


def node(script, **given):
    """What a script prints as JSON; it finds the maths in `m`, and `given` beside the data."""
    return pages.node(HEAD + script, {"data": DATA, **given})


def mixture(name):
    """The library's mixture of that name."""
    parts = DATA["mixtures"][name]
    return GaussianMixture(*([part[key] for part in parts] for key in ("mean", "std", "weight")))


class Guided(GaussianMixture):
    """Data of that name, guided away from the wide cloud of which they are a tenth."""

    def __init__(self, name, scale):
        self.prompted, self.scale = mixture(name), scale
        cloud = DATA["cloud"]
        weights = [*(0.1 * self.prompted.weights), 0.9]
        stds = [*self.prompted.stds, cloud["std"]]
        super().__init__([*self.prompted.means.tolist(), cloud["mean"]], stds, weights)

    def eps(self, x, alpha, scale=None):
        without = super().eps(x, alpha)
        return without + (scale or self.scale) * (self.prompted.eps(x, alpha) - without)

    def jacobian(self, x, alpha, scale=None):
        without = super().jacobian(x, alpha)
        return without + (scale or self.scale) * (self.prompted.jacobian(x, alpha) - without)


def guided_path(name, grid, scale, cap=None):
    """DDIM's path with guidance, its error at the end, and each step's scale, by the library."""
    data = Guided(name, scale)
    plan = GuidancePlan() if cap is None else GuidancePlan.capped(cap)
    scales = plan.at(np.append(SCHEDULE.sigmas[grid], 0.0), scale)
    at = dict(zip(grid, scales, strict=True))

    def noise(x, t):
        return data.eps(x, float(BARS[t]), at[t])

    path = follow(noise, POINTS[:DRAWN], SCHEDULE, grid)
    plain = known_ends(name, 1)
    away = (path.end - known_ends(name, scale)).norm(dim=1).mean()
    return path, float(away / (plain - plain.mean(0)).square().sum(1).mean().sqrt()), scales


@cache
def known_ends(name, scale):
    """Where the exact paths that are drawn end."""
    return exact_ends(Guided(name, scale) if scale > 1 else mixture(name), POINTS[:DRAWN])


def eps(data):
    return lambda x, t: data.eps(x, float(BARS[t]))


def exact_ends(data, points):
    return data.solve(points, float(BARS[-1]), 1.0)


def test_the_points_are_normal_and_the_schedule_is_stable_diffusion_s():
    drawn = np.random.default_rng(19).standard_normal((200, 2)).round(3)
    assert drawn.tolist() == DATA["points"]
    found = node("answer([s.variance, s.sigmas]);")
    np.testing.assert_allclose(found[0], SCHEDULE.variance, rtol=1e-12)
    np.testing.assert_allclose(found[1], SCHEDULE.sigmas, rtol=1e-12)


def test_the_paper_s_weights_equal_the_library_s():
    rng = np.random.default_rng(0)
    g, settings = rng.random(SIZE), [(p, lam) for p in (0, 0.25, 1, 3.5) for lam in (0, 0.5, 8)]
    script = """answer(given.settings.map(([p, lam]) => {
      const w = m.noiseWeights(s.variance, p), f = m.gradientStep(given.g, lam);
      return [w, m.normalize(w), m.stepsPerTimestep(w, 12), f,
        ...["intent", "density", "literal"].map((reading) => m.stepSizes(w, f, reading))];
    }));"""
    for (p, lam), found in zip(settings, node(script, settings=settings, g=[*g]), strict=True):
        weights = allocation.noise_weights(SCHEDULE.variance, p)
        factors = allocation.gradient_step(g, lam)
        expected = [weights, allocation.normalize(weights)]
        expected += [allocation.steps_per_timestep(weights, 12), factors]
        expected += [allocation.step_sizes(weights, factors, r) for r in allocation.READINGS]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_named_grids_are_the_library_s():
    names = ("leading", "trailing", "karras", "logsnr", "beta", "arctan")
    asked = [(name, count, 0.5) for name in names for count in COUNTS]
    asked += [("noise", count, p) for p in (0.05, 0.3, 0.5, 1, 1.7, 3) for count in COUNTS]
    script = "answer(given.asked.map(([name, steps, p]) => m.lay(name, s, steps, { p })));"
    for (name, count, p), found in zip(asked, node(script, asked=asked), strict=True):
        own = {"p": p} if name == "noise" else {}
        config = {**CONFIG, "steps_offset": 1}  # Stable Diffusion's
        assert found == timesteps(config, count, allocation=name, **own), (name, count, p)


def test_any_step_length_gives_the_library_s_grid():
    rng = np.random.default_rng(1)
    lengths = [np.exp(rng.normal(0, scale, 1000)).tolist() for scale in (0.1, 1, 3) * 4]
    script = (
        "answer(given.lengths.map((h) => [1, 2, 7, 20, 500, 1000].map((k) => m.allocate(h, k))));"
    )
    for h, found in zip(lengths, node(script, lengths=lengths), strict=True):
        assert found == [allocation.allocate(np.array(h), k) for k in (1, 2, 7, 20, 500, 1000)]


@pytest.mark.parametrize("scale", [1, 7.5])
@pytest.mark.parametrize("name", DATA["mixtures"])
def test_what_is_measured_is_what_the_library_measures(name, scale):
    """g is the mean norm of the Jacobian; both densities are `spread`'s, with exact adjoints."""
    data, points = Guided(name, scale), POINTS[DRAWN:JUDGED]
    path = follow(eps(data), points, SCHEDULE, [*range(SIZE - 1, -1, -1)])
    jacobians = torch.stack(
        [
            data.jacobian(x, float(BARS[t]))
            for x, t in zip(path.samples, path.timesteps, strict=True)
        ]
    )
    basis = torch.eye(2, dtype=torch.float64)[:, None].expand(2, len(points), 2)
    adjoints = carry_back(
        path.sigmas(SCHEDULE), lambda k, v: torch.einsum("nij,pni->pnj", jacobians[k], v), basis
    )
    path = Trajectory(
        path.timesteps, path.samples, path.noises, path.end, 1.0, adjoints.transpose(0, 1)
    )
    script = """const model = m.guided(data.mixtures[given.name], data.cloud, given.scale);
    const found = m.measure(model, s, measured);
    const grids = ["equidistributed", "dual-weighted"].map((name) =>
      [6, 10, 20].map((k) => m.lay(name, s, k, { evidence: found })));
    answer({ ...found, grids, combined: m.lay("combined", s, 9, { lam: 2, evidence: found }) });"""
    found = node(script, name=name, scale=scale)
    g = jacobians.flatten(2).norm(dim=2).mean(1).numpy()[::-1]
    np.testing.assert_allclose(found["g"], g, rtol=1e-7)
    factors = allocation.gradient_step(g, 2)
    h = allocation.step_sizes(allocation.noise_weights(SCHEDULE.variance, 0.5), factors)
    assert found["combined"] == allocation.allocate(h, 9)
    for k, kind in enumerate(("equidistributed", "dual-weighted")):
        density = spread(shares(path, SCHEDULE, carried=k == 1), path.timesteps)
        ratio = np.array(found["densities"][kind]) / density
        np.testing.assert_allclose(ratio / ratio[0], 1, rtol=1e-6)
        assert found["grids"][k] == [allocation.allocate(1 / density, n) for n in (6, 10, 20)]


@pytest.mark.parametrize("name", DATA["mixtures"])
def test_the_error_at_the_end_is_the_library_s(name):
    data = mixture(name)
    grids = [timesteps(CONFIG, k, allocation=n) for n in ("trailing", "karras") for k in (2, 6, 20)]
    grids += [[657, 455, 317, 212, 120, 55], [0], [999, 3, 2, 1]]
    script = """answer([undefined, data.points.slice(judged)].map((points) =>
      given.grids.map(problem(given.name, points).error)));"""
    found = node(script, name=name, grids=grids)
    for points, errors in zip((POINTS[:DRAWN], POINTS[JUDGED:]), found, strict=True):
        goal = exact_ends(data, points)
        for grid, error in zip(grids, errors, strict=True):
            ends = follow(eps(data), points, SCHEDULE, grid).end
            assert abs(error - float(relative_distance(ends, goal).mean())) < 1e-6


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("scale", [1, 7.5, 12])
@pytest.mark.parametrize("name", DATA["mixtures"])
def test_guidance_is_the_library_s(name, scale, cap):
    """The error at the end, each step's scale, and its factor: the law's, for the largest κ."""
    grids = [timesteps(CONFIG, k, allocation=n) for n in ("trailing", "karras") for k in (1, 6, 13)]
    grids += [[657, 455, 317, 212, 120, 55]]
    script = """const { points, ends } = problem(given.name), mixture = data.mixtures[given.name];
    const [fine, model] = [Infinity, given.cap || Infinity].map((cap) =>
      m.guided(mixture, data.cloud, given.scale, cap));
    const guided = points.map((x) => m.exactEnd(fine, s, x));
    answer(given.grids.map((grid) => {
      const sigmas = m.levels(s, grid);
      return [m.endError(model, s, grid, points, guided, m.spread(ends)),
        grid.map((_, k) => m.stepScale(model, sigmas[k], sigmas[k + 1])),
        m.stepFactors(model, s, grid, points)];
    }));"""
    found = node(script, name=name, scale=scale, cap=cap, grids=grids)
    data = Guided(name, scale)
    for grid, (error, scales, factors) in zip(grids, found, strict=True):
        path, expected, plan = guided_path(name, grid, scale, cap)
        assert error == pytest.approx(expected, rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(scales, plan)
        sigmas = np.append(SCHEDULE.sigmas[grid], 0.0)
        for k, t in enumerate(grid):
            bar = float(BARS[t])  # σ ∂ε/∂y is √(1 − ᾱ) ∂ε/∂x
            matrices = (1 - bar) ** 0.5 * data.jacobian(path.samples[k], bar, plan[k])
            kappa = float(torch.linalg.eigvalsh(matrices).max())
            law = propagation(sigmas[k + 1] / sigmas[k], kappa)[0, 0]
            assert factors[k] == pytest.approx(law, rel=1e-5, abs=1e-6)


def test_at_scale_one_guidance_changes_nothing():
    script = """const mixture = data.mixtures["Three clusters"];
    answer([m.guided(mixture, data.cloud, 1, 2) === mixture, m.stepScale(mixture, 5, 1)]);"""
    assert node(script) == [True, 1]


@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_guided_step_s_errors_add_up_to_the_end(cap):
    """With a cap too: the exact path is that of the full scale."""
    script = """const mixture = data.mixtures[given.name], { points } = problem(given.name);
    const [fine, model] = [Infinity, given.cap || Infinity].map((cap) =>
      m.guided(mixture, data.cloud, 7.5, cap));
    answer(points.map((x) => {
      const ends = [m.exactEnd(fine, s, x)];
      const { carried } = m.stepErrors(model, s, given.grid, [x], ends, 1);
      return [m.endError(model, s, given.grid, [x], ends, 1), carried];
    }));"""
    found = node(script, name="Three clusters", grid=[812, 640, 377, 90], cap=cap)
    for end, carried in found:
        assert max(carried) <= end + sum(carried) - max(carried) + 1e-4, "a polygon that closes"
        assert end <= sum(carried) + 1e-4


def test_a_step_s_errors_are_the_solver_s_and_add_up_to_the_end():
    """On one Gaussian the exact flow has a closed form: no other solver is asked."""
    data, points, grid = mixture("One Gaussian"), POINTS[:DRAWN], [812, 640, 377, 90]
    script = """const { mixture, points, ends } = problem("One Gaussian");
    answer(m.stepErrors(mixture, s, given.grid, points, ends));"""
    found = node(script, grid=grid)
    goal = exact_ends(data, points)
    unit = float((goal - goal.mean(0)).square().sum(1).mean().sqrt())
    levels = [float(BARS[t]) for t in grid] + [1.0]
    skipped, x = data.solve(points, float(BARS[-1]), levels[0]), points
    made = [(skipped - x) / levels[0] ** 0.5]
    ends = [goal, data.solve(x, levels[0], 1.0)]
    for a, b in itertools.pairwise(levels):
        exact = data.solve(x, a, b)
        x, _ = ddim_step(x, data.eps(x, a), torch.tensor(a), torch.tensor(b))
        made.append((exact - x) / b**0.5)
        ends.append(data.solve(x, b, 1.0))
    carried = [after - before for before, after in itertools.pairwise(ends)]
    torch.testing.assert_close(sum(carried), x - goal)
    for name, vectors in (("made", made), ("carried", carried)):
        expected = [float(v.norm(dim=1).mean()) / unit for v in vectors]
        np.testing.assert_allclose(found[name], expected, atol=2e-5)


def test_ticks_that_are_moved_stay_a_grid_and_a_search_never_loses():
    rng = np.random.default_rng(2)
    moves = []
    for _ in range(300):
        grid = sorted(rng.choice(SIZE, rng.integers(1, 21), replace=False).tolist(), reverse=True)
        moves.append([grid, int(rng.integers(len(grid))), float(rng.uniform(-300, 1300))])
    script = """const { error } = problem("Three clusters");
    const grid = m.lay("karras", s, 5), best = m.search(grid, s.size, error);
    const move = ([grid, k, t]) => m.move(grid, k, t, s.size);
    const around = best.flatMap((t, k) => [-1, 1].map((by) => error(move([best, k, t + by]))));
    answer([given.moves.map(move), error(grid), error(best), around]);"""
    moved, before, after, around = node(script, moves=moves)
    for (grid, k, t), found in zip(moves, moved, strict=True):
        assert all(a > b for a, b in itertools.pairwise(found))
        assert found[0] < SIZE
        assert found[-1] >= 0
        wanted = min(max(round(t), len(grid) - 1 - k), SIZE - 1 - k)
        assert found[k] == wanted
        for j, old in enumerate(grid):  # the others give way only as far as they must
            assert j == k or found[j] == old or abs(found[j] - found[k]) == abs(j - k)
    assert after < before
    assert min(around) > after - 1e-9


def test_the_chapter_s_numbers_are_so():
    """Each error that the page's text gives, in its order, computed by the library."""
    data, gauss = mixture("Three clusters"), mixture("One Gaussian")
    script = """const { mixture, points, ends, error } = problem("Three clusters");
    const evidence = m.measure(mixture, s, measured), even = m.lay("trailing", s, 6);
    const { carried } = m.stepErrors(mixture, s, even, points, ends);
    answer([m.search(even, s.size, error), m.lay("dual-weighted", s, 6, { evidence }), carried]);"""
    searched, measured, carried = node(script)

    def error(grid, mixture=data, points=POINTS[:DRAWN]):
        ends = follow(eps(mixture), points, SCHEDULE, grid).end
        return float(relative_distance(ends, exact_ends(mixture, points)).mean())

    even = timesteps(CONFIG, 6, allocation="trailing")
    half, one, two = (timesteps(CONFIG, 6, allocation="noise", p=p) for p in (0.5, 1.0, 2.0))
    others = POINTS[JUDGED:]
    expected = [carried[-1], sum(carried[:-1]), error(measured), error(even)]
    expected += [error(half), error(one), error(two), error(even), error(searched)]
    expected += [error(searched, points=others), error(measured, points=others)]
    expected += [error(searched, gauss), error(even, gauss)]
    guided = [
        guided_path(name, even, 7.5, cap)[1] for name in DATA["mixtures"] for cap in (None, 2.0)
    ]
    assert f"the error is {guided[0]:.3f}" in CHAPTER
    expected += [guided[1], *guided[-2:], error(half), error(even)]
    assert re.findall(r"0\.\d{3}", CHAPTER) == [f"{value:.3f}" for value in expected]
    assert error(two) > 2 * error(even)
    assert (searched[0], even[-1], sum(t < 50 for t in two)) == (657, 166, 4)
    assert f"$t={searched[0]}$" in CHAPTER
    assert f"$t={even[-1]}$" in CHAPTER
    assert f"{DRAWN} samples" in CHAPTER
    assert f"{len(others)} other starting points" in CHAPTER
    assert f"measured on {DATA['measured']} other paths" in CHAPTER


def test_the_chapter_s_claims_are_so():
    """What the text says of the bars, where it gives no number."""
    script = """const shares = (name, grid) => {
      const { mixture, points, ends } = problem(name);
      return m.stepErrors(mixture, s, grid, points, ends);
    };
    const evidence = m.measure(data.mixtures["Three clusters"], s, measured);
    answer([shares("Three clusters", m.lay("trailing", s, 6)),
      shares("Three clusters", m.lay("dual-weighted", s, 6, { evidence })),
      shares("Three clusters", m.lay("noise", s, 6, { p: 2 })),
      shares("One Gaussian", [657, 455, 317, 212, 120, 55])]);"""
    even, dual, steep, gauss = node(script)
    early = zip(even["carried"][1:4], even["made"][1:4], strict=True)
    assert all(carried < made / 3 for carried, made in early), "early errors fade"
    assert even["carried"][-1] == max(even["carried"]) > sum(even["carried"][:-1])
    spreads = [max(one["carried"][1:]) / min(one["carried"][1:]) for one in (dual, even)]
    assert spreads[0] < 1.6 < 20 < spreads[1], "dual-weighted evens out the bars"
    assert sum(steep["carried"][1:3]) > 0.9 * sum(steep["carried"]), "the two steps before"
    assert gauss["carried"][0] == max(gauss["carried"]), "the stretch that was left out"


def test_the_figure_is_small_and_asks_nobody():
    text = editor.figure()
    assert len(text.encode()) < 48_000
    assert not re.search(r"https?:|//\w|import\s|\bfetch\(|url\(", text)
    assert "{editor}" in CHAPTER
    page = editor.editor_page()
    assert "{editor}" not in page
    assert page.count("```{raw} html") == 1
    assert "```" not in text
    assert f">{DRAWN} paths drawn<" in text
    assert f">{len(POINTS) - JUDGED} others<" in text
