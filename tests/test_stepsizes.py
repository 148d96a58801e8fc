"""Optimal stepsizes against the paper's recursion, written out, on networks in closed form."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.stepsizes import Student, optimal_stepsizes
from tests.tiny import easy, sd3

PROMPTS = ["a red boot", "two blue bags", "a green hat"]
SMALL = {"height": 16, "width": 16}


def by_the_paper(predict, shares, start, goals, steps):
    """The levels of one sample's grid: Eqs 9 and 11 by loops, every sample kept by its grid.

    `predict(level, x)` gives clean sample and noise; `start(level)` the initial noise as x there.
    """
    reached = {(level,): start(level) for level in range(len(shares) - 1)}
    best = {level: (level,) for level in range(len(shares) - 1)}
    for _ in range(steps):
        found = {}
        for level, before in best.items():
            clean, noise = predict(level, reached[before])
            for lower in range(level + 1, len(shares)):
                x = (1 - shares[lower]) * clean + shares[lower] * noise
                error = float((x - goals[lower]).square().mean())
                if lower not in found or error < found[lower][0]:
                    found[lower] = (error, (*before, lower), x)
        best = {level: grid for level, (_, grid, _) in found.items() if level < len(shares) - 1}
        reached = {grid: x for _, grid, x in found.values()}
        last = found[len(shares) - 1][1]
    return list(last[:-1])


def flow_of(means, std, shares):
    """Clean sample and noise that a mixture of normal data predicts, in the scale of flows."""

    def predict(level, x):
        s = shares[level]
        variance = (1 - s) ** 2 * std**2 + s**2
        weight = torch.softmax(-((x - (1 - s) * means) ** 2).sum(1) / (2 * variance), 0)
        centre = weight @ means
        clean = centre + (1 - s) * std**2 / variance * (x - (1 - s) * centre)
        return clean, (x - (1 - s) * clean) / s

    return predict


def taught(seed, levels=13):
    """A teacher's path: shares, the network's prediction, and the samples (M × 2)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(3, 2, generator=generator, dtype=torch.float64) * 2
    shares = [*np.linspace(1, 0.02, levels), 0.0]
    predict = flow_of(means, 0.3, shares)
    x = torch.randn(2, generator=generator, dtype=torch.float64)
    goals = [x]
    for level, share in enumerate(shares[1:]):
        clean, noise = predict(level, goals[-1])
        goals.append((1 - share) * clean + share * noise)
    return shares, predict, torch.stack(goals)


def searched(shares, predict, goals, steps):
    """The same through `Student`, one sample after another as its own batch of one."""
    student = Student(torch.tensor(shares), goals[:, None])
    for _ in range(steps):
        student.begin_step()
        for level in range(len(shares) - 1):
            x = student.reached(level)
            x = goals[0] if x is None else x[0].double()
            student.land(level, *(part[None].float() for part in predict(level, x)))
    return student.trace()[0].tolist()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 200), steps=st.integers(1, 6))
def test_the_student_follows_the_paper_s_recursion(seed, steps):
    shares, predict, goals = taught(seed)
    wanted = by_the_paper(predict, shares, lambda level: goals[0], goals, steps)
    assert searched(shares, predict, goals, steps) == wanted


def drawn(shares, predict, x, grid):
    for level, lower in itertools.pairwise([*grid, len(shares) - 1]):
        clean, noise = predict(level, x)
        x = (1 - shares[lower]) * clean + shares[lower] * noise
    return x


def test_all_steps_are_the_teacher_s_own_and_one_step_is_the_best_of_all():
    shares, predict, goals = taught(3)
    every = list(range(len(shares) - 1))
    assert searched(shares, predict, goals, len(every)) == every
    ends = [drawn(shares, predict, goals[0], [level]) for level in every]
    best = int(np.argmin([float((end - goals[-1]).square().mean()) for end in ends]))
    assert searched(shares, predict, goals, 1) == [best]


def test_its_own_errors_are_what_it_minimizes_and_it_ends_near_the_best_grid():
    """Against every grid: the recursion is no exhaustive search, and is seldom far from it."""
    ratios = []
    for seed in range(12):
        shares, predict, goals = taught(seed, levels=10)

        def error(grid, shares=shares, predict=predict, goals=goals):
            return float((drawn(shares, predict, goals[0], grid) - goals[-1]).norm())

        every = [error(g) for g in itertools.combinations(range(len(shares) - 1), 3)]
        found = error(searched(shares, predict, goals, 3))
        assert min(every) <= found * (1 + 1e-6) + 1e-6
        even = error([0, 3, 7])
        ratios.append((found + 1e-9) / (even + 1e-9))
    assert np.median(ratios) < 0.5


def closed_form(pipe, number, x):
    """What the network of `easy` predicts of x (n × d) at a timestep, in the scale of DDIM."""
    bar = float(pipe.scheduler.alphas_cumprod[number])
    variance = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(-1, 1, 1)
    shaped = x.reshape(len(x), 4, 8, 8)
    noise = (1 - bar) ** 0.5 * shaped / (variance * bar + 1 - bar)
    clean = (shaped - (1 - bar) ** 0.5 * noise) / bar**0.5
    return clean.flatten(1), noise.flatten(1)


def test_a_pipeline_s_grid_is_the_median_of_the_prompts_own():
    pipe, steps = easy(), 4
    how = {"guidance_scale": 1.0, "options": SMALL}
    path = Run(pipe, PROMPTS, **how).path(20)
    sigma = path.sigmas(Run(pipe, PROMPTS, **how).schedule)[:-1]  # the end is timestep 0 again
    shares = (sigma / (1 + sigma)).tolist()
    goals = torch.stack(
        [path.samples[k] * (1 + s**2) ** 0.5 / (1 + s) for k, s in enumerate(sigma)]
    )
    every = []
    for n in range(len(PROMPTS)):

        def predict(level, x):
            s = float(sigma[level])
            number = path.timesteps[level]
            clean, noise = closed_form(pipe, number, x[None] * (1 + s) / (1 + s**2) ** 0.5)
            return clean[0], noise[0]

        def start(level, n=n):
            s = float(sigma[level])
            return path.samples[0, n] * (1 + s**2) ** 0.5 / (1 + s)

        every.append(by_the_paper(predict, shares, start, goals[:, n], steps))
    places = np.median(every, axis=0)
    wanted = np.interp(places, range(len(path)), path.timesteps).round().astype(int).tolist()
    for batch_size in (2, 8):
        found = optimal_stepsizes(
            pipe, PROMPTS, steps, teacher_steps=20, batch_size=batch_size, **how
        )
        assert found.timesteps == wanted
        assert found.evaluations == len(PROMPTS) * (len(path) * (steps + 1) + steps)
    assert pipe.scheduler.__class__.__name__ == "DDIMScheduler"


def test_as_many_steps_as_the_teacher_end_at_its_sample():
    pipe = easy()
    how = {"guidance_scale": 1.0, "options": SMALL, "teacher_steps": 6}
    found = optimal_stepsizes(pipe, PROMPTS, 6, **how)
    assert found.timesteps == Run(pipe, PROMPTS, **{"options": SMALL}).path(6).timesteps[:-1]
    assert found.distance < 1e-3
    few = [optimal_stepsizes(pipe, PROMPTS, steps, **how).distance for steps in (1, 2, 4)]
    assert sorted(few, reverse=True) == few
    with pytest.raises(ValueError, match="num_inference_steps is 7; give 1 to 6"):
        optimal_stepsizes(pipe, PROMPTS, 7, **how)
    with pytest.raises(ValueError, match="prompts is 1 prompt"):
        optimal_stepsizes(pipe, PROMPTS[:1], 2, **how)


def test_a_flow_model_is_searched_under_guidance():
    pipe, options = sd3()
    how = {"guidance_scale": 3.0, "options": options, "teacher_steps": 3}
    found = optimal_stepsizes(pipe, PROMPTS[:2], 2, **how)
    points = len(Run(pipe, PROMPTS[:2], guidance_scale=3.0, options=options).path(3))
    assert len(found.timesteps) == 2
    assert all(a > b for a, b in itertools.pairwise(found.timesteps))
    assert found.evaluations == 2 * 2 * (points * 3 + 2)
    own = optimal_stepsizes(pipe, PROMPTS[:2], points, **how)
    assert own.distance < 1e-3
