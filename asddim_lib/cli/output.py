"""What commands print, where they write, and the progress line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from asddim_lib.errors import WrongUse, check


def say(value: Any, text: str, as_json: bool) -> None:
    """Prints a result: `value` as JSON for programs, or `text` for people."""
    typer.echo(json.dumps(value) if as_json else text)


def rows(table: Any) -> list[dict[str, Any]]:
    """A data frame as JSON values, one dict per row; NaN becomes null."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def text_of(table: Any, digits: int) -> str:
    """A data frame as text, its numbers with so many significant digits."""
    return table.to_string(index=False, float_format=lambda value: f"{value:.{digits}g}")


def check_file(out: str) -> Path:
    """The path of a file. Raises WrongUse for one that could not be written later."""
    check(bool(out.strip()), "out", repr(out), "give the name of a file")
    file = Path(out)
    check(file.parent.is_dir(), "out", f"{out}, in a folder that is not there", "make the folder")
    check(not file.is_dir(), "out", f"{out}, a folder", "give the name of a file")
    _check_writable(out, file.parent)
    return file


def check_folder(out: str) -> Path:
    """The path of a folder, made later. Raises WrongUse for one that could not be written."""
    check(bool(out.strip()), "out", repr(out), "give the name of a folder")
    folder = Path(out)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    check(there.is_dir(), "out", f"{out}, where {there} is a file", "name a folder")
    _check_writable(out, there)
    return folder


def _check_writable(out: str, folder: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"out is {out}, but nothing can be written there ({error.strerror})"
        raise WrongUse(f"{reason}; name another place") from error


@contextmanager
def progress_line() -> Iterator[Callable[[str, int, int], None]]:
    """A progress line: what is being done, the network evaluations of all, and the time left.

    It begins when the first evaluations are spent: weights are loaded before, under lines of their
    own.
    """
    from tqdm import tqdm

    shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left"
    lines: list[Any] = []

    def tell(doing: str, spent: int, total: int) -> None:
        if not lines:
            lines.append(tqdm(total=total, bar_format=shape, desc=doing))
        line = lines[0]
        line.total, new = total, doing != line.desc.rstrip(": ")
        line.set_description_str(doing, refresh=False)
        line.update(spent - line.n)
        if new:  # a fast machine would show no other line than the last
            line.refresh()

    try:
        yield tell
    finally:
        for line in lines:
            line.close()
