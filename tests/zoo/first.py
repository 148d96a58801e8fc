"""A pipeline of the zoo as far as its scheduler's first step: what was asked, called and laid."""

import contextlib
import functools

from asddim_lib.models.load import networks
from tests.zoo import ZOO


@functools.cache
def built(name):
    """The pipeline and its options, built once. Tests leave it as it was."""
    pipe, options = ZOO[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, options


class _Stepped(BaseException):
    """A pipeline has come as far as `step`. It is no error, and modular blocks print those."""


@contextlib.contextmanager
def stopped(scheduler):
    """Within it, the scheduler's first step ends the run."""

    def step(*_, **__):
        raise _Stepped

    scheduler.step = step
    try:
        with contextlib.suppress(_Stepped):
            yield
    finally:
        del scheduler.step


def count(output):
    """How many rows a network answered for."""
    found = output[0] if isinstance(output, tuple) else output.sample
    return len(found)


@contextlib.contextmanager
def counted(pipe):
    """The rows of each network call within it, listed."""
    rows = []
    handles = [
        part.register_forward_hook(lambda *args: rows.append(count(args[-1])))
        for part in networks(pipe)
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()
