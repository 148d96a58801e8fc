"""The two wheels: the library alone, small and without data, and the data that go with it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.tiny import coarse

ROOT = Path(__file__).parents[1]
USE = """
import asddim_lib
from asddim_lib.cli import main
print(asddim_lib.__file__, flush=True)
main()
"""


def run(*command, **options):
    how = {"capture_output": True, "text": True, **options}
    return subprocess.run([sys.executable, *command], **how)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Both wheels, built from the checkout."""
    out = tmp_path_factory.mktemp("wheels")
    for source in (ROOT, ROOT / "data"):
        command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
        run(*command, check=True)
    return {file.name.split("-")[0]: file for file in out.glob("*.whl")}


def installed(wheels, names, folder):
    """A folder with these wheels alone, and the environment that imports from it."""
    files = [str(wheels[name]) for name in names]
    how = ["--quiet", "--no-deps", "--no-index", "--target", str(folder / "site")]
    run("-m", "pip", "install", *how, *files, check=True)
    # Coverage counts the lines of the checkout, not of this copy.
    plain = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    return {"cwd": folder, "env": {**plain, "PYTHONPATH": str(folder / "site")}}


def test_the_library_is_small_typed_and_alone(wheels):
    assert wheels["asddim_lib"].stat().st_size < 1_000_000
    with zipfile.ZipFile(wheels["asddim_lib"]) as content:
        names = content.namelist()
    assert "asddim_lib/py.typed" in names
    code = [name for name in names if ".dist-info/" not in name]
    assert all(name.startswith("asddim_lib/") for name in code)
    assert not [name for name in code if name.endswith((".safetensors", ".csv", ".png"))]
    with zipfile.ZipFile(wheels["asddim_data"]) as content:
        assert all(name.startswith("asddim_data") for name in content.namelist())


def test_the_library_draws_with_any_model_and_says_how_to_get_the_bundled_one(wheels, tmp_path):
    elsewhere = installed(wheels, ["asddim_lib"], tmp_path)
    coarse().save_pretrained(tmp_path / "model")
    words = ["generate", "a red boot", "boot.png", "--steps", "2"]
    drawn = run("-c", USE, *words, "--model", "model", **elsewhere)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith(str(tmp_path / "site"))
    with Image.open(tmp_path / "boot.png") as picture:
        assert picture.size[0] > 0
    refused = run("-c", USE, *words, "--model", "bundled", **elsewhere)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "pip install ./data" in refused.stderr.splitlines()[-1]


def test_with_the_data_it_draws_without_the_checkout(wheels, tmp_path):
    elsewhere = installed(wheels, ["asddim_lib", "asddim_data"], tmp_path)
    words = ["generate", "a red boot on a white ground", "boot.png", "--steps", "3"]
    drawn = run("-c", USE, *words, **elsewhere)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "boot.png") as picture:
        assert picture.size == (64, 64)
