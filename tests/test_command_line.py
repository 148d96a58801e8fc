"""Commands that draw: in a process as users start it, and in this one where that is the same."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
from diffusers import EulerDiscreteScheduler
from typer.testing import CliRunner

from asddim_lib.cli import app, main
from asddim_lib.models.load import load_scheduler_config

LIMIT = 2000


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_main(arguments, monkeypatch, capsys):
    """Exit code and last line on stderr of the entry point."""
    monkeypatch.setattr(sys, "argv", ["asddim", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (["generate", ""], "prompt is "),
        (["generate", "a red boot " * 20], "prompt is "),
        (["generate", "a red boot", "--seed", "9" * 23], "seed is 9999"),
        (["calibrate", "p.json", "--count", "1", "--seed", "9" * 23], "seed is 9999"),
        (["calibrate", "p.json", "--count", "1", "--feature-probes", "-1"], "feature_probes is -1"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_no_file(
    arguments, argument, preloaded, tmp_path, monkeypatch, capsys
):
    code, line = run_main(arguments, monkeypatch, capsys)
    assert code == 2
    assert line.startswith(f"asddim: {argument}")
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk():
    """No file may grow beyond the limit, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_in_one_line_and_leaves_no_partial_file(
    preloaded, tmp_path, monkeypatch, capsys
):
    words = ["calibrate", "p.json", "--count", "1", "--num-steps", "60", "--estimator", "path"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with full_disk():
        code, line = run_main(words, monkeypatch, capsys)
    assert code == 2
    assert "could not be written" in line
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_process_on_a_full_disk_ends_in_one_line(tmp_path):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))\n"
    code = limit + "from asddim_lib.cli import main; main()"
    # The data of coverage would meet the limit too.
    plain = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    arguments = ["generate", "a red boot on a white ground", "x.png", "--steps", "2"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    assert done.returncode == 2
    assert "could not be written" in done.stderr.strip().splitlines()[-1]
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_export_prints_the_same_grid_for_each_program():
    def export(form):
        return CliRunner().invoke(app, ["export", "--steps", "7", "--format", form]).stdout

    ours = json.loads(export("diffusers"))
    assert len(ours["timesteps"]) == 7
    theirs = [*ours["sigmas"][:-1], 0.0]  # where their samplers end
    assert json.loads(export("a1111")) == theirs
    assert [float(value) for value in export("comfyui").split(", ")] == theirs
    solver = EulerDiscreteScheduler.from_config(
        load_scheduler_config(), final_sigmas_type="sigma_min"
    )
    solver.set_timesteps(timesteps=ours["timesteps"])
    assert solver.sigmas.tolist() == pytest.approx(ours["sigmas"], rel=1e-3)
