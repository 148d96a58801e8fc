"""How wrong input is refused: one line, "<argument> is <value>; <what to do>"."""

from contextlib import contextmanager

import pytest

from asddim_lib.errors import WrongUse


@contextmanager
def refuses(argument=""):
    """Expects such a line, of this argument if one is named. Its other words are free."""
    with pytest.raises(WrongUse) as refusal:
        yield refusal
    line = str(refusal.value)
    fault, _, remedy = line.partition("; ")
    name, _, value = fault.partition(" is ")
    assert "\n" not in line
    assert not argument or name.split()[0] == argument  # a file's name may follow
    assert value
    assert remedy
