"""The command line: `asddim`, or `python -m asddim_lib.cli`."""

from asddim_lib.cli.app import app as app
from asddim_lib.cli.app import main as main
