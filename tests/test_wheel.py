"""The wheel holds all that it needs: code, model, prompts and reference features."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]


def test_the_wheel_draws_without_the_checkout(tmp_path):
    def run(*command: str, **options) -> str:
        return subprocess.run(
            [sys.executable, *command], check=True, capture_output=True, text=True, **options
        ).stdout

    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    run(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    )
    bare = {
        key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")
    }  # the checkout's lines are counted, not the copy's
    elsewhere = {"cwd": tmp_path, "env": {**bare, "PYTHONPATH": str(tmp_path / "site")}}
    assert run("-c", "import asddim_lib; print(asddim_lib.__file__)", **elsewhere).startswith(
        str(tmp_path / "site")
    )
    run(
        "-c",
        "from asddim_lib.cli import main; main()",
        "generate",
        "a red boot on a white ground",
        "boot.png",
        "--steps",
        "3",
        **elsewhere,
    )
    assert Image.open(tmp_path / "boot.png").size == (64, 64)
    run(
        "-c",
        "from asddim_lib import metrics; assert len(metrics.reference_features()) == 10_000",
        **elsewhere,
    )
