"""One way to refuse wrong input: the argument, its value, what to do."""

from __future__ import annotations

from math import inf
from numbers import Integral, Real
from typing import Any


class WrongUse(ValueError):
    """Raised for input that cannot serve. The command line shows it as one line and exits with 2.

    Any other exception is a fault of ours, and keeps its traceback.
    """


def check(holds: bool, argument: str, value: object, remedy: str) -> None:
    """Raises WrongUse "<argument> is <value>; <remedy>" unless `holds`."""
    if not holds:
        plain = isinstance(value, str) and value.strip()  # an empty one would not be seen
        raise WrongUse(f"{argument} is {value if plain else repr(value)}; {remedy}")


def check_whole(argument: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises WrongUse unless `value` is a whole number from `least` to `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    inside = whole and value >= least and (most is None or value <= most)
    limits = f"at least {least}" if most is None else f"{least} to {most}"
    check(inside, argument, value, f"give a whole number, {limits}")


def check_scale(guidance_scale: Any) -> None:
    """Raises WrongUse unless a guidance scale is None or a finite number of at least 0."""
    number = isinstance(guidance_scale, Real) and 0 <= float(guidance_scale) < inf
    remedy = "give a number of at least 0 (up to 1 is no guidance)"
    check(guidance_scale is None or number, "guidance_scale", guidance_scale, remedy)
