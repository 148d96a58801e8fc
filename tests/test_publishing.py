"""Where the project is public: its address, its workflows, and the branch of notebooks."""

import os
import re
import subprocess
import sys

import colab
import links
import pytest
import yaml

from tests.colab_machine import ROOT, output, public

FLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: The words after an install command on a line.
INSTALL = re.compile(r"pip install((?: +[^\s`,#&)]+)+)")
#: The commands of a workflow that are no call of make.
GIT = re.compile(
    r"git (checkout --quiet --orphan|--work-tree=_build/colab add"
    r"|-c user\.\S+ -c user\.\S+ commit|push --quiet --force origin) .+"
)


def test_the_public_address_stands_in_one_place():
    """Without one, nothing but the tests' own stand-in looks like ours."""
    names = ["asddim-lib", *([links.address()] if links.address() else [])]
    for name in names:
        pattern = f"(github\\.com|github\\.io|git@)[^ ]*{name}" if name == names[0] else name
        command = ["git", "-C", ROOT, "grep", "--untracked", "--name-only", "-iE", "-e", pattern]
        done = subprocess.run(command, capture_output=True, text=True)
        assert set(done.stdout.split()) <= {"pyproject.toml"}, done.stdout


def test_no_line_asks_an_index_for_a_project_that_is_not_there():
    """What is told to be installed is in a clone, or a package that is pinned here."""
    pinned = {line.split("==")[0].lower() for line in (ROOT / "requirements.lock").open()}
    known = {*pinned, "mutmut", "torch-fidelity", "torchvision"}
    files = [*ROOT.glob("*.md"), ROOT / "data" / "README.md", ROOT / "pyproject.toml"]
    for folder in ("asddim_lib", "experiments", "book", "training"):
        files += [file for kind in ("*.py", "*.md") for file in (ROOT / folder).rglob(kind)]
    lines = [(file, line) for file in files for line in re.findall(INSTALL, file.read_text())]
    assert len(lines) > 3
    for file, words in lines:
        for word in words.split():
            name = re.split(r"[<>=\[;]", word.strip("'\"`.,)"))[0].lower()
            local = word.startswith((".", "-", "'.", "git")) or not name
            assert local or name in known, f"{file}: {word}"


def test_the_address_is_one_setting():
    assert links.address() == "" or re.fullmatch(
        r"https://github\.com/[\w.-]+/[\w.-]+", links.address()
    )
    with public():
        assert links.repository() == "OWNER/NAME"
        assert links.colab_link("noise").startswith(
            "https://colab.research.google.com/github/OWNER/"
        )
        assert links.page_link("api").startswith(
            "https://owner.github.io/".replace("owner", "OWNER")
        )
    with public(""):
        assert links.colab_link("noise") == links.page_link("api") == ""
        assert links.chapter_link("noise").endswith("(noise.ipynb)")
        assert "](" not in links.chapter_link("api")


@pytest.mark.parametrize("flow", FLOWS, ids=[flow.stem for flow in FLOWS])
def test_workflows_are_valid_and_call_the_makefile_alone(flow):
    schema = ["--builtin-schema", "vendor.github-workflows"]
    output(sys.executable, "-m", "check_jsonschema", *schema, flow)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load(flow.read_text())["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    assert any("run" in step for step in steps)
    for step in steps:
        for line in step.get("run", "").splitlines():
            makes = line.startswith("make ") and set(line.split()[1:]) <= targets
            assert makes or GIT.fullmatch(line), line
        assert "run" in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


@pytest.mark.colab
def test_the_workflow_s_commands_fill_the_branch_with_the_notebooks_alone(
    tmp_path,
    published,
    head,
):
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    steps = flow["jobs"]["notebooks"]["steps"]
    (commands,) = [step["run"] for step in steps if step.get("run", "").startswith("git")]
    origin = tmp_path / "origin"
    output("git", "clone", "--quiet", "--bare", published, origin)
    for turn in ("first", "second"):  # the second time over the first
        checkout = tmp_path / turn
        output("git", "clone", "--quiet", "--depth", "1", f"file://{origin}", checkout)
        colab.write(checkout / "_build" / "colab", head)
        output("bash", "-e", "-c", commands, cwd=checkout, env={**os.environ, "GITHUB_SHA": head})
    listed = output("git", "-C", origin, "ls-tree", "-r", "--name-only", "notebooks").split()
    assert listed == sorted(f"{name}.ipynb" for name in links.chapters())
    assert output("git", "-C", origin, "rev-list", "--count", "notebooks") == "1"
