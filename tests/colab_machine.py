"""A machine as Colab brings it, for the tests of the notebooks: a Python with packages but ours."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from contextlib import contextmanager
from pathlib import Path

import colab
import links
import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: A public address for the tests; the project's setting may be empty. Git never asks it.
ADDRESS = "https://github.com/OWNER/NAME"
OWN = ("COV", "PYTHON", "PYTEST", "VIRTUAL_ENV", "PIP", "MPL", "JUPYTER", "GIT")  # of this process


def output(*command, **options):
    """What a command prints; raises when it fails."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, **options)
    return done.stdout.strip()


@contextmanager
def public(address=ADDRESS):
    """Meanwhile the repository has this public address, or none."""
    with pytest.MonkeyPatch.context() as patch:
        for tool in (colab, links):
            patch.setattr(tool, "address", lambda: address)
        yield


def publish(folder):
    """A repository in `folder` whose one commit is the working tree as it is here."""
    output("git", "init", "--quiet", "--bare", folder)
    tree = ["--git-dir", folder, "--work-tree", ROOT]
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "--all"], ["commit", "--quiet", "--message", "as it is"]):
        output("git", *tree, *author, *command, cwd=ROOT)
    return folder


def once(tmp_path_factory, name, make):
    """A folder that `make` fills once for the whole session, whichever worker comes first."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each worker has a folder of its own in it
    folder, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


class Machine:
    """A new Python with the packages of this one, except asddim_lib and those in `without`.

    Its git finds `published` at the public address. With `make=False`, `folder` already holds it.
    """

    def __init__(self, folder, published, without=(), make=True):
        self.folder, self.home = folder, folder / "home"
        self.python = str(folder / "venv" / "bin" / "python")
        if make:
            self.home.mkdir(parents=True)
            self._link_packages(without)
            output(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        place = output(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        self.site = Path(place)
        (self.site / "brought.pth").write_text(str(folder / "brought"))
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(OWN)},
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{published}.insteadOf",
            "GIT_CONFIG_VALUE_0": ADDRESS,
            "PIP_NO_INDEX": "1",
            "OMP_NUM_THREADS": "1",
        }

    def _link_packages(self, without):
        brought = self.folder / "brought"
        brought.mkdir()
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for package in Path(place).iterdir():
                left_out = any(name in package.name for name in ("asddim_lib", *without))
                if not left_out and package.suffix != ".pth":
                    (brought / package.name).symlink_to(package)

    def run(self, *command, jupyter="jupyter", **more):
        """Runs the machine's Python in its home; Jupyter's own files go into a folder `jupyter`."""
        places = {
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }
        folders = {key: str(self.folder / jupyter / name) for key, name in places.items()}
        return subprocess.run(
            [self.python, *command],
            cwd=self.home,
            env={**self.environment, **folders, **more},
            capture_output=True,
            text=True,
            timeout=1800,
        )

    def papermill(self, notebook, out, *options, **places):
        """Executes a notebook on the machine."""
        fixed = ("-m", "papermill", "-k", "python3", "--no-progress-bar")
        return self.run(*fixed, *options, str(notebook), str(out), **places)

    @contextmanager
    def warm(self):
        """Meanwhile the kernels of this machine's notebooks are forks of one process of it."""
        script = str(ROOT / "tests" / "warm_kernels.py")
        with tempfile.TemporaryDirectory() as folder:  # a socket's path may have 107 letters
            address, spec = f"{folder}/socket", Path(folder) / "kernels" / "python3"
            spec.mkdir(parents=True)
            command = [self.python, "-S", script, "start", address, "-f", "{connection_file}"]
            made = {"argv": command, "display_name": "Python 3", "language": "python"}
            (spec / "kernel.json").write_text(json.dumps(made))
            self.environment["JUPYTER_PATH"] = folder
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            how = {"cwd": self.home, "env": self.environment, **pipes}
            with subprocess.Popen([self.python, script, "serve", address], **how) as server:
                assert server.stdout.readline() == "ready\n"
                yield
                server.stdin.close()
            del self.environment["JUPYTER_PATH"]

    def added(self):
        """The names in site-packages that were installed on the machine."""
        return {path.name for path in self.site.iterdir()} - {"brought.pth", "__pycache__"}


def write_wheel(folder, name, number, needs=()):
    """Writes a wheel of an empty package with that version and those requirements."""
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as file:
        info = f"{name}-{number}.dist-info"
        file.writestr(f"{name}.py", f"__version__ = {number!r}\n")
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
        lines += [f"Requires-Dist: {need}" for need in needs]
        file.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        about = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{info}/WHEEL", about)
        file.writestr(f"{info}/RECORD", "")
