"""`asddim tune` and `compare`: their folder, what they print, and that they go on."""

import json

import pytest
from typer.testing import CliRunner

from asddim_lib.cache import sealed
from asddim_lib.cli import app
from tests.test_goals import encoders as encoders


@pytest.fixture
def run(preloaded_small, encoders, tmp_path, monkeypatch):
    """Runs the command with a tiny model and encoder."""
    monkeypatch.chdir(tmp_path)
    shared = ["tune", "--steps", "2", "--guidance-scale", "2", "--encoder", encoders[0].name]

    def invoke(*more):
        return CliRunner().invoke(app, [*shared, *more])

    return invoke


def test_the_folder_holds_the_grid_and_the_same_command_goes_on(run, tmp_path):
    done = run("--quick", "--out", "o", "--json")
    assert done.exit_code == 0, done.exception
    value, found = json.loads(done.stdout), sealed(tmp_path / "o" / "tune.json")
    assert value["timesteps"] == found["grid"]
    assert value["changed"] == (found["decision"]["returned"] != "current")
    assert value["evaluations"] == found["evaluations"]
    assert {row["second"] for row in value["rows"]} >= {"current"}
    files = {file.name for file in (tmp_path / "o").iterdir()}
    assert files >= {"scheduler", "drawn", "tune.json", "report.md", "sheet.png"}
    for part in ("measuring the model", "drawing examples", "left", f"/{found['evaluations']}"):
        assert part in done.stderr
    drawn = {file: file.stat().st_mtime_ns for file in (tmp_path / "o" / "drawn").iterdir()}
    again = run("--quick", "--out", "o")
    assert again.exit_code == 0
    assert again.stdout.split("\n")[0] in (tmp_path / "o" / "report.md").read_text()
    assert "o/report.md" in again.stdout
    assert drawn == {f: f.stat().st_mtime_ns for f in (tmp_path / "o" / "drawn").iterdir()}


def test_too_few_prompts_and_too_small_a_budget_are_wrong_use(run):
    for options, words in (
        (("--count", "6"), "prompts is a list of 6; give"),
        (("--count", "20", "--budget", "9"), "budget is 9; give at least"),
    ):
        done = run(*options)
        assert str(done.exception).startswith(words)


def test_compare_draws_the_grids_that_are_named(run, encoders, tmp_path):
    words = ["compare", "--steps", "2", "--grids", "trailing,karras", "--count", "7"]
    words += ["--encoder", encoders[0].name, "--guidance-scale", "2", "--out", "c", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    value = json.loads(done.stdout)
    drawn = {name for row in value["rows"] for name in (row["first"], row["second"])}
    assert drawn <= {"current", "trailing", "karras"}
    assert len(drawn) > 1
    assert sealed(tmp_path / "c" / "tune.json")["evaluations"] == value["evaluations"]
