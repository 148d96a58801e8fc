"""The notebooks on a machine as Colab brings it: the first cell installs, and each one runs."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, version
from itertools import pairwise

import colab
import links
import nbformat
import pytest
import yaml
from leftovers import leftovers

from asddim_lib import __version__
from tests.colab_machine import (
    ADDRESS,
    PROJECT,
    ROOT,
    Machine,
    once,
    output,
    public,
    write_wheel,
)
from tests.tiny import coarse

COMMIT = "0" * 40
INSTALLED = {"_asddim_lib.pth", f"asddim_lib-{__version__}.dist-info"}

#: A tiny model on the machine, from the folder in which the chapters run.
TINY = "../../tiny"
#: Parameters of each chapter that has any, other than they stand there.
CHANGED = {
    "blind": {"pairs": 2, "steps": 5, "fine_records": "results/guidance-3/steps-20"},
    "clock": {"repeats": 2, "steps": [2, 4]},
    "ddim": {"samples": 100},
    "equations": {"contract": "./book/equations.yml"},
    "evaluations": {"runs": 100},
    "experiment": {"model": TINY, "steps": [4], "count": 8},
    "flow": {"steps": 10},
    "grids": {"model": TINY, "steps": 5},
    "capped": {"few": [8]},
    "guidance": {"steps": 4, "c": 1.5},
    "judging": {"repeats": 3, "sizes": [250, 500, 1000], "steps": 4},
    "local-error": {"strips": 6},
    "low-noise": {"steps": 14},
    "nearer": {"fine_steps": 10},
    "noise": {"seed": 5},
    "notation": {"steps": 20},
    "one-grid": {"p": 1.0},
    "paper": {"records": "results/"},
    "second": {"chosen_by": "CLIP score"},
    "sensitivity": {"probes": 5},
    "start": {"steps": 4, "fine_steps": 10},
    "use": {"model": TINY, "steps": 5},
}


@pytest.fixture(autouse=True)
def _public():
    with public():
        yield


def test_the_first_cell_installs_all_that_the_chapters_import():
    setup = ast.parse((ROOT / "book" / "setup_cell.py").read_text())
    also = next(
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ALSO"
    )
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["experiments"]]
    wanted = {re.match(r"[\w-]+", one)[0].lower() for one in [*needed, *also]}
    homes = packages_distributions()
    for chapter in links.chapters():
        for name in (
            imports(chapter) - {"asddim_lib", "experiments", "IPython"} - sys.stdlib_module_names
        ):
            assert wanted & {home.lower() for home in homes[name]}, f"{chapter} imports {name}"


def imports(chapter):
    """The top-level names that a chapter's own cells import."""
    cells = colab.notebook(chapter, links.pages()[chapter], COMMIT).cells[2:]
    names = set()
    for cell in cells:
        for node in ast.walk(ast.parse(cell.source if cell.cell_type == "code" else "")):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    return names


def test_the_first_cell_does_nothing_where_all_is_here(tmp_path):
    cell = colab.setup(COMMIT) + "\nassert 'project' not in globals()\nprint(os.getcwd())"
    without_git = {**os.environ, "PATH": str(tmp_path)}
    assert output(sys.executable, "-c", cell, cwd=ROOT, env=without_git) == str(ROOT)


def test_the_first_cell_says_in_one_line_that_cloning_failed(tmp_path):
    machine = Machine(tmp_path, tmp_path / "nowhere")
    done = machine.run("-c", colab.setup(COMMIT))
    assert done.returncode == 1
    line = rf"could not clone {re.escape(ADDRESS)} at {COMMIT}: fatal: .*nowhere.*\n"
    assert re.fullmatch(line, done.stderr)
    cells = [nbformat.v4.new_code_cell(text) for text in (colab.setup(COMMIT), "print('went on')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "in.ipynb")
    assert machine.papermill(tmp_path / "in.ipynb", tmp_path / "out.ipynb").returncode
    last = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1]
    assert "went on" not in str(last.get("outputs")), "the notebook stops there"


def test_without_an_address_the_first_cell_asks_for_a_clone(tmp_path):
    with public(""):
        cell = colab.setup(COMMIT)
    done = subprocess.run(
        [sys.executable, "-c", cell], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(r"[^\n]*clone[^\n]*\n", done.stderr)
    assert not list(tmp_path.iterdir())
    assert output(sys.executable, "-c", f"{cell}\nimport experiments\nprint(folder)", cwd=ROOT)


@pytest.fixture
def index(tmp_path):
    """A folder of wheels: each in the pinned version, and in one that is newer than all."""
    folder = tmp_path / "index"
    folder.mkdir()
    pins = pinned()
    for name, needs in {
        "torchmetrics": ["numpy>1.20", "torch>=2", "lightning-utilities>=0.8"],
        "lightning_utilities": ["packaging"],
        "diffusers": ["numpy"],
    }.items():
        for number in (pins[name.replace("_", "-")], "99.0"):
            write_wheel(folder, name, number, needs)
    for name in ("numpy", "torch", "transformers", "packaging", "pandas"):
        write_wheel(folder, name, "99.0")
    return folder


def pinned():
    """The pinned version of each package."""
    return dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())


@pytest.mark.colab
def test_the_first_cell_installs_pins_and_changes_nothing_that_is_here(
    tmp_path,
    published,
    head,
    index,
):
    missing = ("torchmetrics", "lightning_utilities", "diffusers")
    machine = Machine(tmp_path / "machine", published, without=missing)
    write_wheel(machine.site.parent, "diffusers", "0.3")  # too old for the library
    old = machine.site.parent / "diffusers-0.3-py3-none-any.whl"
    machine.run("-m", "pip", "install", "--no-deps", str(old))
    done = machine.run("-c", colab.setup(head), PIP_FIND_LINKS=str(index))
    assert done.returncode == 0, done.stderr
    new = {name for name in machine.added() if name.endswith(".dist-info")}
    pins = pinned()
    expected = {f"{name}-{pins[name.replace('_', '-')]}.dist-info" for name in missing}
    assert new == expected | {f"asddim_lib-{__version__}.dist-info"}
    for name in ("numpy", "torch", "transformers"):
        code = f"from importlib.metadata import version; print(version({name!r}))"
        assert machine.run("-c", code).stdout.strip() == version(name)
    uninstall = ("-m", "pip", "uninstall", "--yes", "torchmetrics")
    assert machine.run(*uninstall).returncode == 0
    for file in index.glob("torchmetrics*"):
        file.unlink()
    failed = machine.run("-c", colab.setup(head), PIP_FIND_LINKS=str(index))
    assert re.fullmatch(r"could not install torchmetrics: ERROR: .+\n", failed.stderr)


def test_every_chapter_with_parameters_has_a_changed_one():
    parameters = {}
    for chapter in links.chapters():
        for cell in colab.notebook(chapter, links.pages()[chapter], COMMIT).cells:
            if "parameters" in cell.metadata.get("tags", []):
                parameters[chapter] = cell.source
    assert set(CHANGED) == set(parameters)
    for chapter, changed in CHANGED.items():
        names: dict = {}
        exec(parameters[chapter], names)
        assert all(names[name] != value for name, value in changed.items())


@pytest.fixture(scope="session")
def machine(tmp_path_factory, published, head):
    """One machine for all notebooks, fresh until the first cell, which all share, has run on it."""

    def make(folder):
        fresh = Machine(folder, published)
        assert fresh.run("-c", "import asddim_lib").returncode, "it was there before"
        with public():
            done = fresh.run("-c", colab.setup(head))
        assert done.returncode == 0, done.stderr
        assert fresh.added() == INSTALLED
        coarse().save_pretrained(folder / "tiny")

    installed = Machine(once(tmp_path_factory, "machine", make), published, make=False)
    with installed.warm():
        yield installed


#: Runs an exercise's check with functions that return None, which must fail.
STUB = """try:
    exec({check!r}, {{**globals(), **dict.fromkeys({names!r}, lambda *_, **__: None)}})
except (AssertionError, TypeError, AttributeError):
    pass
else:
    raise RuntimeError("the check passes without a solution")
"""


def with_stubs(notebook):
    """The cells of a notebook, with a cell before each solution that tries its check on stubs."""
    cells = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    checks = {cell.id: after for cell, after in pairwise(code)}
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            body = ast.parse(cell.source).body
            names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
            source = STUB.format(check=checks[cell.id].source, names=names)
            cells.append(nbformat.v4.new_code_cell(source))
        cells.append(cell)
    return cells


def last_headings(html):
    """The last row of headings of each table."""
    tables = re.findall("<thead>(.*?)</thead>", html, re.S)
    rows = [re.findall("<tr.*?</tr>", table, re.S)[-1] for table in tables]
    return [re.findall("<th.*?>(.*?)</th>", row, re.S) for row in rows]


@pytest.mark.parametrize("vain", [False, True])
def test_a_check_that_passes_without_a_solution_stops_the_notebook(vain):
    make = nbformat.v4.new_code_cell
    cells = [
        make("def double(x):\n    return 2 * x", metadata={"tags": ["solution"]}),
        make("double(2)" if vain else "assert double(2) == 4", metadata={"tags": ["check"]}),
    ]
    stub, *rest = with_stubs(nbformat.v4.new_notebook(cells=cells))
    assert rest == cells
    if vain:
        with pytest.raises(RuntimeError, match="passes without a solution"):
            exec(stub.source, {})
    else:
        exec(stub.source, {})


@pytest.mark.colab
@pytest.mark.parametrize("chapter", links.chapters())
def test_a_notebook_runs_where_only_colab_s_packages_are_with_a_changed_parameter(
    chapter,
    tmp_path,
    machine,
    head,
):
    """Its exercises pass with their solution, and fail with a stub."""
    file, out = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    notebook = colab.notebook(chapter, links.pages()[chapter], head)
    assert notebook.cells[1].source == colab.setup(head), "what made the machine"
    notebook.cells = with_stubs(notebook)
    nbformat.write(notebook, file)
    changed = ["-y", yaml.safe_dump(CHANGED[chapter])] if chapter in CHANGED else []
    done = machine.papermill(file, out, *changed, jupyter=chapter)
    assert done.returncode == 0, done.stderr[-2000:]
    assert machine.added() == INSTALLED
    assert [path.name for path in machine.home.iterdir()] == [f"asddim-lib-{head[:8]}"]
    outputs = [
        output.get("data", {})
        for cell in nbformat.read(out, 4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert outputs
    assert not [raw for data in outputs for raw in leftovers(data.get("text/markdown", ""))]
    rows = [row for data in outputs for row in last_headings(data.get("text/html", ""))]
    assert all(row[-1] for row in rows), "a second row of headings, which names the index alone"
