"""The experiments' commands, `python -m experiments`, run from a clone."""

from __future__ import annotations

from asddim_lib.cli.app import app_of, run
from experiments.cli.clock import clock
from experiments.cli.compare import compare
from experiments.cli.evaluate import evaluate
from experiments.cli.mlperf import mlperf
from experiments.cli.recipes import recipes
from experiments.cli.report import report

app = app_of(
    evaluate,
    compare,
    report,
    clock,
    mlperf,
    recipes,
    help="The paper's experiment, comparisons of grids, and what both take.",
)


def main() -> None:
    """Runs `python -m experiments`."""
    run(app, "experiments")
