"""The equation contract, and every chapter's exercises: the solution passes its check, and a stub in its place does not."""

import ast
import importlib
import math
import re
from pathlib import Path

import jupytext
import matplotlib
import numpy as np
import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
CONTRACT = yaml.safe_load((ROOT / "book" / "equations.yml").read_text())
CHAPTERS = [Path(entry["file"]).name for entry in yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())["chapters"]]
BY_NUMBER = pytest.mark.parametrize("equation", CONTRACT, ids=[f"Eq {e['number']}" for e in CONTRACT])


def read(chapter):
    return (ROOT / "book" / "chapters" / f"{chapter}.md").read_text()


def code(chapter):
    return [cell for cell in jupytext.read(ROOT / "book" / "chapters" / f"{chapter}.md").cells if cell.cell_type == "code"]


def found(function):
    """The function's first name in its module, and what stands there."""
    parts = function.split(".")
    return parts[2], getattr(importlib.import_module(".".join(parts[:2])), parts[2])


def test_the_sixteen_equations_are_labelled_once_and_in_the_paper_s_order():
    assert [e["number"] for e in CONTRACT] == list(range(1, 17))
    labels = [(label, chapter) for chapter in CHAPTERS for label in re.findall(r"^\$\$ \((\S+)\)$", read(chapter), re.MULTILINE)]
    assert labels == [(e["label"], e["chapter"]) for e in CONTRACT]


@BY_NUMBER
def test_an_equation_s_chapter_uses_its_function(equation):
    name, _ = found(equation["function"])
    last = equation["function"].rsplit(".", 1)[1]
    nodes = [node for cell in code(equation["chapter"]) for node in ast.walk(ast.parse(_plain(cell.source)))]
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
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


@pytest.mark.parametrize("chapter", sorted({e["chapter"] for e in CONTRACT}))
def test_exercises_pass_with_their_solution_and_fail_with_a_stub(chapter, monkeypatch):
    monkeypatch.chdir(ROOT)
    matplotlib.use("Agg")
    cells, names, solved = code(chapter), {"__name__": "__main__"}, 0
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if "solution" in cell.metadata.get("tags", []):
            assert "check" in after.metadata["tags"]
            stubs = {node.name: lambda *args, **kwargs: None for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)}
            with pytest.raises((AssertionError, TypeError, AttributeError)):
                exec(after.source, {**names, **stubs})
            solved += 1
        exec(_plain(cell.source), names)
    matplotlib.pyplot.close("all")
    assert solved >= 3


def _plain(source):
    return "\n".join(line for line in source.splitlines() if not line.startswith("%"))
