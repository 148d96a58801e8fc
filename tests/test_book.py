"""The equation contract, and every chapter's exercises: the solution passes its check, and a stub in its place does not."""

import ast
import importlib
import importlib.util
import json
import math
import re
import subprocess
import symtable
import sys
from pathlib import Path

import jupytext
import matplotlib
import numpy as np
import papermill
import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
CONTRACT = yaml.safe_load((ROOT / "book" / "equations.yml").read_text())
CHAPTERS = [
    Path(entry["file"]).name
    for part in yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())["parts"]
    for entry in part["chapters"]
]
BY_NUMBER = pytest.mark.parametrize(
    "equation", CONTRACT, ids=[f"Eq {e['number']}" for e in CONTRACT]
)


def read(chapter):
    return (ROOT / "book" / "chapters" / f"{chapter}.md").read_text()


def code(chapter):
    return [
        cell
        for cell in jupytext.read(ROOT / "book" / "chapters" / f"{chapter}.md").cells
        if cell.cell_type == "code"
    ]


WITH_EXERCISES = [
    chapter
    for chapter in CHAPTERS
    if re.search(r"^:tags: .*\bsolution\b", read(chapter), re.MULTILINE)
]


def found(function):
    """The function's first name in its module, and what stands there."""
    parts = function.split(".")
    return parts[2], getattr(importlib.import_module(".".join(parts[:2])), parts[2])


def test_the_sixteen_equations_are_labelled_once_and_in_the_paper_s_order():
    assert [e["number"] for e in CONTRACT] == list(range(1, 17))
    labels = [
        (label, chapter)
        for chapter in CHAPTERS
        for label in re.findall(r"^\$\$ \((\S+)\)$", read(chapter), re.MULTILINE)
    ]
    assert labels == [(e["label"], e["chapter"]) for e in CONTRACT]


@BY_NUMBER
def test_an_equation_s_chapter_uses_its_function(equation):
    name, _ = found(equation["function"])
    last = equation["function"].rsplit(".", 1)[1]
    nodes = [
        node
        for cell in code(equation["chapter"])
        for node in ast.walk(ast.parse(_plain(cell.source)))
    ]
    imported = {
        alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert name in imported or equation["function"].split(".")[1] in imported
    assert re.search(rf"\b{last}\b", "\n".join(cell.source for cell in code(equation["chapter"])))
    assert f"{last}`" in read(equation["chapter"]), "the text names it, too"


@BY_NUMBER
def test_an_equation_s_tests_exist(equation):
    for test in equation["tests"]:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / file).read_text()


@BY_NUMBER
def test_an_equation_s_number_checks(equation):
    name, thing = found(equation["function"])
    assert eval(equation["check"], {"np": np, "torch": torch, "math": math, name: thing})


def test_every_chapter_with_an_equation_has_exercises():
    assert {e["chapter"] for e in CONTRACT} <= set(WITH_EXERCISES)


def names_in(cell):
    """What a cell binds, and what it needs from the cells before it."""

    def free(table):
        own = {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module")
        }
        return own.union(*(free(child) for child in table.get_children()))

    table = symtable.symtable(_plain(cell.source), "cell", "exec")
    return {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }, free(table)


def needed(cells):
    """The exercises of a chapter, and the cells before them that they need: not the figures, which the build draws."""
    kept, wanted = [], set()
    for cell in reversed(cells):
        bound, mentioned = names_in(cell)
        if {"solution", "check"} & set(cell.metadata.get("tags", [])) or bound & wanted:
            kept.insert(0, cell)
            wanted |= mentioned
    return kept


@pytest.mark.parametrize("chapter", WITH_EXERCISES)
def test_exercises_pass_with_their_solution_and_fail_with_a_stub(chapter, monkeypatch):
    monkeypatch.chdir(ROOT)
    matplotlib.use("Agg")
    cells, names, solved = needed(code(chapter)), {"__name__": "__main__"}, 0
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if "solution" in cell.metadata.get("tags", []):
            assert "check" in after.metadata["tags"]
            stubs = {
                node.name: lambda *args, **kwargs: None
                for node in ast.parse(cell.source).body
                if isinstance(node, ast.FunctionDef)
            }
            with pytest.raises((AssertionError, TypeError, AttributeError)):
                exec(after.source, {**names, **stubs})
            solved += 1
        exec(_plain(cell.source), names)
    matplotlib.pyplot.close("all")
    assert solved >= 3


def test_the_audit_types_no_figure():
    """What the paper's tables or our records say is computed: prose has whole numbers alone, such as step counts and years."""
    prose = "\n".join(
        cell.source
        for cell in jupytext.read(ROOT / "book" / "chapters" / "audit.md").cells
        if cell.cell_type == "markdown"
    )
    assert not re.findall(r"\d[.,]\d|\d ?%", prose.split("## Exercises")[0])


@pytest.mark.parametrize(
    "chapter", [chapter for chapter in ("start", *CHAPTERS) if read(chapter).startswith("---")]
)
def test_a_chapter_s_code_is_clean(chapter, tmp_path):
    """No import or name that is not used, none that is not there."""
    (tmp_path / "chapter.py").write_text(
        "\n\n".join(_plain(cell.source) for cell in code(chapter)) + "\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "F,B",
            "--ignore",
            "B018",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_bibliography_is_what_the_chapters_cite():
    works = re.findall(
        r"^@\w+\{(\w+),$", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE
    )
    cited = {
        key
        for chapter in ("start", *CHAPTERS)
        for keys in re.findall(r"\{cite:[pt]\}`([^`]+)`", read(chapter))
        for key in keys.split(",")
    }
    assert len(works) == len(set(works))
    assert set(works) == cited


def _plain(source):
    return "\n".join(line for line in source.splitlines() if not line.startswith("%"))


def build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.xdist_group("build")
def test_a_chapter_runs_with_another_parameter_and_refuses_one_that_it_does_not_have(tmp_path):
    made = build()
    made.execute(
        "equations", tmp_path / "e.ipynb", {"contract": str(ROOT / "book" / "equations.yml")}
    )
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["parameters"] == {"contract": str(ROOT / "book" / "equations.yml")}
    assert "clip_score" in (tmp_path / "e.ipynb").read_text()
    with pytest.raises(ValueError, match="parameter is samplez; noise has samples, seed"):
        made.execute("noise", tmp_path / "n.ipynb", {"samplez": 3})


@pytest.mark.xdist_group("build")  # both fill _build/failed
def test_a_chapter_that_fails_leaves_its_partial_notebook(tmp_path):
    made = build()
    with pytest.raises(papermill.PapermillExecutionError):
        made.execute("equations", tmp_path / "e.ipynb", {"contract": "nowhere.yml"})
    assert not (tmp_path / "e.ipynb").exists()
    assert "nowhere.yml" in (made.BUILD / "failed" / "equations.ipynb").read_text()


def test_a_chapter_hangs_on_what_it_reads():
    made = build()
    assert made.reads(made.BOOK / "chapters" / "equations.md") == [ROOT / "book" / "equations.yml"]
    assert made.reads(made.BOOK / "chapters" / "peers.md") == [ROOT / "results" / "compare"]
    assert made.reads(made.BOOK / "chapters" / "noise.md") == []


def test_a_wrong_number_fails_the_build(tmp_path):
    for equation in CONTRACT:
        with (tmp_path / f"{equation['chapter']}.html").open("a") as page:
            page.write(
                f'<div id="equation-{equation["label"]}"><span class="eqno">({equation["number"]})</span></div>\n'
            )
    build().check_numbers(tmp_path)
    page = tmp_path / "ddim.html"
    page.write_text(page.read_text().replace("(3)", "(4)"))
    with pytest.raises(ValueError, match="eq-ddim is rendered as 4, not 3"):
        build().check_numbers(tmp_path)
