"""What commands print, and where they write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from asddim_lib.cache import check_writable
from asddim_lib.errors import check


def say(value: Any, text: str, as_json: bool) -> None:
    """Prints `value` as JSON for programs, or `text` for people."""
    typer.echo(json.dumps(value) if as_json else text)


def rows(table: Any) -> list[dict[str, Any]]:
    """A data frame as JSON values, one dict per row; NaN becomes null."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def check_file(out: str) -> Path:
    """The path of a file. Raises WrongUse for one that could not be written later."""
    check(bool(out.strip()), "out", repr(out), "give the name of a file")
    file = Path(out)
    check(not file.is_dir(), "out", f"{out}, a folder", "give the name of a file")
    check(file.parent.is_dir(), "out", f"{out}, in a folder that is not there", "make the folder")
    check_writable("out", file.parent)
    return file


def check_folder(out: str) -> Path:
    """The path of a folder. Raises WrongUse for one that could not be made or written later."""
    check(bool(out.strip()), "out", repr(out), "give the name of a folder")
    check_writable("out", Path(out))
    return Path(out)
