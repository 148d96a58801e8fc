"""The wheel holds all that it needs: code, model, prompts and reference features."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
USE = """
import asddim_lib
from experiments import attributes
from asddim_lib.cli import main
assert len(attributes.reference_features()) == 10_000
print(asddim_lib.__file__)
main()
"""


def test_the_wheel_draws_without_the_checkout(tmp_path):
    def run(*command: str, **options) -> str:
        how = {"check": True, "capture_output": True, "text": True, **options}
        return subprocess.run([sys.executable, *command], **how).stdout

    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    # Coverage counts the lines of the checkout, not of this copy.
    plain = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    arguments = ["generate", "a red boot on a white ground", "boot.png", "--steps", "3"]
    elsewhere = {"cwd": tmp_path, "env": {**plain, "PYTHONPATH": str(site)}}
    assert run("-c", USE, *arguments, **elsewhere).startswith(str(site))
    assert Image.open(tmp_path / "boot.png").size == (64, 64)
