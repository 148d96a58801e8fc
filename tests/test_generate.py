"""`asddim generate` draws what it is asked for, and keeps it as the file's name says."""

import json

from diffusers import DDIMScheduler
from PIL import Image
from typer.testing import CliRunner

from asddim_lib.cli import app
from asddim_lib.models import load
from tests.tiny import sd
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
