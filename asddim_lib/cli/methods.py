"""`asddim methods`."""

from __future__ import annotations

from asddim_lib.cli.options import Json
from asddim_lib.cli.output import say


def methods(as_json: Json = False) -> None:
    """Lists every method that places steps, what it needs, and what it does.

    Methods that need nothing, or a profile, serve as --allocation; evaluate takes all.

    Example: asddim methods
    """
    from asddim_lib.grids.table import METHODS

    table = [(method.name, method.needs, method.summary) for method in METHODS.values()]
    head = ("method", "needs", "summary")
    name, needs, _ = (max(map(len, column)) for column in zip(head, *table, strict=True))
    lines = [f"{row[0]:{name}}  {row[1]:{needs}}  {row[2]}" for row in (head, *table)]
    keys = ("name", "needs", "summary")
    say([dict(zip(keys, row, strict=True)) for row in table], "\n".join(lines), as_json)
