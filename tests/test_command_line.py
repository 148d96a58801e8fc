"""Commands that draw: in a process as users start it, and in this one where that is the same."""

import json
import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import pandas as pd
import pytest
from diffusers import EulerDiscreteScheduler
from typer.testing import CliRunner

from asddim_lib.cli import app, main
from asddim_lib.models import load
from asddim_lib.models.load import load_scheduler_config
from experiments import clock as bench

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
    ("arguments", "message"),
    [
        (["generate", ""], "prompt is "),
        (["generate", "a red boot", "--steps", "0"], "num_inference_steps is 0"),
        (["generate", "a red boot " * 20], "prompt is "),
        (["generate", "a red boot", "--seed", "9" * 23], "seed is 9999"),
        (["calibrate", "p.json", "--count", "1", "--seed", "9" * 23], "seed is 9999"),
        (["calibrate", "p.json", "--count", "1", "--feature-probes", "-1"], "feature_probes is -1"),
        (["choose", "--count", "2", "--reference-steps", "0"], "reference_steps is 0; give 1 to"),
        (["evaluate", "--prompt-seed", "-1"], "prompt_seed is -1; give at least 0"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_no_file(
    arguments, message, preloaded, tmp_path, monkeypatch, capsys
):
    code, line = run_main(arguments, monkeypatch, capsys)
    assert code == 2
    assert line.startswith(f"asddim: {message}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "file", "message"),
    [
        *[
            (command, file, message)
            for command in ("clock", "calibrate", "generate")
            for file, message in (
                ("none/x.png", "out is none/x.png, in a folder that is not there; make the folder"),
                (".", "out is ., a folder; give the name of a file"),
            )
        ],
        ("generate", "x.txt", "out is x.txt; give a name that ends as a picture's, such as .png"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    command, file, message, tmp_path, monkeypatch, capsys
):
    """No model is there to be loaded or timed: the refusal comes before it."""
    monkeypatch.setattr(load, "load_pipeline", None)
    monkeypatch.setattr(bench, "clock", None)
    words = {"clock": ["--out", file], "calibrate": [file], "generate": ["a red boot", file]}
    code, line = run_main([command, *words[command]], monkeypatch, capsys)
    assert (code, line) == (2, f"asddim: {message}")
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "p.json", "--count", "1", "--num-steps", "60", "--estimator", "path"],
        ["evaluate", "--out", "o", "--count", "4", "--steps", "1", "--methods", "ddim"],
    ],
)
def test_a_full_disk_ends_in_one_line_and_leaves_no_partial_file(
    arguments, preloaded, tmp_path, monkeypatch, capsys
):
    with full_disk():
        code, line = run_main(arguments, monkeypatch, capsys)
    assert code == 2
    assert "could not be written" in line
    left = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert left <= {"claim.json", ".lock"}  # these were whole before the disk was full


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


def test_compare_sets_grids_beside_the_trailing_one(preloaded, tmp_path):
    arguments = "compare --out o --count 8 --grids noise --steps 2 --guidance-scale 1"
    arguments += " --reference-steps 6 --calibrate-on 1 --calibrate-steps 6"
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 0, done.exception
    pairs, summary = (
        pd.read_csv(tmp_path / "o" / f"{name}.csv").set_index("method")
        for name in ("paired", "summary")
    )
    assert list(pairs.index) == ["noise"]
    change = summary["distance"]["noise"] - summary["distance"]["trailing"]
    assert pairs["difference"]["noise"] == pytest.approx(change, abs=1e-9)
    assert "noise" in done.stdout


def test_export_prints_the_same_grid_for_each_program():
    def export(form):
        return CliRunner().invoke(app, ["export", "--steps", "7", "--format", form]).stdout

    ours = json.loads(export("diffusers"))
    assert len(ours["timesteps"]) == 7
    assert json.loads(export("a1111")) == ours["sigmas"]
    assert [float(value) for value in export("comfyui").split(", ")] == ours["sigmas"]
    solver = EulerDiscreteScheduler.from_config(
        load_scheduler_config(), timestep_spacing="trailing", final_sigmas_type="zero"
    )
    solver.set_timesteps(timesteps=ours["timesteps"])
    assert solver.sigmas.tolist() == pytest.approx(ours["sigmas"], rel=1e-3)
