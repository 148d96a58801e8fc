"""Builds the book: chapters to notebooks, papermill, Jupyter Book. A failing chapter fails the build and leaves its partial notebook."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import papermill

ROOT = Path(__file__).parents[1]
BOOK, STAGE = ROOT / "book", ROOT / "_build" / "book"


def main() -> None:
    os.environ["PYTHONPATH"] = str(ROOT)
    shutil.rmtree(STAGE, ignore_errors=True)
    (STAGE / "chapters").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(BOOK / name, STAGE / name)
    for chapter in sorted((BOOK / "chapters").glob("*.md")):
        source, done = STAGE.parent / f"{chapter.stem}.ipynb", STAGE / "chapters" / f"{chapter.stem}.ipynb"
        jupytext.write(jupytext.read(chapter), source)
        print(f"executing {chapter.relative_to(ROOT)}", flush=True)
        papermill.execute_notebook(source, done, cwd=str(ROOT), kernel_name="python3", execution_timeout=900, progress_bar=False)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(STAGE), "-n", "-W", "--keep-going"]
    subprocess.run(command, check=True)
    print(f"open {(STAGE / '_build' / 'html' / 'index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main()
