"""The paper's tables from recorded runs, and the JSON that commands print."""

import csv
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from asddim_lib.cli import app as asddim
from experiments.cli import app
from experiments.contest import paired
from experiments.records import read_records
from experiments.report import INTERVALS, QUALITY, TIME, plus_minus, read_record, table
from tests.refusals import refuses

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "guidance-7.5" / "steps-20"


def rows(file):
    with file.open() as held:
        return list(csv.DictReader(held))


def test_a_table_prints_the_record_beside_the_paper():
    shown = table(read_record(FOLDER).summary, QUALITY | TIME).set_index("method")
    paper = {(row["steps"], row["method"]): row for row in rows(ROOT / "data" / "paper_tables.csv")}
    recorded = rows(FOLDER / "summary.csv")
    assert len(shown) == len(recorded) == 5
    for row in recorded:
        said, printed = shown.loc[row["method"]], paper.get((row["steps"], row["method"]))
        assert said["FID"] == f"{float(row['fid']):.1f} ± {float(row['fid_ci']):.1f}"
        assert (
            said["all right, %"]
            == f"{100 * float(row['right']):.1f} ± {100 * float(row['right_ci']):.1f}"
        )
        assert said["evaluations"] == int(row["nfe"])
        assert said["paper's CLIP"] == (printed["clip"] if printed else "–")
        assert said["paper's seconds"] == (printed["seconds"] if printed else "–")
    assert list(shown["paper's FID"]) == [
        "24.3",
        "–",
        "21.8",
        "22.5",
        "20.9",
    ]  # of ddim-trailing, the paper has nothing


def test_what_the_paper_has_not_is_no_column():
    summary = read_record(FOLDER).summary.assign(steps=7, clip=float("nan"))
    shown = table(summary, QUALITY)
    assert not [name for name in shown if name.startswith("paper")]
    assert set(shown["CLIP"]) == {"–"}
    assert not {"N", "evaluations"} & set(shown), (
        "all rows have as many pictures; time is not asked for"
    )
    assert list(table(summary.assign(n=range(5)), QUALITY)["N"]) == [0, 1, 2, 3, 4]


def test_a_figure_of_one_value_has_an_endless_interval_and_none_of_none():
    share, clip = QUALITY["right"], QUALITY["clip"]
    assert plus_minus(0.25, math.inf, clip) == "0.250 ± ∞"
    assert plus_minus(0.0, 0.0566, share) == "0.0 ± 5.7"
    assert plus_minus(math.nan, math.inf, clip) == "–"


def test_a_folder_s_name_may_be_text():
    assert read_record(str(FOLDER)).folder == FOLDER
    pd.testing.assert_frame_equal(read_records(str(FOLDER)), read_records(FOLDER))


def test_the_command_prints_tables_for_people_and_rows_for_machines():
    plain = CliRunner().invoke(app, ["report", str(FOLDER)])
    assert plain.exit_code == 0
    assert (
        "guidance 7.5, ddim: 1000 prompts per row, float32 on cpu, weights c3c9c36f409fdb59"
        in plain.stdout
    )
    assert [
        line for line in plain.stdout.splitlines() if line.startswith("| 20 | combined | 154.2 ± ")
    ]
    assert plain.stdout.rstrip().endswith(INTERVALS)
    both = CliRunner().invoke(
        app, ["report", "--json", str(FOLDER), str(FOLDER.with_name("steps-50"))]
    )
    found = json.loads(both.stdout)
    assert [Path(one["folder"]).name for one in found] == ["steps-20", "steps-50"]
    assert [row["fid"] for row in found[0]["rows"]] == [
        pytest.approx(float(row["fid"])) for row in rows(FOLDER / "summary.csv")
    ]
    assert found[0]["provenance"]["weights_sha256"] == "c3c9c36f409fdb59"


def test_a_folder_without_a_whole_record_is_named(tmp_path):
    with refuses("folder"):
        read_record(tmp_path)
    for file in (ROOT / "results" / "compare" / "direct").iterdir():
        shutil.copy(file, tmp_path)
    records = tmp_path / "records.parquet"
    records.write_bytes(records.read_bytes()[:-1])
    with refuses(str(records)):
        read_record(tmp_path)


def test_machines_are_told_what_people_are(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def said(command, *arguments):
        program = asddim if command in ("calibrate", "generate") else app
        done = CliRunner().invoke(program, [command, *map(str, arguments), "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.stdout)

    small = ["--count", 2, "--steps", 2, "--guidance-scale", 2]
    profile = said("calibrate", tmp_path / "p.json", "--quick")
    assert (
        profile["evaluations"] == json.loads((tmp_path / "p.json").read_text())["evaluations"] == 66
    )
    drawn = said("generate", "a red boot", tmp_path / "boot.png", "--steps", 3)
    assert (drawn["width"], drawn["timesteps"]) == (64, [667, 334, 1])  # its scheduler's spacing
    planned = said("evaluate", *small, "--methods", "ddim,noise", "--plan")
    assert planned["rows"][0]["pictures"] == 4
    assert planned["seconds"] > 0
    shard = said(
        "evaluate", *small, "--methods", "ddim", "--out", tmp_path / "out", "--shard", "0/2"
    )
    assert shard == [{"shard": "0/2", "failed": 0}]
    ended = said("evaluate", *small, "--methods", "ddim", "--out", tmp_path / "out")
    assert [row["method"] for row in ended["rows"]] == ["ddim"]
    assert said("report", tmp_path / "out")[0]["provenance"]["model"] == "bundled"
    beside = said(
        "compare", *small, "--grids", "karras", "--reference-steps", 4, "--out", tmp_path / "beside"
    )
    assert [row["method"] for row in beside["rows"]] == ["trailing", "karras"]
    trailing, karras = beside["rows"]
    assert (trailing["difference"], trailing["verdict"]) == (None, None)
    expected = paired(read_records(tmp_path / "beside"), "trailing", "distance")
    assert karras["verdict"] == expected["verdict"].item()
    assert karras["p_adjusted"] == karras["p_value"]
