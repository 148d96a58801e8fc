"""The Typer app and its entry point. Commands import what is slow when they run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from asddim_lib.cli.calibrate import calibrate
from asddim_lib.cli.choose import choose
from asddim_lib.cli.clock import clock
from asddim_lib.cli.compare import compare
from asddim_lib.cli.evaluate import evaluate
from asddim_lib.cli.export import export
from asddim_lib.cli.generate import generate
from asddim_lib.cli.methods import methods
from asddim_lib.cli.mlperf import ACCEPTED as ACCEPTED
from asddim_lib.cli.mlperf import mlperf
from asddim_lib.cli.options import Command
from asddim_lib.cli.report import report
from asddim_lib.cli.tune import tune
from asddim_lib.errors import WrongUse

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Training-free step allocation for diffusion samplers.",
)
#: In the order of the help.
COMMANDS: tuple[Callable[..., None], ...] = (
    calibrate,
    generate,
    export,
    methods,
    choose,
    tune,
    evaluate,
    compare,
    report,
    clock,
    mlperf,
)
for _command in COMMANDS:
    app.command(cls=Command)(_command)


def main() -> None:
    """Runs `asddim`. Wrong use and a failing disk end in one line on stderr and exit code 2.

    Any other exception is a fault of ours and keeps its traceback.
    """
    with _log_to_stderr():
        try:
            app()
        except (WrongUse, OSError) as error:
            line = " ".join(part.strip() for part in str(error).splitlines())
            typer.echo(f"asddim: {line}", err=True)
            sys.exit(2)


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Shows the library's warnings in the form of its errors."""
    handler, log = logging.StreamHandler(), logging.getLogger("asddim_lib")
    handler.setFormatter(logging.Formatter("asddim: %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
