"""The tools that execute chapters and build the book."""

import json

import build
import chapter as chapter_tool
import papermill
import provenance
import pytest

from asddim_lib.errors import WrongUse
from tests.refusals import refuses

ROOT = build.ROOT
DEFAULTS = {"p": 0.5, "steps": [10, 20], "count": 8, "live": False, "out": "", "powers": (0.5,)}


@pytest.mark.xdist_group("build")
def test_a_chapter_runs_with_another_parameter_and_refuses_one_that_it_does_not_have(tmp_path):
    contract = str(ROOT / "book" / "equations.yml")
    build.execute("equations", tmp_path / "e.ipynb", {"contract": contract})
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["parameters"] == {"contract": contract, "chapters": "book/chapters"}
    assert "clip_score" in (tmp_path / "e.ipynb").read_text()
    for wrong in ({"samplez": 3}, {"samples": "many"}):
        with pytest.raises(WrongUse, match=next(iter(wrong))):
            build.execute("noise", tmp_path / "n.ipynb", wrong)
    assert not (tmp_path / "n.ipynb").exists()


@pytest.mark.xdist_group("build")  # both write into _build/failed
def test_a_chapter_that_fails_leaves_its_partial_notebook(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError):
        build.execute("equations", tmp_path / "e.ipynb", {"contract": "nowhere.yml"})
    assert not (tmp_path / "e.ipynb").exists()
    assert "nowhere.yml" in (build.BUILD / "failed" / "equations.ipynb").read_text()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("p=1e-4", 0.0001),
        ("p=-2E3", -2000.0),
        ("p=1.5e+2", 150.0),
        ("p=.5", 0.5),
        ("p=2", 2.0),
        ("count=12", 12),
        ("steps=[20, 50]", [20, 50]),
        ("powers=[1e-4, 1]", [0.0001, 1]),
        ("live=True", True),
        ("out=1e-4", "1e-4"),
        ("out=no", "no"),
        ("out=", ""),
        ("out=a=b", "a=b"),
    ],
)
def test_a_value_has_the_type_of_its_default(option, value):
    parsed = chapter_tool.parse_parameters([option], DEFAULTS)
    (fitted,) = chapter_tool.fit_parameters("noise", parsed, DEFAULTS).values()
    assert fitted == value
    assert type(fitted) is type(value)


WRONG = """p=half p=true p= p=[1] count=2.5 count=1e3 count=yes count=ten
    steps=20 steps=[a] steps=[1.5] powers=[small] live=1 live=maybe"""


@pytest.mark.parametrize("option", WRONG.split())
def test_a_value_of_another_type_is_refused_in_one_line(option):
    parsed = chapter_tool.parse_parameters([option], DEFAULTS)
    with pytest.raises(WrongUse, match=rf"^parameter {option.partition('=')[0]}[^\n]+$"):
        chapter_tool.fit_parameters("noise", parsed, DEFAULTS)


@pytest.mark.parametrize("option", ["p", "=1", ""])
def test_a_parameter_without_a_name_or_a_value_is_refused(option):
    with refuses("parameter"):
        chapter_tool.parse_parameters([option], DEFAULTS)


def test_the_command_refuses_a_wrong_value_before_it_executes(capsys):
    with pytest.raises(build.typer.Exit) as stop:
        build.run("one-grid", ["p=half"])
    assert stop.value.exit_code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "parameter p is 'half'" in said.err


def test_a_chapter_depends_on_what_it_reads():
    chapters = build.BOOK / "chapters"
    read = [chapters, ROOT / "book" / "equations.yml"]  # it shows the equations of the chapters
    assert build.reads(chapters / "equations.md") == read
    read = ("compare", "guidance-plans", "pictures", "recipes/thousand/flow")
    assert {ROOT / "results" / name for name in read} <= set(build.reads(chapters / "second.md"))
    assert build.reads(chapters / "noise.md") == []


def test_the_page_of_origins_has_a_line_for_every_record():
    lines = provenance.record_table()[2:]
    records = sorted((ROOT / "results").rglob("provenance.json"))
    assert len(lines) == len(records)
    for line, record in zip(lines, records, strict=True):
        assert line.startswith(f"| `{record.parent.relative_to(ROOT / 'results')}` |")
        assert all(cell.strip() for cell in line.strip("|").split("|"))
