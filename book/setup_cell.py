# @title Setup: fetches the library and its records, and installs missing packages
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = "{repository}"
COMMIT = "{commit}"  # what this notebook was made from
KEPT = {"torch", "numpy", "transformers"}  # never changed, whatever their version
ALSO = ["ipywidgets", "matplotlib", "seaborn"]  # what the chapters draw with


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


def is_clone(folder):
    return (folder / "asddim_lib").is_dir() and (folder / "results").is_dir()


folder, installed = Path().resolve(), version("asddim-lib") is not None
elsewhere = not is_clone(folder)
if elsewhere:
    if not REPOSITORY:
        raise SystemExit("there is no public repository yet: run this notebook in a clone's folder")
    folder = Path(f"asddim-lib-{COMMIT[:8]}").resolve()
    if not is_clone(folder):
        git, fetch = ["git", "-C", str(folder)], ["fetch", "--quiet", "--depth", "1"]
        run("git did not start", "git", "init", "--quiet", str(folder))
        run(f"could not clone {REPOSITORY} at {COMMIT}", *git, *fetch, REPOSITORY, COMMIT)
        run("could not unpack the clone", *git, "checkout", "--quiet", "FETCH_HEAD")
    os.chdir(folder)
if elsewhere or not installed:
    project = tomllib.loads(Path("pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [
        Requirement(one)
        for one in [
            *project["project"]["dependencies"],
            *extras["experiments"],
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
        own = ["--no-deps", "--no-build-isolation", "--editable", "."]
        run("could not install asddim-lib", *pip, *own)
    importlib.invalidate_caches()
if str(folder) not in sys.path:
    sys.path.insert(0, str(folder))  # the experiments, which are not installed
