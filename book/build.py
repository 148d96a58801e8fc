"""Builds the book: executes the chapters that changed, and makes HTML of them.

    python book/build.py                          the whole book, into _build/book/_build/html
    python book/build.py run noise -p samples=50  one chapter, into _build/runs

A chapter is executed again when its text, the library, the data or a record it reads has changed. A
chapter that fails stops the build, and leaves its partial notebook in _build/failed.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import colab
import folds
import links
import live
import nbformat
import typer
import yaml
from chapter import (
    BOOK,
    BUILD,
    ROOT,
    WORKERS,
    digest,
    execute,
    fit_parameters,
    parse_parameters,
    read_defaults,
    reads,
    write_notebook,
)
from editor import editor_page
from provenance import status_page
from reference import contents, reference_pages
from support import support_page

from asddim_lib.errors import WrongUse, check

STAGE, EXECUTED = BUILD / "book", BUILD / "executed"
STATIC = (
    "references.bib",
    "sources.py",
    "_static/blind.css",
    "_static/blind.js",
    "_static/book.css",
    "_static/guess.css",
    "_static/guess.js",
    "_static/print.css",
    "_static/scroll.js",
)
#: What every chapter depends on.
SHARED = ("asddim_lib", "experiments", "data", "requirements.lock")
ICONS = re.compile(r'<script defer src="[^"]*/scripts/fontawesome\.js[^"]*"></script>')
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Executes what changed, and builds the HTML."""
    if context.invoked_subcommand:
        return
    executed = executed_files()
    execute_missing(executed)
    for file in STATIC:
        write_if_changed(STAGE / file, (BOOK / file).read_text())
    write_if_changed(STAGE / "_toc.yml", contents((BOOK / "_toc.yml").read_text()))
    write_if_changed(STAGE / "_config.yml", links.footer((BOOK / "_config.yml").read_text()))
    reference = reference_pages()
    generated = {
        "api": partial(reference.pop, "api"),
        "editor": editor_page,
        "live": live.page,
        "status": partial(status_page, executed),
        "support": support_page,
    }
    for name, source in links.pages().items():
        file = STAGE / "chapters" / name
        if name in executed:
            write_if_changed(file.with_suffix(".ipynb"), linked(executed[name], name))
        else:
            text = generated[name]() if name in generated else source
            write_if_changed(file.with_suffix(".md"), text)
    for name, text in reference.items():
        write_if_changed(STAGE / "chapters" / f"{name}.md", text)
    jupyter_book()
    lighten(STAGE / "_build" / "html")
    if "live" in links.pages():
        live.install(STAGE / "_build" / "html")
    check_numbers(STAGE / "_build" / "html" / "chapters")
    print(f"open {(STAGE / '_build' / 'html' / 'index.html').relative_to(ROOT)}")


@app.command()
def run(
    chapter: Annotated[str, typer.Argument(help="A chapter's name, as in book/chapters.")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", help="A parameter as NAME=VALUE; may be repeated.")
    ] = None,
) -> None:
    """Executes one chapter with other parameters."""
    try:
        known = links.chapters()
        check(chapter in known, "chapter", chapter, f"choose one of {', '.join(sorted(known))}")
        defaults = read_defaults(write_notebook(chapter))
        values = fit_parameters(chapter, parse_parameters(parameter or [], defaults), defaults)
    except WrongUse as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    out = BUILD / "runs" / f"{chapter}-{key}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    execute(chapter, out, values, timeout=None)  # a cell may take hours
    print(out.relative_to(ROOT))


def executed_files() -> dict[str, Path]:
    """The executed notebook of each chapter; its name has a hash of all that the chapter reads."""
    shared = digest(*(ROOT / part for part in SHARED))
    sources = {name: BOOK / "chapters" / f"{name}.md" for name in links.chapters()}
    return {
        name: EXECUTED / f"{name}-{digest(source, *reads(source), salt=shared)}.ipynb"
        for name, source in sources.items()
    }


def execute_missing(files: dict[str, Path]) -> None:
    """Executes the chapters whose notebook does not exist yet.

    Those that load a model take longest and come first, so that at the end no worker waits.
    """
    EXECUTED.mkdir(parents=True, exist_ok=True)
    names = sorted(files, key=lambda name: "load_pipeline(" not in links.pages()[name])
    with ProcessPoolExecutor(WORKERS) as pool:
        jobs = {
            name: pool.submit(execute, name, files[name], {})
            for name in names
            if not files[name].exists()
        }
        for name, job in jobs.items():
            job.result()
            print(f"executed {name}", flush=True)


def jupyter_book(*options: str) -> None:
    """Runs Jupyter Book on the staged sources; a warning is an error."""
    program = Path(sys.executable).with_name("jupyter-book")
    subprocess.run(
        [str(program), "build", str(STAGE), "-n", "-W", "--keep-going", *options], check=True
    )


def lighten(pages: Path) -> None:
    """Takes out of the pages a script for icons, which are letters of a font that they load anyway.

    It is a third of what a first visit would fetch; `make look` weighs that.
    """
    for page in pages.rglob("*.html"):
        text = page.read_text()
        if ICONS.search(text):
            page.write_text(ICONS.sub("", text))


def write_if_changed(file: Path, text: str) -> None:
    """Writes a file unless it has that text: Sphinx reads a newer file again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


def linked(executed: Path, name: str) -> str:
    """An executed notebook, folded, with a link to Colab, if any, under its title."""
    notebook = nbformat.read(executed, as_version=4)
    if link := links.colab_link(name):
        line = f"[Open in Colab]({link})"
        notebook.cells[0].source = colab.under_title(notebook.cells[0].source, line)
    notebook.cells = folds.folded(notebook.cells)
    return nbformat.writes(notebook)


def check_numbers(pages: Path) -> None:
    """Checks that each of the sixteen equations is rendered in its chapter with its number.

    Raises ValueError for an equation that is missing, or whose number is not the paper's.
    """
    for equation in yaml.safe_load((BOOK / "equations.yml").read_text()):
        page = (pages / f"{equation['chapter']}.html").read_text()
        rendered = re.search(
            rf'id="equation-{equation["label"]}"(?:(?!id="equation-).)*?class="eqno">\((\d+)\)',
            page,
            re.DOTALL,
        )
        number = rendered and rendered[1]
        if number != str(equation["number"]):
            raise ValueError(
                f"{equation['label']} is rendered as {number}, not {equation['number']};"
                " keep the paper's order of labelled equations"
            )


if __name__ == "__main__":
    app()
