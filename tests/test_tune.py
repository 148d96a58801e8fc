"""`tune`: never worse than the best peer, what it hands out, what it spends, what it refuses."""

from dataclasses import replace
from functools import partialmethod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, HeunDiscreteScheduler

from asddim_lib import DPMSolverGridScheduler, tune
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.plan import QUICK, Plan
from asddim_lib.tuning.result import Tuned
from asddim_lib.tuning.trials import Trials
from tests import zoo
from tests.planted import SMALL, WORDS, Planted, gaussian, kept_share
from tests.test_goals import encoders as encoders

TRAILING = [999, 666, 332]
HOW = {"steps": 3, "guidance_scale": 1.0, "plan": SMALL, "goal": "latents"}


def planted(pipe, best, own=1e-4, **more):
    return tune(pipe, WORDS, **{**HOW, "goal": Planted(best, own=own)}, **more)


# never worse


def test_where_arctan_is_optimal_tune_hands_it_out_and_says_so():
    optimum = [999, 799, 599, 399, 199]  # also by the closed form:
    moves = [-150, -40, -1, 1, 40, 150]
    others = [[*optimum[:k], optimum[k] + m, *optimum[k + 1 :]] for k in range(1, 5) for m in moves]
    assert all(kept_share(grid) < kept_share(optimum) for grid in others)
    plan = replace(SMALL, peers=None, path_prompts=1, path_steps=12, reference_steps=100)
    found = tune(gaussian(), WORDS, **{**HOW, "steps": 5, "plan": plan})
    assert not found.accepted
    assert (found.name, found.grid) == ("trailing", optimum)
    assert found.rivals["trailing"] == optimum
    losses = {one.peer: one.loss for one in found.acceptance.comparisons}
    assert min(losses, key=losses.__getitem__) == "trailing"
    assert max(losses.values()) > 1.05 * losses["trailing"]
    assert found.summary().endswith("trailing is handed out.") or "better than" in found.summary()


def test_where_a_peer_is_planted_as_best_it_is_handed_out(small):
    found = planted(small, TRAILING)
    assert (found.accepted, found.name, found.grid) == (False, "trailing", TRAILING)
    assert found.candidate == TRAILING
    words = "No grid was found that is better than trailing, which is handed out."
    assert found.summary() == words


def test_a_search_that_followed_noise_ends_in_a_peer(small):
    """Grids differ by noise alone: the best on the tuning prompts is no better on the others."""
    found = planted(small, TRAILING, own=1.0)
    assert found.candidate not in found.rivals.values()
    assert not found.accepted
    assert found.grid == found.rivals[found.name]
    assert f"does not win over {found.name}" in found.summary()


@pytest.mark.parametrize("plan", [SMALL, replace(SMALL, trials=0, path_prompts=9)])
def test_no_prompt_of_the_verdict_served_the_choice(plan, small, monkeypatch):
    """Nor was the model measured on it."""
    goal, phase, used = Planted([940, 500, 80]), [], {}
    look, record = goal.look, Run.path

    def noted(act):
        def noting(run, *rest, **more):
            used.setdefault(phase[-1], set()).update(run.seeds)
            return act(run, *rest, **more)

        return noting

    goal.look = noted(look)
    monkeypatch.setattr(Run, "path", noted(record))
    told = lambda doing, spent, total: phase.append(doing)  # noqa: E731
    tune(small, WORDS, **{**HOW, "plan": plan, "goal": goal}, progress=told)
    verdict = used.pop("verifying")
    assert len(verdict) >= 7
    assert "measuring the model" in used
    assert not verdict & set.union(*used.values())


def test_a_better_grid_is_found_and_accepted(small):
    best = [940, 500, 80]
    found = planted(small, best, own=0.01)
    assert found.accepted
    assert found.grid == found.candidate

    def apart(grid):
        return np.abs(np.subtract(grid, best)).sum()

    assert apart(found.grid) < min(map(apart, found.rivals.values()))
    assert found.summary().startswith(f"{found.name} wins over the best peer, ")
    assert {one.verdict for one in found.acceptance.comparisons} == {"win"}


def test_a_second_encoder_that_sees_a_loss_stops_a_win(small, encoders, monkeypatch):
    first, second = encoders
    how = {**HOW, "goal": "embedding", "encoder": first, "check_encoder": second}
    whole = tune(small, WORDS, **how)
    assert whole.acceptance.check.peer == whole.acceptance.best
    assert whole.setting["check_encoder"] == second.name
    peers = list(whole.rivals.values())

    def losses(self, grid, batches=None, better=1.0):
        base = torch.arange(1.0, len(self.run.prompts) + 1)
        return base if list(grid) in peers else base * (1 - 0.1 * better)

    monkeypatch.setattr(Trials, "__call__", losses)
    for better, accepted in ((-1.0, False), (1.0, True)):
        second_s = partialmethod(losses, better=better)
        monkeypatch.setattr(Trials, "checked", second_s)
        found = tune(small, WORDS, **how)
        assert found.acceptance.comparisons[0].verdict == "win"
        assert found.accepted == accepted
        assert ("but the second encoder" in found.summary()) == (not accepted)
        assert found.grid == (found.candidate if accepted else found.rivals[found.name])


# what is handed out


@pytest.mark.parametrize("solver", [None, "dpm++", "unipc"])
def test_a_saved_pipeline_draws_the_verified_pictures(small, solver, tmp_path):
    found = planted(small, [940, 500, 80], solver=solver)
    kind = type(found.scheduler)
    run = Run(small, WORDS[:1], (7,), 1.0).prepared_with(kind)
    expected = run.ends(found.grid)
    pipe, _ = zoo.ZOO["sd15"]()
    pipe.register_modules(**{n: getattr(small, n) for n in ("unet", "vae", "text_encoder")})
    pipe.scheduler = found.scheduler
    pipe.save_pretrained(tmp_path / "pipe")
    again = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    again.set_progress_bar_config(disable=True)
    assert again.scheduler.config["grid"] == found.grid
    how = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    drawn = again(WORDS[0], generator=torch.Generator().manual_seed(7), **how).images
    torch.testing.assert_close(drawn.flatten(1), expected, rtol=1e-4, atol=1e-4)
    found.save(tmp_path / "tuned")
    loaded = kind.from_pretrained(tmp_path / "tuned", subfolder="scheduler")
    assert dict(loaded.config) == dict(again.scheduler.config)


def test_a_folder_gives_all_of_it_back(small, tmp_path):
    found = planted(small, TRAILING)
    found.save(tmp_path)
    assert Tuned.load(tmp_path) == found
    assert (tmp_path / "sheet.png").read_bytes() == found.sheet
    page = (tmp_path / "report.md").read_text()
    for peer, grid in found.rivals.items():
        assert f"| {peer} |" in page
        assert str(grid) in page
    assert "as it is" in page
    assert "- leading" not in page
    assert f"{found.evaluations} network evaluations, as many as {found.pictures:.0f} pic" in page
    (tmp_path / "tune.json").write_text((tmp_path / "tune.json").read_text().replace("666", "665"))
    with pytest.raises(ValueError, match=r"^folder is .*, whose tune.json is damaged; run the sam"):
        Tuned.load(tmp_path)
    with pytest.raises(ValueError, match=r"^folder is .*, without a tune.json; give a folder"):
        Tuned.load(tmp_path / "scheduler")


def test_a_flow_model_s_sigmas_are_of_its_own_number_of_timesteps(small):
    found = planted(small, TRAILING)
    with pytest.raises(ValueError, match="model is no flow-matching one; use grid"):
        _ = found.sigmas
    setting = {**found.setting, "flow": True, "num_train_timesteps": 2000}
    flow = replace(found, grid=[1999, 999], setting=setting)
    assert flow.sigmas == [1.0, 0.5]


def test_peers_that_are_left_out_are_named_with_the_reason(small):
    plan = replace(SMALL, peers=("trailing", "leading", "gits"))
    found = tune(small, WORDS, **{**HOW, "plan": plan, "goal": Planted(TRAILING)})
    assert set(found.rivals) == {"trailing", "leading"}
    assert found.left_out["as it is"] == "it is the same grid as leading"
    assert "recorded path" in found.left_out["gits"]


# what it spends


def counted(pipe):
    """A list that fills with the rows that the network is asked."""
    rows = []
    return rows, pipe.unet.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))


def test_quick_spends_at_most_ten_guided_pictures_and_says_how_much(small, encoders):
    rows, hook = counted(small)
    how = {"steps": 8, "guidance_scale": 2.0, "encoder": encoders[0], "quick": True}
    found = tune(small, WORDS[:9], **how)
    hook.remove()
    sweeps = 2 * QUICK.profile_prompts * (QUICK.profile_steps + 1)  # backward, as two more
    assert found.evaluations == sum(rows) + 2 * sweeps
    assert found.evaluations <= 10 * 50 * 2
    assert found.pictures == found.evaluations / 100
    latents = tune(small, WORDS[:9], **{**how, "goal": "latents", "encoder": None})
    assert latents.evaluations <= 10 * 50 * 2


def test_the_least_budget_is_named_and_kept(small):
    how = {**HOW, "goal": Planted([940, 500, 80])}
    with pytest.raises(
        ValueError, match=r"^budget is 9; give at least \d+ evaluations, or"
    ) as error:
        tune(small, WORDS, **how, budget=9)
    least = int(str(error.value).split("at least ")[1].split()[0])
    with pytest.raises(ValueError, match=f"^budget is {least - 1}; give at least {least} "):
        tune(small, WORDS, **how, budget=least - 1)
    free = tune(small, WORDS, **how).evaluations
    for budget in (least, (least + free) // 2):
        seen = []
        watch = {"progress": lambda *told, seen=seen: seen.append(told)}
        spent = tune(small, WORDS, **how, budget=budget, **watch).evaluations
        assert spent <= budget < free
        assert all(done <= total <= budget for _, done, total in seen)
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
        assert {"measuring the model", "comparing grids", "verifying"} <= {w for w, *_ in seen}


def test_minutes_become_evaluations_once_for_a_folder(small, tmp_path, monkeypatch):
    readings = iter([0.0, 4.0])  # 8 prompts of 3 steps took 4 seconds
    clock = SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr("asddim_lib.tuning.plan.time", clock)
    goal = Planted([940, 500, 80])
    how = {**HOW, "goal": goal, "folder": tmp_path, "minutes": 0.65}
    for _ in range(2):  # the clock has no third reading
        words = (
            r"^minutes is 0.65, time for 234 evaluations here; give at least [\d.]+ for \d+ eval"
        )
        with pytest.raises(ValueError, match=words):
            tune(small, WORDS, **how)
    readings = iter([0.0, 0.02])
    how["minutes"] = 0.02
    found = tune(small, WORDS, **how)
    assert 500 < found.evaluations <= 0.02 * 60 * 24 / 0.02
    looks = goal.looks
    assert tune(small, WORDS, **how) == found
    assert goal.looks == looks


# wrong use


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"goal": "beauty"}, "goal is beauty; use one of latents"),
        ({"solver": "heun"}, "solver is heun; for a variance-preserving model use some of ddim"),
        ({"goal": "embedding", "encoder": "nowhere"}, "encoder is 'nowhere', which could not be"),
        ({"budget": 0}, "budget is 0; give a positive number"),
        ({"budget": 9, "minutes": 2}, "budget and minutes is 9 and 2; give one"),
        ({"minutes": float("nan")}, "minutes is nan; give a positive number"),
        ({"steps": 0}, "num_inference_steps is 0; give a whole number, 1 to 1000"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0; "),
        ({"plan": replace(SMALL, peers=("magic",))}, "peer is magic; name a grid that needs"),
        ({"options": {"prompt": "x"}}, "prompt is x; give prompts"),
    ],
)
def test_wrong_use_is_one_line(changes, words, small):
    with pytest.raises(ValueError, match=f"^{words}[^\n]*$"):
        tune(small, WORDS, **{**HOW, **changes})


def test_too_few_prompts_are_told_how_many_are_needed(small):
    for plan, needed in ((SMALL, 13), (replace(SMALL, trials=0), 8), (Plan(), 17)):
        rows, hook = counted(small)
        with pytest.raises(
            ValueError, match=rf"^prompts is 6 in number; give at least {needed}: fewer"
        ):
            tune(small, WORDS[:6], **{**HOW, "plan": plan})
        hook.remove()
        assert not rows  # before anything is drawn


def test_a_scheduler_that_cannot_hold_a_grid_is_named_before_anything_is_drawn(small):
    small.scheduler = HeunDiscreteScheduler.from_config(small.scheduler.config)
    with pytest.raises(ValueError, match=r"^scheduler is HeunDiscreteScheduler; no class of ours"):
        tune(small, WORDS, **HOW)


def test_the_solver_that_draws_is_the_one_that_is_handed_out(small):
    how = {**HOW, "goal": Planted(TRAILING)}
    found = tune(small, WORDS, **how, solver="dpm++")
    assert type(found.scheduler) is DPMSolverGridScheduler
    assert found.setting["solver"] == "DPMSolverGridScheduler"


def test_one_step_is_a_grid_too(small):
    found = tune(small, WORDS, **{**HOW, "steps": 1})
    assert len(found.grid) == 1
