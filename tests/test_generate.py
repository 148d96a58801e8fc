"""`asddim generate` draws what it is asked for, and keeps it as the file's name says."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from typer.testing import CliRunner

from asddim_lib import ASDDIMScheduler, GuidancePlan, calibrate
from asddim_lib.cache import seal
from asddim_lib.cli import app
from asddim_lib.models import load
from tests.refusals import refuses
from tests.tiny import coarse, sd
from tests.zoo import ZOO


def test_generate_lays_the_scheduler_s_own_spacing_unless_told(monkeypatch, tmp_path):
    pipe, _ = sd()
    solver = DDIMScheduler.from_config(pipe.scheduler.config)
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)
    arguments = ["generate", "boot", str(tmp_path / "boot.png"), "--steps", "6"]
    size = ["--call", '{"height": 32, "width": 32}']
    done = CliRunner().invoke(app, [*arguments, "--guidance-scale", "0", "--json", *size])
    solver.set_timesteps(6)
    shown = json.loads(done.stdout)
    assert shown["timesteps"] == solver.timesteps.tolist()
    assert (shown["width"], shown["height"]) == (32, 32)
    with Image.open(tmp_path / "boot.png") as picture:
        assert picture.size == (32, 32)


@pytest.mark.parametrize(
    ("held", "said", "laid"),
    [
        ({"grid": [999, 700, 300, 50]}, [], {"grid": [999, 700, 300, 50]}),
        ({"allocation": "logsnr"}, [], {"allocation": "logsnr"}),
        ({"grid": [999, 700, 300, 50]}, ["--allocation", "logsnr"], {"allocation": "logsnr"}),
        ({"allocation": "logsnr"}, ["--allocation", "uniform"], {}),
    ],
)
def test_generate_lays_what_the_saved_scheduler_lays_unless_told(
    monkeypatch, tmp_path, held, said, laid
):
    pipe, _ = sd()
    plain = pipe.scheduler.config
    pipe.scheduler = ASDDIMScheduler.from_config(plain, **held)
    solver = ASDDIMScheduler.from_config(plain, **laid)
    solver.set_timesteps(4)
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)
    arguments = ["generate", "boot", str(tmp_path / "boot.png"), "--steps", "4", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--guidance-scale", "0", *said])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["timesteps"] == solver.timesteps.tolist()


def test_a_profile_replaces_that_of_the_saved_scheduler(monkeypatch, tmp_path):
    pipe, _ = sd()
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="gradient")
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)
    how = {"num_steps": 4, "estimator": "path", "guidance_scale": 0.0}
    calibrate(pipe, ["a red boot"], **how).save(tmp_path / "p.json")
    arguments = ["generate", "boot", str(tmp_path / "boot.png"), "--steps", "4"]
    arguments += ["--guidance-scale", "0"]
    assert "profile is None" in str(CliRunner().invoke(app, arguments).exception)
    arguments += ["--override", "model", "--profile", str(tmp_path / "p.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception


def test_a_video_is_kept_where_it_moves(monkeypatch, tmp_path):
    pipe, options = ZOO["wan-2.1"]()
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)
    call = ["--steps", "2", "--call", json.dumps(options)]
    done = CliRunner().invoke(app, ["generate", "boot", str(tmp_path / "boot.gif"), *call])
    assert done.exit_code == 0, done.exception
    with Image.open(tmp_path / "boot.gif") as video:
        assert video.n_frames == options["num_frames"]
    done = CliRunner().invoke(app, ["generate", "boot", str(tmp_path / "boot.jpg"), *call])
    assert "a video's file ends in .gif or .webp" in str(done.exception)


@pytest.fixture
def tuned(tmp_path):
    """A folder as `tune` writes it, for a tiny model that has a folder of its own."""
    coarse().save_pretrained(tmp_path / "model")
    setting = {"model": str(tmp_path / "model"), "steps": 3, "guidance_scale": 2.0}
    scheduler = ASDDIMScheduler.from_config(coarse().scheduler.config, grid=[999, 600, 200])
    scheduler.save_pretrained(tmp_path / "tuned" / "scheduler")
    seal(tmp_path / "tuned" / "tune.json", {"setting": setting})
    return tmp_path / "tuned"


def test_a_tuned_folder_draws_with_its_model_scheduler_steps_and_guidance(tuned, tmp_path):
    words = ["generate", "a red boot", str(tmp_path / "boot.png"), "--model", str(tuned), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    shown = json.loads(done.stdout)
    assert shown["timesteps"] == [999, 600, 200]
    assert shown["guidance_scale"] == 2.0
    pipe = load.load_pipeline(tuned)
    assert pipe.scheduler.config["grid"] == [999, 600, 200]
    assert pipe.config["_name_or_path"] == str(tmp_path / "model")
    done = CliRunner().invoke(app, ["export", "--model", str(tuned)])
    assert json.loads(done.stdout)["timesteps"] == [999, 600, 200]


def test_a_folder_s_plan_is_drawn_with_and_a_named_one_replaces_it(tuned, tmp_path):
    words = ["generate", "a red boot", str(tmp_path / "boot.png"), "--model", str(tuned)]

    def picture(*more):
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 0, done.exception
        return (tmp_path / "boot.png").read_bytes()

    plain = picture()
    GuidancePlan.interval(1.0).save(tuned)
    guided = picture()
    assert guided != plain
    assert picture("--guidance-plan", "constant") == plain
    assert picture("--guidance-plan", str(tuned)) == guided


@pytest.mark.parametrize("inner", ["scheduler", ""])
def test_scheduler_and_plan_of_a_folder_are_put_on_by_one_call(tuned, inner, tmp_path):
    pipe, plan, own = coarse(), GuidancePlan.interval(1.0), coarse().scheduler
    pipe.scheduler = own
    folder = tuned if inner else tuned / "scheduler"
    plan.save(folder)
    call = {"prompt": "a red boot", "num_inference_steps": 3, "guidance_scale": 2.0}

    def drawn():
        return pipe(**call, generator=torch.Generator().manual_seed(0), output_type="np").images

    rows = GuidancePlan.apply_saved(pipe, folder)
    found = drawn()
    assert pipe.scheduler.timesteps.tolist() == [999, 600, 200]
    assert rows.count == 3 * 2 - rows.skipped
    with refuses("pipe"):
        GuidancePlan.apply_saved(pipe, folder)
    assert np.allclose(drawn(), found, atol=1e-4)  # the plan that is on stays
    GuidancePlan.remove(pipe)
    assert pipe.scheduler.config["grid"] == [999, 600, 200]
    with plan.on(pipe):
        assert np.allclose(drawn(), found, atol=1e-4)
    pipe.scheduler = own
    for broken in (tmp_path / "model", tmp_path):  # without a plan, without a scheduler
        if broken == tmp_path:
            plan.save(broken)
        with refuses("folder"):
            GuidancePlan.apply_saved(pipe, broken)
        assert pipe.scheduler is own


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"sha256": "x", "value": {}}'])
def test_a_damaged_tuned_folder_is_said_to_be_one(content, tuned):
    (tuned / "tune.json").write_text(content)
    with refuses("model"):
        load.load_pipeline(tuned)
