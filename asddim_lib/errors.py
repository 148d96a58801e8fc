"""One way to refuse wrong input: the argument, its value, what to do."""

from __future__ import annotations


class WrongUse(ValueError):
    """Raised for input that cannot serve. The command line shows it as one line and exits with 2.

    Any other exception is a fault of ours, and keeps its traceback.
    """


def check(holds: bool, argument: str, value: object, remedy: str) -> None:
    """Raises WrongUse "<argument> is <value>; <remedy>" unless `holds`."""
    if not holds:
        raise WrongUse(
            f"{argument} is {value if isinstance(value, str) else repr(value)}; {remedy}"
        )
