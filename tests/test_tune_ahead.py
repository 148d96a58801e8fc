"""Other times in a tuning: what is planted is found, what gains nothing is left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from asddim_lib import tune
from asddim_lib.pipeline.manifest import of_values
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.ahead import FIRST, MOST, PLAIN, best_share
from asddim_lib.tuning.plan import Plan
from asddim_lib.tuning.result import Tuned
from tests.planted import SMALL, WORDS, Planted

TRAILING = [999, 666, 332]
HOW = {"steps": 3, "guidance_scale": 1.0, "plan": SMALL, "look_ahead": True}


class Told(Planted):
    """Planted, and best where the network is told a given share ahead."""

    name = "told"

    def __init__(self, best, share, gain=0.5, **more):
        super().__init__(best, **more)
        self.share, self.gain = share, gain

    @property
    def identity(self):
        return of_values(super().identity, self.share, self.gain)

    def look(self, run, grid):
        seen = super().look(run, grid)["seen"]
        return {"seen": seen + self.gain * (run.scheduler.config["look_ahead"] - self.share) ** 2}


class Line:
    """Trials of which only the share counts."""

    def __init__(self, loss):
        self.loss, self.tried = loss, []

    def telling(self, share):
        return lambda grid: self(grid, share)

    def __call__(self, grid, share=0.0):
        self.tried.append(share)
        return torch.tensor([self.loss(share)])


@pytest.mark.parametrize("best", [-1.0, -0.4, -0.1, 0.0, 0.15, 0.35, 1.0])
def test_the_search_ends_within_its_last_move_of_the_best_share(best):
    line = Line(lambda share: (share - best) ** 2)
    found = best_share(line, TRAILING)
    assert abs(found - best) <= FIRST / 2 + 1e-9 or len(line.tried) == MOST + 1
    assert len(line.tried) == len(set(line.tried)) <= MOST + 1
    assert all(abs(share) <= 1 for share in line.tried)


def test_a_planted_share_is_found_handed_out_saved_and_drawn(small, tmp_path):
    found = tune(small, WORDS, **HOW, goal=Told(TRAILING, 0.2, own=0.001))
    assert found.grid == TRAILING
    assert found.look_ahead == found.share == pytest.approx(0.2)
    assert found.told.accepted
    assert found.scheduler.config["look_ahead"] == pytest.approx(0.2)
    assert found.scheduler.config["grid"] == TRAILING
    plain = next(one for one in found.told.comparisons if one.peer == PLAIN)
    assert plain.verdict == "win"
    assert plain.difference == pytest.approx(-0.5 * 0.2**2, rel=0.1)
    found.save(tmp_path)
    assert Tuned.load(tmp_path) == found
    page = (tmp_path / "report.md").read_text()
    assert "+0.2 of a step ahead" in page
    assert "a win. It is handed out." in page
    kind = type(found.scheduler)
    run = replace(Run(small, WORDS[:1], (7,), 1.0), scheduler=found.scheduler)
    own = replace(run, scheduler=kind.from_config(found.scheduler.config, look_ahead=0.0))
    assert not torch.equal(run.ends(TRAILING), own.ends(TRAILING))


def test_a_share_that_follows_noise_is_left_out_and_said(small, tmp_path):
    found = tune(small, WORDS, **HOW, goal=Told(TRAILING, 0.0, gain=0.0, own=1.0))
    assert found.look_ahead == 0.0
    assert found.scheduler.config["look_ahead"] == 0.0
    if found.told is not None:
        assert not found.told.accepted
        found.save(tmp_path)
        assert "It is left out." in (tmp_path / "report.md").read_text()


def test_where_no_other_time_is_better_none_is_verified(small):
    found = tune(small, WORDS, **HOW, goal=Told(TRAILING, 0.0))
    assert (found.look_ahead, found.share, found.told) == (0.0, 0.0, None)


def test_without_being_asked_for_it_is_not_tried(small):
    goal = Told(TRAILING, 0.2)
    plain = tune(small, WORDS, **{**HOW, "look_ahead": False}, goal=goal)
    assert (plain.look_ahead, plain.told) == (0.0, None)


def test_it_is_within_the_budget(small):
    how = {**HOW, "goal": Told(TRAILING, 0.2)}
    with pytest.raises(ValueError, match=r"^budget is 9; give at least") as error:
        tune(small, WORDS, **how, budget=9)
    least = int(str(error.value).split("at least ")[1].split()[0])
    seen = []
    watch = {"progress": lambda doing, done, total: seen.append((doing, done, total))}
    found = tune(small, WORDS, **how, budget=least, **watch)
    assert found.evaluations <= least
    assert all(done <= total <= least for _, done, total in seen)
    assert "telling other times" in {doing for doing, *_ in seen}
    assert np.isfinite(found.told.comparisons[0].p_value)


def test_a_scheduler_that_tells_no_other_time_and_a_plan_without_trials_are_refused(small):
    with pytest.raises(ValueError, match=r"^look_ahead is asked of DPMSolverGrid.*; use solver dd"):
        tune(small, WORDS, **HOW, goal=Told(TRAILING, 0.2), solver="dpm++")
    how = {**HOW, "plan": replace(Plan(), trials=0)}
    with pytest.raises(ValueError, match=r"^look_ahead is without trials; it is searched for"):
        tune(small, WORDS, **how, goal="latents")
