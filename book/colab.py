"""Makes plain notebooks of the chapters for Colab.

    python book/colab.py     writes them into _build/colab

Colab shows MyST's own syntax as it is written. Therefore roles, targets, labels and directives are
translated into plain Markdown (plain.py), and any that remain are refused (leftovers.py). A first
cell fetches the library and the records from the commit that the notebook was made from; without a
public address it needs to be run in a clone.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import folds
import jupytext
import nbformat
from leftovers import leftovers
from links import BOOK, ROOT, address, chapters, colab_link, pages
from plain import CODE_ROLE, code, markdown

OUT = ROOT / "_build" / "colab"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
METADATA: dict[str, Any] = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}


def main() -> None:
    """Writes the notebook of every chapter that has code."""
    commit = _git("rev-parse", "HEAD")
    if _git("status", "--porcelain"):
        print(f"some changes are not committed; the notebooks will fetch commit {commit[:8]}")
    for file in write(OUT, commit):
        print(file.relative_to(ROOT))


def _git(*command: str) -> str:
    answer = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def write(out: Path, commit: str) -> list[Path]:
    """Writes the notebooks into the folder `out`, removes others there, and returns their paths.

    Raises ValueError as `notebook` does, before anything is written.
    """
    texts = {
        f"{name}.ipynb": nbformat.writes(notebook(name, pages()[name], commit))
        for name in chapters()
    }
    out.mkdir(parents=True, exist_ok=True)
    for file in out.glob("*.ipynb"):
        file.unlink()
    for name, text in texts.items():
        (out / name).write_text(text + "\n")
    return [out / name for name in texts]


def notebook(chapter: str, source: str, commit: str) -> nbformat.NotebookNode:
    """The notebook of a chapter's source.

    Raises ValueError that names the chapter and the line if MyST without a translation is left.
    """
    cells, solution = [], 0
    for cell in jupytext.reads(source, fmt="md:myst").cells:
        if cell.cell_type == "code":
            solution += "solution" in cell.metadata.get("tags", [])
            cells.append(code_cell(cell, chapter, solution))
            refuse([match[0] for match in CODE_ROLE.finditer(cells[-1].source)], chapter, source)
        elif text := markdown(cell.source, chapter):
            refuse(leftovers(text), chapter, source)
            cells.append(nbformat.v4.new_markdown_cell(text))
    if link := colab_link(chapter):
        cells[0].source = under_title(cells[0].source, f"[![Open in Colab]({BADGE})]({link})")
    cells.insert(1, nbformat.v4.new_code_cell(setup(commit), metadata={"cellView": "form"}))
    for place, cell in enumerate(cells):
        cell.id = f"{chapter}-{place}"
    metadata = {**METADATA, "colab": {"name": f"{chapter}.ipynb"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def under_title(text: str, line: str) -> str:
    """A page's text with `line` as a paragraph under the title."""
    return re.sub(
        r"^# .*$", lambda title: f"{title[0]}\n\n{line}", text, count=1, flags=re.MULTILINE
    )


def setup(commit: str) -> str:
    """The first code cell: `setup_cell.py` with the public address, if any, and the commit."""
    text = (BOOK / "setup_cell.py").read_text()
    return text.replace("{repository}", address()).replace("{commit}", commit).strip()


def code_cell(cell: nbformat.NotebookNode, chapter: str, solution: int) -> nbformat.NotebookNode:
    """A code cell as Colab folds it: code that the page hides becomes a form.

    The form's title is the figure's caption or else the cell's purpose; `solution` numbers the
    exercises.
    """
    tags = cell.metadata.get("tags", [])
    source = code(cell.source, chapter)
    if "parameters" in tags:
        source = re.sub(r"^live = False\b", "live = True", source, flags=re.MULTILINE)
    metadata: dict[str, Any] = {"tags": tags} if tags else {}
    title = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption")
    if "hide-input" in tags:
        metadata["cellView"] = "form"
        title = title or numbered(folds.purpose(cell), solution)
    source = f"# @title {title}\n{source}" if title else source
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def numbered(purpose: str, solution: int) -> str:
    """A cell's purpose, with the exercise's number if it belongs to one."""
    of_exercise = solution and purpose in (folds.SOLUTION, folds.CHECKED)
    return f"{purpose} {solution}" if of_exercise else purpose


def refuse(sources: list[str], chapter: str, text: str) -> None:
    """Raises ValueError that names the chapter and the line if `sources` is not empty."""
    if sources:
        words = (re.escape(word) for word in sources[0].split())
        match = re.search(r"\s*".join(words), text)
        line = text.count("\n", 0, match.start()) + 1 if match else "?"
        raise ValueError(
            f"book/chapters/{chapter}.md:{line} has {sources[0]}, which Colab would show as it is;"
            " rewrite it, or add a translation to book/plain.py"
        )


if __name__ == "__main__":
    main()
