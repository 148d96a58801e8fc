"""`tune`: what replaces a sampler, what is drawn and returned, spent and refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from asddim_lib import tune
from asddim_lib.cache import sealed
from asddim_lib.errors import WrongUse
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import Setup, Trials, split
from asddim_lib.tuning.goals import Latents
from asddim_lib.tuning.proposals import COMPARE, QUICK
from asddim_lib.tuning.verify import CANDIDATE, CURRENT
from tests import tiny, zoo
from tests.planted import SMALL, WORDS, Planted, gaussian, kept_share
from tests.refusals import refuses
from tests.test_goals import encoders as encoders

TRAILING = [999, 666, 332]
HOW = {"steps": 3, "guidance_scale": 1.0, "plan": SMALL, "goal": "latents"}
LEVELS = {name: tiny.SD[name] for name in ("beta_start", "beta_end", "beta_schedule")}
#: A user's schedulers, the class that draws grids beside each, and the calls that 3 steps take.
CURRENTS = {
    "PNDM": (PNDMScheduler, {"skip_prk_steps": True}, "ASDDIMScheduler", 4),
    "Euler ancestral": (EulerAncestralDiscreteScheduler, {}, "ASDDIMScheduler", 3),
    "DPM++ Karras": (
        DPMSolverMultistepScheduler,
        {"use_karras_sigmas": True},
        "DPMSolverGridScheduler",
        3,
    ),
    "UniPC": (UniPCMultistepScheduler, {}, "UniPCGridScheduler", 3),
    "Heun": (HeunDiscreteScheduler, {}, "ASDDIMScheduler", 5),
    "DDIM": (DDIMScheduler, {"clip_sample": False}, "ASDDIMScheduler", 3),
}


def planted(pipe, best, own=1e-4, current=0.5, **more):
    return tune(pipe, WORDS, **{**HOW, "goal": Planted(best, own=own, current=current)}, **more)


# what replaces the current sampler


def test_where_the_current_grid_is_optimal_nothing_changes():
    optimum = [999, 799, 599, 399, 199]  # also by the closed form:
    moves = [-150, -40, -1, 1, 40, 150]
    others = [[*optimum[:k], optimum[k] + m, *optimum[k + 1 :]] for k in range(1, 5) for m in moves]
    assert all(kept_share(grid) < kept_share(optimum) for grid in others)
    pipe = gaussian()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    plan = replace(SMALL, baselines=None, path_prompts=1, reference_steps=100)
    found = tune(pipe, WORDS, **{**HOW, "steps": 5, "plan": plan})
    assert not found.changed
    assert (found.name, found.grid) == (CURRENT, optimum)
    assert found.scheduler is pipe.scheduler
    assert found.skipped["trailing"] == "it is the grid of the current sampler"
    losses = [one.difference for one in found.decision.comparisons if one.first != CANDIDATE]
    assert min(losses) > 0


def test_a_search_that_followed_noise_changes_nothing(small):
    """Grids differ by noise alone: the best on the tuning prompts is no better on the others."""
    found = planted(small, TRAILING, own=1.0, current=0.0)
    named = [grid for name, grid in found.grids.items() if name != CANDIDATE]
    assert found.grids[CANDIDATE] not in named
    assert not found.changed
    assert found.scheduler is small.scheduler


def test_a_named_grid_that_wins_over_all_is_returned(small):
    found = planted(small, TRAILING)
    assert (found.changed, found.name, found.grid) == (True, "trailing", TRAILING)
    assert {one.second for one in found.decision.of("trailing")} == {CURRENT, "beta"}
    assert {one.verdict for one in found.decision.of("trailing")} == {"win"}


def test_a_better_grid_is_found_and_returned(small):
    best = [940, 500, 80]
    found = planted(small, best, own=0.01)
    assert found.changed
    assert found.grid == found.grids[CANDIDATE]

    def apart(grid):
        return np.abs(np.subtract(grid, best)).sum()

    others = [grid for name, grid in found.grids.items() if name != CANDIDATE]
    assert apart(found.grid) < min(map(apart, others))
    pairs = found.decision.of(CANDIDATE)
    assert {one.second for one in pairs} == {CURRENT, "trailing", "beta"}
    assert {one.verdict for one in pairs} == {"win"}


def test_an_undecided_candidate_says_how_many_prompts_would_decide(small):
    found = planted(small, [940, 500, 80], own=0.1, current=0.1)
    assert not found.changed
    assert found.advice > len(WORDS)
    assert f"--count {found.advice}" in found.summary()
    assert found.minutes > 0


@pytest.mark.parametrize("plan", [SMALL, replace(SMALL, trials=0, path_prompts=9)])
def test_no_text_of_the_verdict_served_the_choice(plan, small, monkeypatch):
    """Nor was the model measured on it. Texts that repeat are on one side, whatever their noise."""
    words = [*WORDS[:16], *WORDS[:4], *WORDS[12:]]
    goal, phase, used = Planted([940, 500, 80]), [], {}
    look, record = goal.look, Run.path

    def noted(act):
        def noting(run, *rest, **more):
            used.setdefault(phase[-1], set()).update(run.prompts)
            return act(run, *rest, **more)

        return noting

    goal.look = noted(look)
    monkeypatch.setattr(Run, "path", noted(record))
    how = {**HOW, "plan": plan, "goal": goal}
    found = tune(small, words, **how, progress=lambda doing, spent, total: phase.append(doing))
    verdict = used.pop("verifying")
    assert len(verdict) == found.prompts >= 7
    assert found.pictures > found.prompts
    assert "measuring the model" in used
    assert not verdict & set.union(*used.values())
    assert f"{found.pictures} pictures of {len(verdict)} prompts" in found.report()


def test_pictures_of_one_text_are_no_independent_evidence(small):
    with pytest.raises(WrongUse, match=r"^prompts is a list of 24, 1 of them distinct"):
        tune(small, ["a red boot"] * 24, **HOW)


def test_a_second_encoder_that_sees_a_loss_to_any_sampler_stops_a_win(small, encoders, monkeypatch):
    first, second = encoders
    how = {**HOW, "goal": "embedding", "encoder": first, "check_encoder": second}

    def losses(self, sampler, batches=None, by="seen"):
        base = torch.arange(1.0, len(self.run.prompts) + 1)
        mine = sampler.name not in (CURRENT, "999 666 332", "999 724 274")
        return base * (0.9 if mine else 1)

    monkeypatch.setattr(Trials, "losses", losses)
    assert tune(small, WORDS, **how).changed

    def objecting(self, sampler, batches=None, by="seen"):
        return losses(self, sampler) * (-1 if by == "checked" else 1)

    monkeypatch.setattr(Trials, "losses", objecting)
    found = tune(small, WORDS, **how)
    assert not found.changed
    assert {one.second for one in found.decision.objections} == {CURRENT, "trailing", "beta"}
    assert second.name in found.summary()


# the current sampler, drawn by itself


@pytest.mark.parametrize("name", CURRENTS)
def test_the_user_s_scheduler_is_drawn_by_itself_and_returned_where_nothing_wins(
    name, small, tmp_path
):
    kind, more, solver, calls = CURRENTS[name]
    small.scheduler = kind(**LEVELS, **more)
    before = dict(vars(small.scheduler))
    drawn, look = {}, Planted.look

    class Seen(Planted):
        def look(self, run, steps):
            if run.scheduler.config.get("grid") is None:
                drawn[run.prompts] = Latents().look(run, steps)["seen"]
            return look(self, run, steps)

    found = tune(small, WORDS, **{**HOW, "goal": Seen(TRAILING, own=1.0, current=0.0)})
    assert not found.changed
    assert found.scheduler is small.scheduler
    for key, value in before.items():  # nor was its state touched
        now = vars(small.scheduler)[key]
        assert now is value or torch.is_tensor(value)
    assert (found.setting.current, found.setting.solver) == (kind.__name__, solver)
    assert found.setting.evaluations_per_picture == calls
    assert kind.__name__ in found.summary()
    assert kind.__name__ in found.report()
    ((prompts, ends), *_) = drawn.items()
    seeds = [WORDS.index(prompt) for prompt in prompts]
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    how = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    expected = small(list(prompts), generator=noise, **how).images.flatten(1)
    assert torch.equal(ends, expected)
    found.save(tmp_path)
    saved = (tmp_path / "scheduler" / "scheduler_config.json").read_text()
    assert saved == small.scheduler.to_json_string()


@pytest.mark.parametrize("name", CURRENTS)
def test_evaluations_are_those_that_the_network_makes(name, small):
    kind, more, _, _ = CURRENTS[name]
    small.scheduler = kind(**LEVELS, **more)
    rows, hook = counted(small)
    plan = replace(COMPARE, baselines=["trailing"])
    found = tune(small, WORDS[:8], steps=3, plan=plan, goal="latents", guidance_scale=2)
    hook.remove()
    assert found.evaluations == sum(rows)


# what is returned


@pytest.mark.parametrize("solver", [None, "dpm++", "unipc"])
def test_a_saved_pipeline_draws_the_judged_pictures_bit_for_bit(small, solver, tmp_path):
    found = planted(small, [940, 500, 80], solver=solver)
    run = Run(small, WORDS[:2], (7, 8), 1.0)
    setup = Setup(run, 3, Latents(), solver)
    sampler = setup.sampler(found.grid)
    judged = Latents().look(replace(run, scheduler=sampler.scheduler), 3)["seen"]
    assert sampler.scheduler.config.items() <= found.scheduler.config.items()
    pipe, _ = zoo.ZOO["sd15"]()
    pipe.register_modules(**{n: getattr(small, n) for n in ("unet", "vae", "text_encoder")})
    pipe.scheduler = found.scheduler
    pipe.save_pretrained(tmp_path / "pipe")
    again = DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    again.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    how = {"num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "latent"}
    drawn = again(WORDS[:2], generator=noise, **how).images
    assert torch.equal(drawn.flatten(1), judged)
    found.save(tmp_path / "tuned")
    loaded = type(found.scheduler).from_pretrained(tmp_path / "tuned", subfolder="scheduler")
    assert sampler.scheduler.config.items() <= loaded.config.items()


@pytest.mark.parametrize(
    ("name", "solver"),
    [("PNDM", "ddim"), ("PNDM", "dpm++"), ("DPM++ Karras", "ddim"), ("DPM++ Karras", "dpm++")],
)
def test_the_report_s_lines_draw_the_grid_with_us_and_without(name, solver, small, tmp_path):
    """Whatever flags the user's scheduler has: Karras' would refuse any timesteps."""
    kind, more, *_ = CURRENTS[name]
    small.scheduler = kind(**LEVELS, **more)
    found = planted(small, [940, 500, 80], solver=solver)
    assert found.changed
    found.save(tmp_path)
    ours, stock = re.findall(r"```python\n(.*?)```", (tmp_path / "report.md").read_text(), re.S)
    assert "asddim_lib" not in stock
    assert str(found.grid) in stock
    latents, own = [], small.scheduler
    for lines in (ours, stock):
        small.scheduler = own
        drawn = "noise = torch.Generator().manual_seed(3)\ndrawn = pipe(prompt, generator=noise, "
        drawn += "output_type='latent', "
        space = {"pipe": small, "prompt": WORDS[0], "torch": torch}
        exec(lines.replace("pipe(prompt, ", drawn), space)
        latents.append(space["drawn"].images)
    torch.testing.assert_close(*latents, rtol=2e-3, atol=2e-3)


def test_a_folder_has_all_of_it(small, tmp_path):
    found = planted(small, TRAILING)
    found.save(tmp_path)
    assert sealed(tmp_path / "tune.json") == json.loads(json.dumps(found.to_dict()))
    assert (tmp_path / "sheet.png").read_bytes() == found.sheet
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for name, grid in found.grids.items():
        assert name == CANDIDATE or f"| {name} | " in page
        assert ", ".join(map(str, grid)) in page
    for file in ("tune.json", "report.md", "sheet.png", "scheduler/scheduler_config.json"):
        assert (tmp_path / file).stat().st_mode & 0o044 == 0o044
    (tmp_path / "tune.json").write_text("damaged")
    replace(found, sheet=b"").save(tmp_path)
    assert sealed(tmp_path / "tune.json")["grid"] == found.grid
    assert not (tmp_path / "sheet.png").exists()  # an older one's would be taken for this one's


def test_a_folder_for_another_setting_is_refused_before_any_work(small, tmp_path):
    how = {**HOW, "goal": Planted(TRAILING), "folder": tmp_path}
    found = tune(small, WORDS, **how)
    found.save(tmp_path)
    rows, hook = counted(small)
    for changes in ({"steps": 2}, {"guidance_scale": 2.0}, {"solver": "dpm++"}):
        with refuses("folder"):
            tune(small, WORDS, **{**how, **changes})
    hook.remove()
    assert not rows
    with refuses("folder"):
        replace(found, setting=replace(found.setting, steps=2)).save(tmp_path)
    assert tune(small, WORDS, **how) == found  # the same continues
    assert tune(small, WORDS[:20], **how).pictures < found.pictures


# named grids alone


def test_named_grids_are_compared_without_a_candidate(small):
    how = {"steps": 3, "guidance_scale": 1.0, "goal": "latents"}
    plan = replace(COMPARE, reference_steps=6)
    named = replace(plan, baselines=["trailing", "gits"])
    found = tune(small, WORDS, **how, plan=named)
    assert {one.second for one in found.decision.of("trailing")} >= {CURRENT}
    assert CANDIDATE not in found.grids
    assert found.prompts == len(WORDS) - 8  # gits has the others
    assert found.sheet
    assert len(found.table()) >= 2
    assert not tune(small, WORDS, **how, plan=replace(plan, baselines=["trailing"], shown=0)).sheet
    with pytest.raises(WrongUse, match="baselines"):
        tune(small, WORDS, **how, plan=replace(plan, baselines=["magic"]))


# what it spends


def counted(pipe):
    """A list that fills with the rows that the network is asked."""
    rows = []
    return rows, pipe.unet.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))


def test_quick_counts_what_it_spends(small, encoders):
    rows, hook = counted(small)
    how = {"steps": 8, "guidance_scale": 2.0, "encoder": encoders[0], "plan": QUICK}
    found = tune(small, WORDS[:9], **how)
    hook.remove()
    sweeps = 2 * QUICK.profile_prompts * (QUICK.profile_steps + 1)  # backward, as two more
    assert found.evaluations == sum(rows) + 2 * sweeps
    assert found.evaluations <= 11 * 50 * 2
    assert found.cost_in_pictures == found.evaluations / found.setting.evaluations_per_picture


def test_the_least_budget_is_named_and_kept(small):
    how = {**HOW, "goal": Planted([940, 500, 80])}
    with refuses("budget") as error:
        tune(small, WORDS, **how, budget=9)
    least = int(str(error.value).split("at least ")[1].split(",")[0])
    with pytest.raises(WrongUse, match=f"^budget is {least - 1}; give at least {least}"):
        tune(small, WORDS, **how, budget=least - 1)
    free = tune(small, WORDS, **how).evaluations
    for budget in (least, (least + free) // 2):
        seen = []
        spent = tune(
            small, WORDS, **how, budget=budget, progress=lambda *told, seen=seen: seen.append(told)
        ).evaluations
        assert spent <= budget < free
        assert all(done <= total <= budget for _, done, total in seen)
        assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
        assert {"measuring the model", "comparing grids", "verifying"} <= {w for w, *_ in seen}


# prompts


def test_places_are_split_by_text():
    texts = ["a", "b", "a", *"cdefghi", "b"]
    first, second = split(texts, 2)
    assert (first, second) == ([0, 1, 2, 10], [3, 4, 5, 6, 7, 8, 9])
    assert split(list("abcdefg"), 0) == ([], list(range(7)))
    with pytest.raises(WrongUse, match="prompts is a list of 11, 9 of them distinct"):
        split(texts, 3)


def test_some_prompts_keep_their_seeds_and_options(small):
    words = ["gray", "blue", "red"]
    run = Run(small, WORDS[:3], (5, 6, 7), 2.0, options={"negative_prompt": words, "eta": 0.0})
    part = run.part([2, 0])
    assert (part.prompts, part.seeds) == ((WORDS[2], WORDS[0]), (7, 5))
    assert part.options == {"negative_prompt": ["red", "gray"], "eta": 0.0}


# wrong use


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"goal": "beauty"}, "goal is beauty"),
        ({"solver": "heun"}, "solver is heun"),
        ({"goal": "embedding", "encoder": "nowhere"}, "encoder is 'nowhere'"),
        ({"budget": 0}, "budget is 0"),
        ({"budget": 9.5}, "budget is 9.5"),
        ({"steps": 0}, "num_inference_steps is 0"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"plan": replace(SMALL, baselines=("magic",))}, "baselines is magic"),
        ({"plan": replace(SMALL, baselines=("dual-weighted",))}, "baselines is dual-weighted"),
        ({"options": {"prompt": "x"}}, "prompt is x"),
        ({"folder": ""}, "folder"),
    ],
)
def test_wrong_use_is_one_line_before_any_work(changes, argument, small):
    rows, hook = counted(small)
    with pytest.raises(WrongUse, match=f"^{argument}[^\n]*$"):
        tune(small, WORDS, **{**HOW, **changes})
    hook.remove()
    assert not rows


def test_a_table_or_a_dict_is_no_list_of_prompts(small):
    for prompts in (pd.DataFrame({"prompt": WORDS}), {"prompt": WORDS}):
        with refuses("prompts"):
            tune(small, prompts, steps=3, goal="latents")


def test_too_few_prompts_are_told_how_many_are_needed(small):
    for plan, needed in ((SMALL, 10), (replace(SMALL, trials=0), 8), (None, 15)):
        rows, hook = counted(small)
        with pytest.raises(WrongUse, match=rf"^prompts is a list of 6; give {needed} or more "):
            tune(small, WORDS[:6], **{**HOW, "plan": plan})
        hook.remove()
        assert not rows
        if plan:
            assert tune(small, WORDS[: needed + 3], **{**HOW, "plan": plan}).prompts >= 7


def test_one_step_is_a_grid_too(small):
    found = tune(small, WORDS, **{**HOW, "steps": 1})
    assert len(found.grids[CANDIDATE]) == 1
    assert json.loads(json.dumps(found.to_dict()))["evaluations"] == found.evaluations
