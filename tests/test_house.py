"""The house: what may import what, what is said of each function, and the newcomer's questions."""

import ast
import io
import itertools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from docutils.core import publish_doctree

from asddim_lib import ASDDIMScheduler, timesteps
from asddim_lib.grids import table as methods

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "asddim_lib"
#: From the ground up. A package imports those before it, and itself.
FLOORS = (
    "errors",
    "progress",
    "cache",
    "digest",
    "paper",
    "sensitivity",
    "configs",
    "levels",
    "evidence",
    "grids",
    "schedulers",
    "models",
    "metrics",
    "guidance",
    "pipeline",
    "calibration",
    "tuning",
    "cli",
)
FILES = sorted(LIBRARY.rglob("*.py"))
REFERENCE = [*FILES, *sorted((ROOT / "experiments").glob("*.py"))]


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


def test_every_part_stands_on_a_floor():
    parts = {file.name for file in LIBRARY.iterdir() if (file / "__init__.py").is_file()}
    parts |= {file.stem for file in LIBRARY.glob("*.py")}
    saved_by_0_1 = {"scheduler", "unipc"}
    assert parts - {"__init__"} - saved_by_0_1 == set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=module)
def test_the_library_imports_neither_the_experiments_nor_the_book(file):
    beyond = {"experiments", "book", "tests", "training"}
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & beyond


def test_the_library_depends_on_what_it_imports_and_on_nothing_else():
    """But for what pandas needs for .parquet."""
    imported = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.split(".")[0] for name in names}
    foreign = imported - sys.stdlib_module_names - {"asddim_lib"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.match(r"[\w-]+", one)[0] for one in project["dependencies"]}
    homes = packages_distributions()
    assert {home.lower() for name in foreign for home in homes[name]} == wanted


@pytest.mark.parametrize("file", REFERENCE, ids=module)
def test_each_docstring_is_sound_on_the_page_of_the_api(file):
    """As reStructuredText, which the book is built from; a warning fails its build."""
    said = io.StringIO()
    for node in ast.walk(ast.parse(file.read_text())):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        text = ast.get_docstring(node) if documented else None
        publish_doctree(text or "", settings_overrides={"warning_stream": said})
    assert said.getvalue() == ""


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


@pytest.mark.parametrize("name", ["paper", "sensitivity", "levels"])
def test_the_ground_floors_know_no_pipeline(name):
    assert "pipe." not in (LIBRARY / f"{name}.py").read_text()


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


def test_one_picture_is_followed_from_prompt_to_verdict_in_at_most_ten_functions():
    """CONTRIBUTING's walk names functions and classes that are in the files which it links."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    walk = re.search(r"## Read in one sitting\n(.*?)\n## ", text, re.S)[1]
    steps = re.findall(r"^\d+\. \[`([\w.]+)`\]\(([\w/.]+)\)", walk, re.M)
    assert 5 <= len(steps) <= 10
    for name, file in steps:
        tree = ast.parse((ROOT / file).read_text())
        for part in name.split("."):
            tree = next(node for node in tree.body if getattr(node, "name", "") == part)


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
