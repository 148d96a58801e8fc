"""What is folded on the book's pages, and under which name.

A chapter says by tags which cells it hides. Here is decided what such a cell is for: `colab.py`
makes it the title of a form, and `build.py` the name of a fold.
"""

from __future__ import annotations

import ast
import re

import nbformat

Cell = nbformat.NotebookNode
PREPARATION, SOLUTION, CHECKED = "Preparation", "Solution", "Checked"
MEASUREMENT = "Code of this measurement"
FIGURE, TABLE, TEXT = "Code of this figure", "Code of this table", "Code of this text"
DRAWS = re.compile(r"\bplt\.show\(|\bexplore\(")
TABULATES = re.compile(
    r"\.style\b|\bdisplay\((?!\s*(?:Markdown|HTML)\()|^\w+\Z|\.rename_axis\("  # a table of pandas
    r"|\bas_markdown\(|\bfact\(|\|[ :]*--",  # or of Markdown
    re.MULTILINE,
)
PRINTS = re.compile(r"\b(?:display|print|Markdown)\(")
#: An exercise ends with a link to its solution, whose target stands before the solution's cell.
LINK = re.compile(r"\s*\{ref\}`Solution <([^>\s]+)>`")
TARGET = re.compile(r"^\(\S+\)=\s*$", re.MULTILINE)


def purpose(cell: Cell) -> str:
    """What a hidden code cell is for, as one of this module's names.

    A cell without output is a preparation if it imports something, else a check if it asserts
    something, else a measurement.
    """
    tags, body = cell.metadata.get("tags", []), _statements(cell.source)
    if "solution" in tags:
        return SOLUTION
    if "check" in tags:
        return CHECKED
    if "remove-output" in tags:
        imports = any(isinstance(one, ast.Import | ast.ImportFrom) for one in body)
        return PREPARATION if imports else MEASUREMENT
    for name, pattern in ((FIGURE, DRAWS), (TABLE, TABULATES), (TEXT, PRINTS)):
        if pattern.search(cell.source):
            return name
    nested = (part for one in body for part in ast.walk(one) if isinstance(part, ast.stmt))
    return CHECKED if any(_asserts(one) for one in nested) else MEASUREMENT


def _statements(source: str) -> list[ast.stmt]:
    """A cell's Python, without IPython's magics."""
    return ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE)).body


def _asserts(statement: ast.stmt) -> bool:
    """Whether a statement is an assertion, or a call like numpy.testing.assert_allclose."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value.func).rsplit(".", 1)[-1].startswith("assert_")
    return isinstance(statement, ast.Assert)


def folded(cells: list[Cell]) -> list[Cell]:
    """The cells as a page shows them.

    Preparations are left out. Every fold has a name. A cell of nothing but assertions is folded,
    too. A check is in the fold of the solution before it, and each exercise is followed by its
    solution. Raises ValueError for hidden output that the chapter does not name, and for exercises
    that are more or fewer than their solutions.
    """
    shown: list[Cell] = []
    for cell in cells:
        kind = purpose(cell) if _is_folded(cell) else None
        if kind == CHECKED and shown and _is_solution(shown[-1]):
            shown[-1].source += f"\n\n\n# Checked:\n{cell.source}"
            shown[-1].outputs += cell.outputs
        elif kind != PREPARATION:
            shown.append(_named(cell, kind) if kind else cell)
    return with_solutions(shown)


def _is_folded(cell: Cell) -> bool:
    """Whether a page folds a part of the cell."""
    if cell.cell_type != "code":
        return False
    if {"hide-input", "hide-output"} & set(cell.metadata.get("tags", [])):
        return True
    body = _statements(cell.source)
    return bool(body) and all(_asserts(one) for one in body)


def _is_solution(cell: Cell) -> bool:
    return "solution" in cell.metadata.get("tags", [])


def _named(cell: Cell, kind: str) -> Cell:
    """The cell with a name for its fold, which is the chapter's own if it gives one."""
    tags, options = cell.metadata.setdefault("tags", []), cell.metadata.setdefault("mystnb", {})
    if "hide-output" not in tags and "hide-input" not in tags:
        tags.append("hide-input")
    if "hide-output" in tags and "code_prompt_show" not in options:
        raise ValueError(f"name the output that is hidden, by code_prompt_show: {cell.source}")
    name = options.setdefault("code_prompt_show", kind)
    options.setdefault("code_prompt_hide", name)
    return cell


def with_solutions(cells: list[Cell]) -> list[Cell]:
    """The cells with each solution right after its exercise, which then needs no link to it."""
    for place, cell in enumerate(cells):
        labels = LINK.findall(cell.source) if cell.cell_type == "markdown" else []
        if labels:
            rest = cells[place + 1 :]
            solutions = [one for one in rest if _is_solution(one)]
            if len(solutions) != len(labels):
                raise ValueError(f"{len(labels)} exercises have {len(solutions)} solutions")
            texts = LINK.split(cell.source)[::2]
            after = [one for one in rest if not _is_solution(one) and not _only_targets(one)]
            exercises = [
                part
                for text, label, solution in zip(texts, labels, solutions, strict=False)
                for part in (_exercise(cell, text, label), solution)
            ]
            return [*cells[:place], *exercises, *after]
    return cells


def _exercise(cell: Cell, text: str, label: str) -> Cell:
    """A cell of one exercise, which ends with the target of its solution."""
    return Cell({**cell, "id": label, "source": f"{TARGET.sub('', text).strip()}\n\n({label})="})


def _only_targets(cell: Cell) -> bool:
    return cell.cell_type == "markdown" and not TARGET.sub("", cell.source).strip()
