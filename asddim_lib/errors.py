"""One way to refuse wrong input: the argument, its value, what to do."""

from __future__ import annotations


def check(holds: bool, argument: str, value: object, remedy: str) -> None:
    """Raises ValueError "<argument> is <value>; <remedy>" unless `holds`."""
    if not holds:
        raise ValueError(
            f"{argument} is {value if isinstance(value, str) else repr(value)}; {remedy}"
        )
