"""The Typer app and its entry point. Commands import what is slow when they run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import typer

from asddim_lib.cli.calibrate import calibrate
from asddim_lib.cli.compare import compare
from asddim_lib.cli.export import export
from asddim_lib.cli.generate import generate
from asddim_lib.cli.recipe import recipe
from asddim_lib.cli.tune import tune
from asddim_lib.errors import WrongUse

#: What typer, or the click that it uses, raises for unknown options and the like.
Usage: Any = typer.BadParameter.__mro__[1]  # the base of its usage errors, not exported


def app_of(*commands: Callable[..., None], help: str) -> typer.Typer:
    """An app of commands, in the order of its help."""
    app = typer.Typer(
        help=help, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
    )
    for command in commands:
        app.command()(command)
    return app


app = app_of(
    generate,
    calibrate,
    tune,
    recipe,
    compare,
    export,
    help="Training-free step allocation for diffusion samplers.",
)


def main() -> None:
    """Runs `asddim`."""
    run(app, "asddim")


def run(commands: typer.Typer, name: str) -> None:
    """Runs an app. Wrong use and a failing disk end in one line on stderr and exit code 2.

    Any other exception is a fault of ours and keeps its traceback.
    """
    try:
        sys.exit(commands(prog_name=name, standalone_mode=False))
    except (WrongUse, OSError, Usage) as error:
        said = error.format_message() if isinstance(error, Usage) else str(error)
        if said:  # without a command the help was printed, and nothing is left to say
            typer.echo(f"{name}: {' '.join(said.split())}", err=True)
        sys.exit(2)
    except typer.Abort:
        typer.echo(f"{name}: stopped", err=True)
        sys.exit(130)
