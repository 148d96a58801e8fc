"""The equation contract, and every chapter's code, names, exercises and citations."""

import ast
import importlib
import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import links
import numpy as np
import pytest
import reference
import torch
import yaml

ROOT = Path(__file__).parents[1]
CONTRACT = yaml.safe_load((ROOT / "book" / "equations.yml").read_text())
CHAPTERS = [name for name in links.pages() if name != "start"]
TEXT = {name: (ROOT / "book" / "chapters" / f"{name}.md").read_text() for name in CHAPTERS}
TEXT["start"] = (ROOT / "book" / "chapters" / "start.md").read_text()
CODE = {
    name: [cell for cell in jupytext.reads(text, fmt="md:myst").cells if cell.cell_type == "code"]
    for name, text in TEXT.items()
    if text.startswith("---")
}
WITH_EXERCISES = [
    name for name in CHAPTERS if re.search(r"^:tags: .*\bsolution\b", TEXT[name], re.MULTILINE)
]
BY_NUMBER = pytest.mark.parametrize(
    "equation", CONTRACT, ids=[f"Eq {e['number']}" for e in CONTRACT]
)


def plain(cell):
    """A cell's Python, without IPython's magics."""
    return "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))


def resolve(function):
    """The module of a dotted name, the first name in it, and the object of that name."""
    parts = function.split(".")
    cut = next(n for n in range(len(parts) - 1, 0, -1) if find_spec_of(parts[:n]))
    module, name = ".".join(parts[:cut]), parts[cut]
    return module, name, getattr(importlib.import_module(module), name)


def find_spec_of(parts):
    """Whether a dotted name is a module."""
    try:
        return importlib.util.find_spec(".".join(parts)) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


def test_the_sixteen_equations_are_labelled_once_and_in_the_paper_s_order():
    assert [e["number"] for e in CONTRACT] == list(range(1, 17))
    labels = [
        (label, name)
        for name in CHAPTERS
        for label in re.findall(r"^\$\$ \((\S+)\)$", TEXT[name], re.MULTILINE)
    ]
    assert labels == [(e["label"], e["chapter"]) for e in CONTRACT]


@BY_NUMBER
def test_an_equation_s_chapter_uses_its_function(equation):
    module, name, _ = resolve(equation["function"])
    last = equation["function"].rsplit(".", 1)[1]
    cells = CODE[equation["chapter"]]
    imported = {
        (node.module, alias.name)
        for cell in cells
        for node in ast.walk(ast.parse(plain(cell)))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    package = module.split(".")[1]
    assert {(module, name), ("asddim_lib", package)} & imported
    assert re.search(rf"\b{last}\b", "\n".join(cell.source for cell in cells))
    assert f"{last}`" in TEXT[equation["chapter"]], "the text names it, too"


@BY_NUMBER
def test_an_equation_s_tests_exist(equation):
    for test in equation["tests"]:
        file, name = test.split("::")
        assert f"def {name}(" in (ROOT / file).read_text()


@BY_NUMBER
def test_an_equation_s_number_checks(equation):
    _, name, thing = resolve(equation["function"])
    assert eval(equation["check"], {"np": np, "torch": torch, "math": math, name: thing})


def roles(text):
    """The targets of a page's roles of the Python domain."""
    return re.findall(r"\{py:\w+\}`(?:[^`<]*<)?~?(asddim_lib[\w.]*)>?`", text)


def resolves(target):
    """Whether a dotted name is a module, or an object that can be reached from one."""
    parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            place = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            if name in getattr(place, "__annotations__", {}):
                return True
            if not hasattr(place, name):
                return False
            place = getattr(place, name)
        return True
    return False


def test_every_function_that_a_page_names_exists():
    names = {target for text in TEXT.values() for target in roles(text)}
    assert len(names) > 10
    assert [target for target in sorted(names) if not resolves(target)] == []
    assert not resolves("asddim_lib.paper.nothing")


def test_the_reference_has_every_package_and_names_what_is_there():
    page = "\n".join(reference.reference_pages().values())
    sections = re.findall(r"^\.\. automodule:: (\S+)\n   :members: (.+)$", page, re.MULTILINE)
    modules = [module for module, _ in sections]
    assert len(modules) == len(set(modules)) > 30
    packages = {file.parent for file in (ROOT / "asddim_lib").rglob("*.py")}
    listed = {ROOT / folder for folder in reference.PACKAGES} | {ROOT / "asddim_lib" / "cli"}
    assert packages <= listed, "a package has no heading"
    for module, names in sections:
        thing = importlib.import_module(module)
        assert all(hasattr(thing, name) for name in names.split(", ")), module


def test_every_chapter_with_an_equation_has_exercises():
    assert {e["chapter"] for e in CONTRACT} <= set(WITH_EXERCISES)


@pytest.mark.parametrize("chapter", WITH_EXERCISES)
def test_each_solution_defines_functions_and_its_check_follows(chapter):
    """That checks pass with the solution and fail with a stub is tested in test_colab_run."""
    cells, solutions = CODE[chapter], 0
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if "solution" in cell.metadata.get("tags", []):
            assert any(isinstance(node, ast.FunctionDef) for node in ast.parse(cell.source).body)
            assert "check" in after.metadata["tags"]
            solutions += 1
    assert solutions >= 3


def test_the_page_about_the_paper_types_no_figure():
    """Figures of the paper or of our records are computed; prose has whole numbers only."""
    cells = jupytext.reads(TEXT["paper"], fmt="md:myst").cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = prose.replace("7.5", "")  # the paper's guidance scale, a setting
    assert not re.findall(r"\d[.,]\d|\d ?%", prose.split("## Exercises")[0])


def test_no_two_figures_equations_or_solutions_have_one_label():
    named = r"(?:name: ([\w-]+)\}$|^\(([\w-]+)\)=$|^\$\$ \(([\w-]+)\)$)"
    labels = [
        "".join(found) for text in TEXT.values() for found in re.findall(named, text, re.MULTILINE)
    ]
    assert len(labels) > 80
    assert sorted(labels) == sorted(set(labels))


def test_a_cell_with_a_named_figure_shows_nothing_else():
    """MyST-NB gives the name to each output of the cell; a second one is a duplicate target."""
    for name, cells in CODE.items():
        for cell in cells:
            if cell.metadata.get("mystnb", {}).get("figure", {}).get("name"):
                shows = r"\b(display|print|load_pipeline)\("  # loading shows its progress
                assert not re.search(shows, cell.source), (name, cell.source)


def test_the_chapters_code_is_clean(tmp_path):
    """No import or name is unused, none is missing, and no line is wider than a page shows."""
    for name, cells in CODE.items():
        text = "\n\n".join(plain(cell) for cell in cells) + "\n"
        (tmp_path / f"{name.replace('-', '_')}.py").write_text(text)
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length", "80"]
    command += ["--select", "F,B,E501", "--ignore", "B018", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_the_bibliography_is_what_the_chapters_cite():
    bibliography = (ROOT / "book" / "references.bib").read_text()
    works = re.findall(r"^@\w+\{(\w+),$", bibliography, re.MULTILINE)
    cited = {
        key
        for text in TEXT.values()
        for keys in re.findall(r"\{cite:[pt]\}`([^`]+)`", text)
        for key in keys.split(",")
    }
    assert len(works) == len(set(works))
    assert set(works) == cited
