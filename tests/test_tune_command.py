"""`asddim tune`: its folder, what it prints, and that it goes on."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from asddim_lib.cli import app
from asddim_lib.tuning.result import Tuned
from tests.runs import ROOT
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
    value, found = json.loads(done.stdout), Tuned.load(tmp_path / "o")
    assert value["timesteps"] == found.grid
    assert value["accepted"] == found.accepted
    assert value["evaluations"] == found.evaluations
    assert {row["peer"] for row in value["rows"]} == set(found.rivals)
    files = {file.name for file in (tmp_path / "o").iterdir()}
    assert files == {"scheduler", "drawn", "tune.json", "report.md", "sheet.png"}
    for part in ("measuring the model", "drawing examples", "left", f"/{found.evaluations}"):
        assert part in done.stderr
    drawn = {file: file.stat().st_mtime_ns for file in (tmp_path / "o" / "drawn").iterdir()}
    again = run("--quick", "--out", "o")
    assert again.exit_code == 0
    assert found.summary() in again.stdout
    assert "o/report.md has the verdicts" in again.stdout
    assert drawn == {f: f.stat().st_mtime_ns for f in (tmp_path / "o" / "drawn").iterdir()}


def test_a_result_without_a_sheet_does_not_take_an_older_one_s(tmp_path):
    found = replace(Tuned.load(ROOT / "results" / "tuned-flow"), sheet=b"pictures")
    found.save(tmp_path)
    assert Tuned.load(tmp_path) == found
    found = replace(found, sheet=b"")
    found.save(tmp_path)
    assert Tuned.load(tmp_path) == found


def test_a_damaged_result_is_not_said_to_be_made_anew(tmp_path, warnings_of_the_library):
    Tuned.load(ROOT / "results" / "tuned-flow").save(tmp_path)
    for damaged in ("", "[]", '{"sha256": "x", "value": {}}'):
        (tmp_path / "tune.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"^folder is .*, whose tune.json is damaged; run th"):
            Tuned.load(tmp_path)
    assert not warnings_of_the_library.text


def test_too_few_prompts_and_too_small_a_budget_are_wrong_use(run):
    for options, words in (
        (("--count", "6"), "prompts is 6 in number; give at least"),
        (("--count", "20", "--budget", "9"), "budget is 9; give at least"),
    ):
        done = run(*options)
        assert str(done.exception).startswith(words)
