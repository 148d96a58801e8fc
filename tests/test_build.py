"""The tools that execute chapters and build the book."""

import json

import build
import chapter as chapter_tool
import papermill
import pytest
import sources
import yaml

from asddim_lib.errors import WrongUse

ROOT = build.ROOT
CONTRACT = yaml.safe_load((ROOT / "book" / "equations.yml").read_text())
DEFAULTS = {"p": 0.5, "steps": [10, 20], "count": 8, "live": False, "out": "", "powers": (0.5,)}


@pytest.mark.xdist_group("build")
def test_a_chapter_runs_with_another_parameter_and_refuses_one_that_it_does_not_have(tmp_path):
    contract = str(ROOT / "book" / "equations.yml")
    build.execute("equations", tmp_path / "e.ipynb", {"contract": contract})
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["parameters"] == {"contract": contract, "chapters": "book/chapters"}
    assert "clip_score" in (tmp_path / "e.ipynb").read_text()
    with pytest.raises(ValueError, match="parameter is samplez; noise has samples, seed"):
        build.execute("noise", tmp_path / "n.ipynb", {"samplez": 3})
    with pytest.raises(WrongUse, match="parameter samples is 'many'; give a value like its"):
        build.execute("noise", tmp_path / "n.ipynb", {"samples": "many"})


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
        ("live=true", True),
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
    with pytest.raises(WrongUse, match=r"^parameter [^\n]+; give a value like its default[^\n]+$"):
        chapter_tool.fit_parameters("noise", parsed, DEFAULTS)
    with pytest.raises(WrongUse, match=r"^parameter is p; write it as NAME=VALUE$"):
        chapter_tool.parse_parameters(["p"], DEFAULTS)


def test_the_command_refuses_a_wrong_value_before_it_executes(capsys):
    with pytest.raises(build.typer.Exit) as stop:
        build.run("one-grid", ["p=half"])
    assert stop.value.exit_code == 2
    line = "parameter p is 'half'; give a value like its default, 0.5 (float)\n"
    assert capsys.readouterr() == ("", line)


def test_a_chapter_depends_on_what_it_reads():
    chapters = build.BOOK / "chapters"
    read = [chapters, ROOT / "book" / "equations.yml"]  # it shows the equations of the chapters
    assert build.reads(chapters / "equations.md") == read
    assert build.reads(chapters / "reach.md") == [ROOT / "results" / "compare"]
    assert build.reads(chapters / "noise.md") == []


def test_a_wrong_number_fails_the_build(tmp_path):
    for equation in CONTRACT:
        number = f'<span class="eqno">({equation["number"]})</span>'
        with (tmp_path / f"{equation['chapter']}.html").open("a") as page:
            page.write(f'<div id="equation-{equation["label"]}">{number}</div>\n')
    build.check_numbers(tmp_path)
    page = tmp_path / "ddim.html"
    page.write_text(page.read_text().replace("(3)", "(4)"))
    with pytest.raises(ValueError, match="eq-ddim is rendered as 4, not 3"):
        build.check_numbers(tmp_path)


def test_a_dotted_name_is_split_after_its_module():
    modules = ["asddim_lib", "asddim_lib.core", "asddim_lib.paper", "asddim_lib.core.noises"]
    method = "NoiseSchedule.forward_step"
    split = sources.split(f"asddim_lib.paper.{method}", modules)
    assert split == ("asddim_lib.paper", method)
    assert sources.split("numpy.ndarray", modules) == ("", "numpy.ndarray")


def test_the_pages_are_rid_of_the_script_for_icons_and_of_nothing_else(tmp_path):
    own = '<script defer src="_static/scripts/bootstrap.js?digest=1"></script>'
    icons = '<script defer src="../_static/scripts/fontawesome.js?digest=1"></script>'
    page = tmp_path / "chapters" / "start.html"
    page.parent.mkdir()
    page.write_text(f"<head>{icons}{own}</head>")
    for _ in range(2):
        build.lighten(tmp_path)
        assert page.read_text() == f"<head>{own}</head>"
