"""One chapter of the book: its parameters, the files it depends on, and its execution."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jupytext
import papermill

from asddim_lib.errors import check

ROOT = Path(__file__).parents[1]
BOOK, BUILD = ROOT / "book", ROOT / "_build"
WORKERS = 2  # chapters executed at the same time


def execute(
    chapter: str, out: Path, parameters: Mapping[str, Any], timeout: int | None = 900
) -> None:
    """Executes a chapter into the notebook `out`, with a JSON record of its origin beside it.

    A cell may take at most `timeout` seconds. Raises WrongUse for a parameter that the chapter does
    not have, or whose value does not fit the parameter's default.
    """
    threads = max((os.cpu_count() or 1) // WORKERS, 1)
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS=str(threads))
    source = write_notebook(chapter)
    partial = BUILD / "failed" / f"{chapter}.ipynb"
    partial.parent.mkdir(parents=True, exist_ok=True)
    defaults = read_defaults(source)
    values = {**defaults, **fit_parameters(chapter, parameters, defaults)}
    start = time.perf_counter()
    papermill.execute_notebook(
        source,
        partial,
        {name: values[name] for name in parameters},
        cwd=str(ROOT),
        kernel_name="python3",
        execution_timeout=timeout,
        progress_bar=False,
    )
    record = {
        "chapter": chapter,
        "parameters": values,
        "seconds": round(time.perf_counter() - start),
        "commit": git("rev-parse", "--short", "HEAD"),
        "figures": len(re.findall(r'"image/(?:png|svg\+xml)":', partial.read_text())),
        "lock": digest(ROOT / "requirements.lock"),
    }
    out.with_suffix(".json").write_text(json.dumps(record) + "\n")
    partial.replace(out)  # last, so that a notebook that exists is complete


def write_notebook(chapter: str) -> Path:
    """Writes a chapter's source as a notebook without outputs, and returns its path."""
    notebook = jupytext.read(BOOK / "chapters" / f"{chapter}.md")
    notebook.metadata["kernelspec"]["language"] = "python"  # papermill needs it for parameters
    file = BUILD / "notebooks" / f"{chapter}.ipynb"
    file.parent.mkdir(parents=True, exist_ok=True)
    jupytext.write(notebook, file)
    return file


def read_defaults(notebook: Path) -> dict[str, Any]:
    """The default of each parameter of a notebook."""
    known = papermill.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(one["default"]) for name, one in known.items()}


def parse_parameters(options: list[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options such as "p=1e-4" or "steps=[20, 50]", read as Python's literals.

    What is none, and what has a string as its default, is a string. Raises WrongUse without a "=".
    """
    values = {}
    for option in options:
        name, equals, text = option.partition("=")
        check(bool(equals and name), "parameter", repr(option), "write it as NAME=VALUE")
        values[name] = text
        if not isinstance(defaults.get(name), str):
            with suppress(ValueError, SyntaxError):
                values[name] = ast.literal_eval(text)
    return values


def fit_parameters(
    chapter: str, parameters: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the parameters with each value in the type of its default.

    Whole numbers serve as floats, lists as tuples. Raises WrongUse for an unknown parameter, or for
    a value of another type.
    """
    foreign = ", ".join(sorted(set(parameters) - set(defaults)))
    check(not foreign, "parameter", foreign, f"{chapter} has {', '.join(defaults) or 'none'}")
    values = {}
    for name, value in parameters.items():
        default = defaults[name]
        check(
            _fits(value, default),
            f"parameter {name}",
            value if not isinstance(value, str) else repr(value),
            f"give a value like its default, {default!r} ({type(default).__name__})",
        )
        values[name] = float(value) if type(default) is float else value
    return values


def _fits(value: Any, default: Any) -> bool:
    """Whether `value` has the type of `default`, down to the items of a list."""
    if isinstance(default, list | tuple):
        if not isinstance(value, list | tuple):
            return False
        return not default or all(any(_fits(item, one) for one in default) for item in value)
    if type(default) is float:
        return type(value) in (int, float)
    return default is None or type(value) is type(default)


def reads(source: Path) -> list[Path]:
    """The records, and the files of the book, that a chapter's code names."""
    names = re.findall(r'"((?:results|book)\b[\w./-]*)"', source.read_text())
    return sorted(path for path in {ROOT / name for name in names} if path.exists())


def digest(*paths: Path, salt: str = "") -> str:
    """Twelve hex digits of a hash of files and folders, without pictures and compiled code."""
    state = hashlib.sha256(salt.encode())
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not {"images", "__pycache__"} & set(file.parts):
                state.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return state.hexdigest()[:12]


def git(*command: str) -> str:
    """What git prints for a command at the root; empty where there is no repository."""
    answer = subprocess.run(
        ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()
