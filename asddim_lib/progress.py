"""The line of work in progress, of functions and commands alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Receives what is being done, how many network evaluations were spent, and how many of all.
Progress = Callable[[str, int, int], None]


@contextmanager
def progress_line() -> Iterator[Progress]:
    """A line of the work in progress, the network evaluations spent of all, and the time left.

    It begins with the first evaluations: before them, loading weights has lines of its own.
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
