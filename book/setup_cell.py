# @title Setup: fetches the library and its records, and installs what is missing
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = "{repository}"
COMMIT = "{commit}"  # what this notebook was made from
KEPT = {"torch", "numpy", "transformers"}  # never changed, whatever their version
ALSO = ["ipywidgets", "matplotlib", "pyyaml", "seaborn"]  # what the chapters draw with


def run(failure, *command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{failure}: {(done.stderr.strip() or 'no reason given').splitlines()[0]}")


def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def lacks(one):
    return one.name not in KEPT and (
        version(one.name) is None or not one.specifier.contains(version(one.name), prereleases=True)
    )


installed = importlib.util.find_spec("asddim_lib") is not None
if not (installed and Path("results").is_dir()):
    folder = Path(f"asddim-lib-{COMMIT[:8]}").resolve()
    if not (folder / "results").is_dir():
        run("git did not start", "git", "init", "--quiet", str(folder))
        run(
            f"could not clone {REPOSITORY} at {COMMIT}",
            "git",
            "-C",
            str(folder),
            "fetch",
            "--quiet",
            "--depth",
            "1",
            REPOSITORY,
            COMMIT,
        )
        run(
            "could not unpack the clone",
            "git",
            "-C",
            str(folder),
            "checkout",
            "--quiet",
            "FETCH_HEAD",
        )
    os.chdir(folder)
    project = tomllib.loads(Path("pyproject.toml").read_text())
    wanted = [
        Requirement(one)
        for one in [
            *project["project"]["dependencies"],
            *project["build-system"]["requires"],
            *ALSO,
        ]
    ]
    lacking = [one.name for one in wanted if lacks(one)]
    pins = dict(line.split("==") for line in Path("requirements.lock").read_text().split())
    held = {
        name: pin if name.lower() in lacking else version(name) or pin for name, pin in pins.items()
    }
    Path("held.txt").write_text("\n".join(f"{name}=={number}" for name, number in held.items()))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if lacking:
        run(f"could not install {', '.join(lacking)}", *pip, "--constraint", "held.txt", *lacking)
    if not installed:
        run("could not install asddim-lib", *pip, "--no-deps", "--no-build-isolation", ".")
    importlib.invalidate_caches()
