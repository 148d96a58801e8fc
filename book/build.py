"""Builds the book: chapters to notebooks, papermill, Jupyter Book. Only what changed is executed: a chapter, the library, or the data and records.

    python book/build.py                          the whole book, into _build/book/_build/html
    python book/build.py run noise -p samples=50  one chapter with another parameter, into _build/runs

A failing chapter fails the build and leaves its partial notebook in _build/failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import colab
import jupytext
import nbformat
import papermill
import typer
import yaml

ROOT = Path(__file__).parents[1]
BOOK, BUILD = ROOT / "book", ROOT / "_build"
STAGE, EXECUTED = BUILD / "book", BUILD / "executed"
WORKERS = 2
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Executes what changed, and builds the HTML."""
    if context.invoked_subcommand:
        return
    parts = yaml.safe_load((BOOK / "_toc.yml").read_text())["parts"]
    names = ["start", *(Path(entry["file"]).name for part in parts for entry in part["chapters"])]
    sources = {name: BOOK / "chapters" / f"{name}.md" for name in names if name != "status"}
    prose = [name for name, source in sources.items() if not source.read_text().startswith("---")]
    known = digest(ROOT / "asddim_lib", ROOT / "data", ROOT / "requirements.lock")
    done = {
        name: EXECUTED / f"{name}-{digest(source, *reads(source), salt=known)}.ipynb"
        for name, source in sources.items()
        if name not in prose
    }
    EXECUTED.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(WORKERS) as pool:
        waiting = {
            name: pool.submit(execute, name, file, {})
            for name, file in done.items()
            if not file.exists()
        }
        for name, job in waiting.items():
            job.result()
            print(f"executed {name}", flush=True)
    for file in (
        "_config.yml",
        "_toc.yml",
        "references.bib",
        "sources.py",
        "_static/book.css",
        "_static/print.css",
    ):
        put(BOOK / file, STAGE / file)
    for name in prose:
        put(sources[name], STAGE / "chapters" / f"{name}.md")
    for name, file in done.items():
        put(linked(file, name), STAGE / "chapters" / f"{name}.ipynb")
    (STAGE / "chapters" / "status.md").write_text(status(done))
    subprocess.run(
        [
            str(Path(sys.executable).with_name("jupyter-book")),
            "build",
            str(STAGE),
            "-n",
            "-W",
            "--keep-going",
        ],
        check=True,
    )
    check_numbers(STAGE / "_build" / "html" / "chapters")
    print(f"open {(STAGE / '_build' / 'html' / 'index.html').relative_to(ROOT)}")


@app.command()
def run(
    chapter: Annotated[str, typer.Argument(help="A chapter's name, as in book/chapters.")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", help="A parameter as NAME=VALUE; may be given again.")
    ] = None,
) -> None:
    """Executes one chapter with other parameters."""
    given = dict(one.split("=", 1) for one in parameter or [])
    values = {name: yaml.safe_load(value) for name, value in given.items()}
    out = (
        BUILD
        / "runs"
        / f"{chapter}-{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]}.ipynb"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    execute(chapter, out, values, timeout=None)  # on a GPU, hours
    print(out.relative_to(ROOT))


def execute(chapter: str, out: Path, parameters: dict[str, Any], timeout: int | None = 900) -> None:
    """Executes a chapter into a notebook, with a JSON of where it came from beside it; no cell may take more seconds than `timeout`.

    Raises ValueError for a parameter that it does not have.
    """
    os.environ.update(
        PYTHONPATH=str(ROOT), OMP_NUM_THREADS=str(max((os.cpu_count() or 1) // WORKERS, 1))
    )
    source, partial = (
        BUILD / "notebooks" / f"{chapter}.ipynb",
        BUILD / "failed" / f"{chapter}.ipynb",
    )
    for folder in (source.parent, partial.parent):
        folder.mkdir(parents=True, exist_ok=True)
    notebook = jupytext.read(BOOK / "chapters" / f"{chapter}.md")
    notebook.metadata["kernelspec"]["language"] = (
        "python"  # by which papermill reads the parameters
    )
    jupytext.write(notebook, source)
    known = papermill.inspect_notebook(str(source))
    foreign = set(parameters) - set(known)
    if foreign:
        raise ValueError(
            f"parameter is {', '.join(sorted(foreign))}; {chapter} has {', '.join(known)}"
        )
    begun = time.perf_counter()
    papermill.execute_notebook(
        source,
        partial,
        parameters,
        cwd=str(ROOT),
        kernel_name="python3",
        execution_timeout=timeout,
        progress_bar=False,
    )
    figures = partial.read_text().count('"image/png":')
    values = {name: parameters.get(name, found["default"]) for name, found in known.items()}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    record = {
        "chapter": chapter,
        "parameters": values,
        "seconds": round(time.perf_counter() - begun),
        "commit": commit,
        "figures": figures,
    }
    out.with_suffix(".json").write_text(
        json.dumps({**record, "lock": digest(ROOT / "requirements.lock")}) + "\n"
    )
    partial.replace(out)  # last: a notebook that is there is whole


def reads(source: Path) -> list[Path]:
    """The records, and the files of the book, that a chapter's code names."""
    named = {
        ROOT / path for path in re.findall(r'"((?:results|book)\b[\w./-]*)"', source.read_text())
    }
    return sorted(path for path in named if path.exists())


def digest(*paths: Path, salt: str = "") -> str:
    """A short name of what is in files, and in folders but for pictures and compiled code."""
    found = hashlib.sha256(salt.encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not {"images", "__pycache__"} & set(file.parts):
                found.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return found.hexdigest()[:12]


def put(source: Path, target: Path) -> None:
    """Copies a file unless the same is there: Sphinx reads anew what is newer."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or source.read_bytes() != target.read_bytes():
        shutil.copyfile(source, target)


def linked(executed: Path, name: str) -> Path:
    """A copy of an executed notebook, with a link to Colab under its title."""
    notebook, copy = nbformat.read(executed, as_version=4), BUILD / "linked" / f"{name}.ipynb"
    notebook.cells[0].source = colab.under_title(
        notebook.cells[0].source, f"[Open in Colab]({colab.colab_link(name)})"
    )
    copy.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, copy)
    return copy


def status(done: dict[str, Path]) -> str:
    """The page that says how the book is made, and lists how each chapter was executed and where each record comes from."""
    rows = ["| chapter | parameters | time | commit | figures |", "| --- | --- | --- | --- | --- |"]
    for name, file in done.items():
        record = json.loads(file.with_suffix(".json").read_text())
        values = ", ".join(f"`{key} = {value}`" for key, value in record["parameters"].items())
        rows.append(
            f"| {{doc}}`{name}` | {values} | {record['seconds']} s | {record['commit']} | {record['figures']} |"
        )
    return (
        (BOOK / "chapters" / "status.md")
        .read_text()
        .replace("{chapters}", "\n".join(rows))
        .replace("{records}", "\n".join(records()))
    )


def records() -> list[str]:
    """The table of recorded experiments: what was drawn, from which prompts and weights, and the commit that holds its pictures' figures."""
    rows = [
        "| record in `results/` | drawn | prompts | weights | figures | commit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for file in sorted((ROOT / "results").rglob("provenance.json")):
        said, held = json.loads(file.read_text()), file.with_name("records.parquet")
        setting = {
            key: ", ".join(map(str, said["setting"][key]))
            for key in ("solvers", "steps", "guidance_scales")
        }
        drawn = f"{len(said['setting']['methods'])} grids; {setting['solvers']}; K = {setting['steps']}; guidance {setting['guidance_scales']}"
        landed = subprocess.run(
            ["git", "log", "-1", "--format=%h", "--", str(held)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        hashes = (
            said["prompts_sha256"],
            said["weights_sha256"],
            hashlib.sha256(held.read_bytes()).hexdigest(),
        )
        prompts, weights, figures = (f"`{one[:8]}`" for one in hashes)
        rows.append(
            f"| `{file.parent.relative_to(ROOT / 'results')}` | {drawn} | {said['prompts']}, {prompts} | {weights} | {figures} | {landed} |"
        )
    return rows


def check_numbers(pages: Path) -> None:
    """Raises ValueError unless each of the sixteen equations is rendered in its chapter, with the paper's number."""
    for equation in yaml.safe_load((BOOK / "equations.yml").read_text()):
        page = (pages / f"{equation['chapter']}.html").read_text()
        found = re.search(
            rf'id="equation-{equation["label"]}"(?:(?!id="equation-).)*?class="eqno">\((\d+)\)',
            page,
            re.DOTALL,
        )
        if not found or int(found[1]) != equation["number"]:
            raise ValueError(
                f"{equation['label']} is rendered as {found and found[1]}, not {equation['number']}; keep the paper's order of labelled equations"
            )


if __name__ == "__main__":
    app()
