"""Builds the book: chapters to notebooks, papermill, Jupyter Book. A failing chapter fails the build and leaves its partial notebook."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import papermill
import yaml

ROOT = Path(__file__).parents[1]
BOOK, STAGE = ROOT / "book", ROOT / "_build" / "book"


def main() -> None:
    os.environ["PYTHONPATH"] = str(ROOT)
    shutil.rmtree(STAGE, ignore_errors=True)
    (STAGE / "chapters").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(BOOK / name, STAGE / name)
    for chapter in sorted((BOOK / "chapters").glob("*.md")):
        if not chapter.read_text().startswith("---"):  # prose alone
            shutil.copy(chapter, STAGE / "chapters")
            continue
        source, done = STAGE.parent / f"{chapter.stem}.ipynb", STAGE / "chapters" / f"{chapter.stem}.ipynb"
        jupytext.write(jupytext.read(chapter), source)
        print(f"executing {chapter.relative_to(ROOT)}", flush=True)
        papermill.execute_notebook(source, done, cwd=str(ROOT), kernel_name="python3", execution_timeout=900, progress_bar=False)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(STAGE), "-n", "-W", "--keep-going"]
    subprocess.run(command, check=True)
    check_numbers(STAGE / "_build" / "html" / "chapters")
    print(f"open {(STAGE / '_build' / 'html' / 'index.html').relative_to(ROOT)}")


def check_numbers(pages: Path) -> None:
    """Raises ValueError unless each of the sixteen equations is rendered in its chapter, with the paper's number."""
    for equation in yaml.safe_load((BOOK / "equations.yml").read_text()):
        page = (pages / f"{equation['chapter']}.html").read_text()
        found = re.search(rf'id="equation-{equation["label"]}"(?:(?!id="equation-).)*?class="eqno">\((\d+)\)', page, re.DOTALL)
        if not found or int(found[1]) != equation["number"]:
            raise ValueError(f"{equation['label']} is rendered as {found and found[1]}, not {equation['number']}; keep the paper's order of labelled equations")


if __name__ == "__main__":
    main()
