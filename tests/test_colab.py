"""The notebooks for Colab: nothing is left of MyST, the first cell fetches and installs what is missing, and each runs where only Colab's packages are."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions, version
from pathlib import Path

import colab
import jupytext
import nbformat
import pytest
import yaml
from build import linked

ROOT = Path(__file__).parents[1]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
COMMIT = "0" * 40
FLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CHAPTERS = pytest.mark.parametrize("chapter", colab.chapters())


def said(*command, **options):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, **options
    ).stdout.strip()


def made(chapter):
    return colab.notebook(chapter, colab.pages()[chapter], COMMIT)


def crafted(text):
    source = f"---\njupytext: {{text_representation: {{format_name: myst}}}}\nkernelspec: {{name: python3, display_name: Python 3}}\n---\n\n# Crafted\n\n{text}\n"
    return colab.notebook("ddim", source, COMMIT)


# the translation


@CHAPTERS
def test_nothing_of_myst_is_left(chapter):
    notebook = made(chapter)
    nbformat.validate(notebook)
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert not [raw for one in text for raw in colab.leftovers(one)]
    assert not re.search(
        r"\{\{?(eq|doc|ref|cite|term|py)\b", "".join(cell.source for cell in notebook.cells)
    )
    assert f"]({colab.colab_link(chapter)})" in text[0].split("\n\n")[1], "a badge under the title"
    assert all(
        set(cell.metadata) <= {"tags", "cellView"} and not cell.get("outputs")
        for cell in notebook.cells
    )


@CHAPTERS
def test_code_is_the_chapter_s_own_but_for_links_and_sliders(chapter):
    written = [
        cell
        for cell in jupytext.reads(colab.pages()[chapter], fmt="md:myst").cells
        if cell.cell_type == "code"
    ]
    first, *cells = [cell for cell in made(chapter).cells if cell.cell_type == "code"]
    assert first.source == colab.setup(COMMIT)
    for before, after in zip(written, cells, strict=True):
        assert ("hide-input" in before.metadata.get("tags", [])) == (
            after.metadata.get("cellView") == "form"
        )
        assert after.source.startswith("# @title ") or "cellView" not in after.metadata
        assert not re.search(r"^live = False", after.source, re.MULTILINE)
        if not colab.CODE_ROLE.search(before.source):
            assert (
                re.sub(r"^# @title .*\n", "", after.source).replace(
                    "live = True", "live = False", 1
                )
                == before.source
            )


def test_each_equation_has_the_paper_s_number():
    for equation in yaml.safe_load((ROOT / "book" / "equations.yml").read_text()):
        text = "".join(cell.source for cell in made(equation["chapter"]).cells)
        assert text.count(f" \\tag{{{equation['number']}}}\n$$") == 1


def test_a_rebuild_writes_the_same_bytes_and_removes_what_is_no_chapter(tmp_path):
    (tmp_path / "gone.ipynb").write_text("{}")
    first = {file.name: file.read_bytes() for file in colab.write(tmp_path, COMMIT)}
    assert first == {file.name: file.read_bytes() for file in colab.write(tmp_path, COMMIT)}
    assert {file.stem for file in tmp_path.iterdir()} == set(colab.chapters())
    assert "api" not in colab.chapters()


@pytest.mark.parametrize(
    ("myst", "plain"),
    [
        ("$$\na\n$$ (eq-ddim)", "$$\na \\tag{3}\n$$"),
        ("$$a$$ (eq-start)", "$$a \\tag{13}\n$$"),
        ("$$\na\n$$", "$$\na\n$$"),
        ("by {eq}`eq-ddim`.", "by Eq. (3)."),
        ("by {eq}`eq-fid`.", f"by [Eq. (14)]({colab.colab_link('judging')})."),
        ("see {doc}`noise`", f"see [Noise, forward and back]({colab.colab_link('noise')})"),
        ("see {doc}`the\nfirst <noise>`", f"see [the first]({colab.colab_link('noise')})"),
        ("see {doc}`api`", f"see [Reference]({colab.page_link('api')})"),
        ("{py:func}`~asddim_lib.core.step.ddim_step`", "`ddim_step`"),
        (
            "{py:class}`asddim_lib.core.noise.NoiseSchedule`",
            "`asddim_lib.core.noise.NoiseSchedule`",
        ),
        ("{ref}`Solution <ddim-1>`", "*Solution below.*"),
        ("{ref}`Solution <noise-1>`", f"[Solution]({colab.colab_link('noise')})"),
        ("{term}`adjoint`, {term}`paths <path>`", "adjoint, paths"),
        ("(here)=\n## A heading", "## A heading"),
        ("% a comment\ntext", "text"),
        ("```{note}\n:class: x\nSee {eq}`eq-ddim`.\n```", "> **Note**\n>\n> See Eq. (3)."),
        (
            ":::{admonition} Mind *this*\ntwo\n\nlines\n:::",
            "> **Mind *this***\n>\n> two\n>\n> lines",
        ),
        ("```{code-block} bash\nmake\n```", "```bash\nmake\n```"),
        ("$a\n+ b$", "$a + b$"),
        ("`{eq}` and ``{doc}`x` ``", "`{eq}` and ``{doc}`x` ``"),
        ("```\n{eq}`eq-ddim`\n```", "```\n{eq}`eq-ddim`\n```"),
    ],
)
def test_what_becomes_of_myst(myst, plain):
    assert colab.markdown(myst, "ddim") == plain
    assert crafted(myst).cells[0].source.endswith(plain)


def test_citations_name_authors_and_years(tmp_path, monkeypatch):
    (tmp_path / "references.bib").write_text(
        r"""@article{one, author = {Bi{\'n}kowski, Miko{\l}aj}, title = {A}, year = {2018}, eprint = {1801.01401}}
@book{two, author = {de Boor, Carl and Swartz, Blair}, title = {B}, year = {1973}, doi = {10.1/a(b)c}}
@misc{many, author = {Song, Y. and Sohl-Dickstein, J. and Kingma, D.}, title = {C}, year = {2021}}"""
    )
    monkeypatch.setattr(colab, "BOOK", tmp_path)
    colab.bibliography.cache_clear()
    try:
        shown = colab.markdown("{cite:p}`one,two` {cite:t}`many` {cite:p}`none`", "ddim")
    finally:
        colab.bibliography.cache_clear()
    assert (
        shown
        == "([Bińkowski, 2018](https://arxiv.org/abs/1801.01401); [de Boor and Swartz, 1973](https://doi.org/10.1/a%28b%29c)) Song et al. (2021) (none)"
    )


@pytest.mark.parametrize(
    "raw",
    [
        "{numref}`euler`",
        "{eq}`eq-none`",
        "{doc}`nowhere`",
        "{ref}`x <nowhere>`",
        "- one\n  {glue:text}`x`",
        "```{figure} a.png\n```",
        "```{eval-rst}\na\n```",
        "$$\na\n$$ (eq-none)",
        "a[^1]\n\n[^1]: b",
        "[peers](peers.md)",
        "![a](a.png)",
        "{{ version }}",
    ],
)
def test_what_has_no_translation_is_refused(raw):
    with pytest.raises(
        ValueError,
        match=r"^book/chapters/ddim\.md:(8|9|10) has .*, which Colab would show as it is; write it otherwise, or teach book/colab\.py$",
    ):
        crafted(raw)


def test_code_that_prints_roles_prints_links():
    cell = "```{code-cell} ipython3\nname, label = 'asddim_lib.core.step.ddim_step', 'eq-fid'\n"
    cell += 'text = f"{{py:obj}}`~{name}` {{eq}}`{label}` {{doc}}`noise`" + "{eq}`eq-ddim`"\n```'
    names = {}
    exec(crafted(cell).cells[-1].source, names)
    assert (
        names["text"]
        == f"`{names['name']}` [Eq. (14)]({colab.colab_link('judging')}) [Noise, forward and back]({colab.colab_link('noise')})Eq. (3)"
    )
    with pytest.raises(ValueError, match=r"ddim\.md:9 has \{doc\}`nowhere`"):
        crafted('```{code-cell} ipython3\nprint("{doc}`nowhere`")\n```')


def test_a_page_of_the_book_links_to_its_notebook(tmp_path):
    cells = [nbformat.v4.new_markdown_cell("# Noise\n\nText."), nbformat.v4.new_code_cell("1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "noise.ipynb")
    copy = linked(tmp_path / "noise.ipynb", "noise")
    once = copy.read_bytes()
    assert (
        nbformat.read(copy, 4).cells[0].source
        == f"# Noise\n\n[Open in Colab]({colab.colab_link('noise')})\n\nText."
    )
    assert linked(tmp_path / "noise.ipynb", "noise").read_bytes() == once, (
        "or Sphinx would read it anew"
    )


# the first cell


def test_the_first_cell_installs_all_that_the_chapters_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    setup = ast.parse((ROOT / "book" / "setup_cell.py").read_text())
    also = next(
        ast.literal_eval(node.value)
        for node in setup.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ALSO"
    )
    wanted = {re.match(r"[\w-]+", one)[0].lower() for one in [*project["dependencies"], *also]}
    homes = packages_distributions()
    for chapter in colab.chapters():
        lines = "\n".join(
            cell.source for cell in made(chapter).cells[2:] if cell.cell_type == "code"
        )
        for node in ast.walk(ast.parse(lines)):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in (
                {one.split(".")[0] for one in names}
                - {"asddim_lib", "IPython"}
                - sys.stdlib_module_names
            ):
                assert wanted & {home.lower() for home in homes[name]}, f"{chapter} imports {name}"


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A repository whose one commit is the tree as it is here, committed or not."""
    folder = tmp_path_factory.mktemp("published") / "repository"
    said("git", "init", "--quiet", "--bare", folder)
    for command in (["add", "--all"], ["commit", "--quiet", "--message", "as it is"]):
        said(
            "git",
            "--git-dir",
            folder,
            "--work-tree",
            ROOT,
            "-c",
            "user.name=test",
            "-c",
            "user.email=test@localhost",
            *command,
            cwd=ROOT,
        )
    return folder


@pytest.fixture(scope="session")
def head(published):
    return said("git", "-C", published, "rev-parse", "HEAD")


class Machine:
    """A new Python that finds the packages which this one has, but for asddim_lib and `without`; and finds `published` at the public address."""

    def __init__(self, folder, published, without=()):
        self.home, brought = folder / "home", folder / "brought"
        self.home.mkdir(parents=True)
        brought.mkdir()
        for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for package in Path(place).iterdir():
                if (
                    not any(name in package.name for name in ("asddim_lib", *without))
                    and package.suffix != ".pth"
                ):
                    (brought / package.name).symlink_to(package)
        said(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
        self.python = str(folder / "venv" / "bin" / "python")
        self.site = Path(
            said(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        )
        (self.site / "brought.pth").write_text(str(brought))
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(
                ("COV", "PYTHON", "PYTEST", "VIRTUAL_ENV", "PIP", "MPL", "JUPYTER", "GIT")
            )
        }
        redirect = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{published}.insteadOf",
            "GIT_CONFIG_VALUE_0": ADDRESS,
        }
        jupyter = {
            "JUPYTER_DATA_DIR": str(folder / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
            "IPYTHONDIR": str(folder / "ipython"),
        }
        self.environment = {
            **inherited,
            **redirect,
            **jupyter,
            "PIP_NO_INDEX": "1",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command, **more):
        return subprocess.run(
            [self.python, *command],
            cwd=self.home,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=1800,
        )

    def added(self):
        return {path.name for path in self.site.iterdir()} - {"brought.pth", "__pycache__"}


def test_the_first_cell_does_nothing_where_all_is_here(tmp_path):
    cell = colab.setup(COMMIT) + "\nassert 'project' not in globals()\nprint(os.getcwd())"
    assert said(
        sys.executable, "-c", cell, cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)}
    ) == str(ROOT), "without git, even"


def test_the_first_cell_says_in_one_line_that_cloning_failed(tmp_path):
    machine = Machine(tmp_path, tmp_path / "nowhere")
    done = machine.run("-c", colab.setup(COMMIT))
    assert done.returncode == 1
    assert re.fullmatch(
        rf"could not clone {re.escape(ADDRESS)} at {COMMIT}: fatal: .*nowhere.*\n", done.stderr
    )
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(colab.setup(COMMIT)),
            nbformat.v4.new_code_cell("print('went on')"),
        ]
    )
    nbformat.write(notebook, tmp_path / "in.ipynb")
    assert machine.run(
        "-m",
        "papermill",
        "-k",
        "python3",
        "--no-progress-bar",
        str(tmp_path / "in.ipynb"),
        str(tmp_path / "out.ipynb"),
    ).returncode
    assert "went on" not in str(
        nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].get("outputs")
    ), "the notebook stops there"


def wheel(folder, name, number, needs=()):
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as file:
        info = f"{name}-{number}.dist-info"
        file.writestr(f"{name}.py", f"__version__ = {number!r}\n")
        file.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
            + "".join(f"Requires-Dist: {need}\n" for need in needs),
        )
        file.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        file.writestr(f"{info}/RECORD", "")


def test_the_first_cell_installs_pins_and_changes_nothing_that_is_here(tmp_path, published, head):
    machine = Machine(
        tmp_path / "machine",
        published,
        without=("torchmetrics", "lightning_utilities", "diffusers"),
    )
    wheel(machine.site.parent, "diffusers", "0.3")  # too old for the library
    machine.run(
        "-m",
        "pip",
        "install",
        "--no-deps",
        str(machine.site.parent / "diffusers-0.3-py3-none-any.whl"),
    )
    index = tmp_path / "index"
    index.mkdir()
    pins = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    for name, needs in {
        "torchmetrics": ["numpy>1.20", "torch>=2", "lightning-utilities>=0.8"],
        "lightning_utilities": ["packaging"],
        "diffusers": ["numpy"],
    }.items():
        for number in (pins[name.replace("_", "-")], "99.0"):
            wheel(index, name, number, needs)
    for name in ("numpy", "torch", "transformers", "packaging", "pandas"):
        wheel(index, name, "99.0")
    done = machine.run("-c", colab.setup(head), PIP_FIND_LINKS=str(index))
    assert done.returncode == 0, done.stderr
    new = {name for name in machine.added() if name.endswith(".dist-info")}
    assert new == {
        f"{name}-{pins[name.replace('_', '-')]}.dist-info"
        for name in ("torchmetrics", "lightning_utilities", "diffusers")
    } | {
        f"asddim_lib-{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}.dist-info"
    }
    for name in ("numpy", "torch", "transformers"):
        assert machine.run(
            "-c", f"from importlib.metadata import version; print(version({name!r}))"
        ).stdout.strip() == version(name)
    for need in index.glob("torchmetrics*"):
        need.unlink()
    again = Machine(tmp_path / "again", published, without=("torchmetrics",)).run(
        "-c", colab.setup(head), PIP_FIND_LINKS=str(index)
    )
    assert re.fullmatch(r"could not install torchmetrics: ERROR: .+\n", again.stderr)


# as Colab would

#: One parameter of each chapter that has any, other than it stands there.
CHANGED = {
    "ablation": {"count": 24},
    "audit": {"records": "results/"},
    "clock": {"repeats": 2},
    "ddim": {"samples": 100},
    "equations": {"contract": "./book/equations.yml"},
    "experiment": {"steps": [8]},
    "judging": {"repeats": 3},
    "low-noise": {"steps": 14},
    "model": {"steps": 15},
    "noise": {"seed": 5},
    "notation": {"steps": 20},
    "one-grid": {"p": 1.0},
    "peers": {"prompts_live": 4},
    "sensitivity": {"probes": 5},
    "start": {"steps": 12},
    "use": {"guidance_scale": 5.0},
}


def test_every_chapter_with_parameters_has_a_changed_one():
    held = {
        chapter: [
            cell for cell in made(chapter).cells if "parameters" in cell.metadata.get("tags", [])
        ]
        for chapter in colab.chapters()
    }
    assert set(CHANGED) == {chapter for chapter, cells in held.items() if cells}
    for chapter, changed in CHANGED.items():
        names: dict = {}
        exec(held[chapter][0].source, names)
        assert all(names[name] != value for name, value in changed.items())


@CHAPTERS
def test_a_notebook_runs_in_a_fresh_environment_with_a_changed_parameter(
    chapter, tmp_path, published, head
):
    machine, file, out = Machine(tmp_path, published), tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    nbformat.write(colab.notebook(chapter, colab.pages()[chapter], head), file)
    assert machine.run("-c", "import asddim_lib").returncode, "it was there before"
    changed = ["-y", yaml.safe_dump(CHANGED[chapter])] if chapter in CHANGED else []
    done = machine.run(
        "-m", "papermill", "-k", "python3", "--no-progress-bar", *changed, str(file), str(out)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert machine.added() == {"asddim_lib", f"asddim_lib-{version('asddim-lib')}.dist-info"}
    assert [path.name for path in machine.home.iterdir()] == [f"asddim-lib-{head[:8]}"]
    outputs = [
        output.get("data", {})
        for cell in nbformat.read(out, 4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert outputs
    assert not [raw for data in outputs for raw in colab.leftovers(data.get("text/markdown", ""))]


# where it is public


def test_the_public_address_stands_in_one_place(published):
    found = said(
        "git",
        "-C",
        published,
        "grep",
        "--ignore-case",
        "--fixed-strings",
        "--name-only",
        "-e",
        ADDRESS.removeprefix("https://github.com/"),
        "HEAD",
    )
    assert found == "HEAD:pyproject.toml"


@pytest.mark.parametrize("flow", FLOWS, ids=[flow.stem for flow in FLOWS])
def test_workflows_are_valid_and_call_the_makefile_alone(flow):
    said(
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        flow,
    )
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    allowed = r"git (checkout --quiet --orphan|--work-tree=_build/colab add|-c user\.\S+ -c user\.\S+ commit|push --quiet --force origin) .+"
    steps = [
        step for job in yaml.safe_load(flow.read_text())["jobs"].values() for step in job["steps"]
    ]
    assert any("run" in step for step in steps)
    for step in steps:
        for line in step.get("run", "").splitlines():
            assert (line.startswith("make ") and set(line.split()[1:]) <= targets) or re.fullmatch(
                allowed, line
            ), line
        assert "run" in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_the_workflow_s_commands_fill_the_branch_with_the_notebooks_alone(
    tmp_path, published, head
):
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    (commands,) = [
        step["run"]
        for step in flow["jobs"]["notebooks"]["steps"]
        if step.get("run", "").startswith("git")
    ]
    origin = tmp_path / "origin"
    said("git", "clone", "--quiet", "--bare", published, origin)
    for turn in ("first", "second"):  # the second time over the first
        checkout = tmp_path / turn
        said("git", "clone", "--quiet", "--depth", "1", f"file://{origin}", checkout)
        colab.write(checkout / "_build" / "colab", head)
        said("bash", "-e", "-c", commands, cwd=checkout, env={**os.environ, "GITHUB_SHA": head})
    assert said("git", "-C", origin, "ls-tree", "-r", "--name-only", "notebooks").split() == sorted(
        f"{name}.ipynb" for name in colab.chapters()
    )
    assert said("git", "-C", origin, "rev-list", "--count", "notebooks") == "1"
