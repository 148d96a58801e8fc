"""The house: what may import what, how long a file and a function may be, and the ten questions."""

import ast
import itertools
import re
from pathlib import Path

import pytest

from asddim_lib import ASDDIMScheduler, timesteps
from asddim_lib.grids import table as methods

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "asddim_lib"
#: From the ground up. A package imports those before it, and itself.
FLOORS = (
    "errors",
    "files",
    "core",
    "evidence",
    "grids",
    "schedulers",
    "models",
    "metrics",
    "measure",
    "tune",
    "testing",
    "experiment",
    "bench",
    "cli",
)
FILES = sorted(LIBRARY.rglob("*.py"))
CODE = [*FILES]
for folder in ("tests", "training", "book"):
    CODE += sorted((ROOT / folder).glob("*.py"))


def floor(module):
    """The package, or file, of the library that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def module(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(file, *, types_too=True):
    """The modules of the library that a file imports, wherever in it."""
    tree = ast.parse(file.read_text())
    skipped = set()
    if not types_too:  # what stands under `if TYPE_CHECKING` is not imported when it runs
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {id(part) for part in ast.walk(node)}
    found = set()
    for node in (n for n in ast.walk(tree) if id(n) not in skipped):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asddim_lib"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if path(name) else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("asddim_lib")}
    return found


def path(name):
    """The file of a module, if there is one."""
    base = ROOT.joinpath(*name.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


@pytest.mark.parametrize("file", FILES, ids=module)
def test_no_arrow_runs_back_up(file):
    own = floor(module(file))
    if own not in FLOORS:  # the public face, the names that version 0.1 saved, the widgets
        return
    for name in imports(file):
        other = floor(name)
        assert other in FLOORS or other == "", f"{name} stands on no floor"
        if other:
            assert FLOORS.index(other) <= FLOORS.index(own), f"{module(file)} imports {name}"


def test_every_package_stands_on_a_floor():
    packages = {p.name for p in LIBRARY.iterdir() if (p / "__init__.py").is_file()}
    assert packages <= set(FLOORS)


def test_there_is_no_import_circle():
    arrows = {
        module(f): {n for n in imports(f, types_too=False) if n != "asddim_lib"} for f in FILES
    }
    done, open_ = set(), []

    def visit(name):
        if name in done or name not in arrows:
            return
        assert name not in open_, f"circle: {' → '.join([*open_[open_.index(name) :], name])}"
        open_.append(name)
        for other in arrows[name]:
            visit(other)
        done.add(open_.pop())

    for name in arrows:
        visit(name)


def test_the_ground_floor_knows_no_pipeline_and_imports_nothing_above():
    for file in (LIBRARY / "core").glob("*.py"):
        assert {floor(n) for n in imports(file)} <= {"core", "errors"}
        assert "pipe." not in file.read_text()


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_and_functions_fit(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"


@pytest.mark.parametrize("file", FILES, ids=module)
def test_every_public_function_says_what_it_does(file):
    tree = ast.parse(file.read_text())
    assert file.name == "__main__.py" or ast.get_docstring(tree), "the file says nothing of itself"
    for node in tree.body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[:1] != "_"
        assert not public or ast.get_docstring(node), f"{node.name} has no docstring"


def test_wrong_input_is_wrong_use():
    """A bare ValueError would be shown as our own fault."""
    for file in FILES:
        assert not re.search(r"raise ValueError\(", file.read_text()), module(file)


def test_every_method_is_in_the_table_and_says_what_it_is():
    for name, method in methods.METHODS.items():
        assert method.name == name
        assert method.needs in ("nothing", "profile", "path", "adjoints")
        assert callable(method.grid)
        assert 10 < len(method.summary) < 90
        assert "\n" not in method.summary


def test_the_newcomer_s_questions_have_answers_in_the_tree():
    """Each row of CONTRIBUTING's table names a file that is there, and a name that is in it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| ([^|]+\?) \| `([\w/.]+)`(?:[^|`]*`(\w+)`)?", text, re.M)
    assert len(rows) >= 10
    for question, file, name in rows:
        assert (ROOT / file).exists(), question
        assert not name or name in (ROOT / file).read_text(), question


def test_the_recipe_for_a_grid_of_one_s_own_works():
    """CONTRIBUTING's recipe, run as it stands: at most ten lines, and the scheduler takes it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    recipe = re.search(r"## Add your own grid\n.*?```python\n(.*?)```", text, re.S)[1]
    assert len(recipe.strip().splitlines()) <= 10
    space = {}
    exec(recipe, space)
    try:
        name = next(n for n in reversed(methods.METHODS))
        config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        grid = timesteps(config, 7, allocation=name)
        assert len(grid) == 7
        assert all(a > b for a, b in itertools.pairwise(grid))
        scheduler = ASDDIMScheduler(**config, allocation=name)
        scheduler.set_timesteps(7)
        assert scheduler.timesteps.tolist() == grid
    finally:
        methods.METHODS.pop(name)


@pytest.mark.xdist_group("kept")
def test_tests_that_share_a_run_stay_in_one_process(request, worker_id):
    """pytest-xdist 3.8 loses the marks under pytest 9.2, without a word: each run is made twice."""
    if worker_id == "master":
        pytest.skip("there is one process; `make test` has several")
    assert request.node.nodeid.endswith("@kept")
