"""Where the project is public: its address, its workflows, and the branch of notebooks."""

import os
import re
import sys

import colab
import links
import pytest
import yaml

from tests.colab_machine import ADDRESS, ROOT, output

FLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
#: The commands of a workflow that are no call of make.
GIT = re.compile(
    r"git (checkout --quiet --orphan|--work-tree=_build/colab add"
    r"|-c user\.\S+ -c user\.\S+ commit|push --quiet --force origin) .+"
)


def test_the_public_address_stands_in_one_place(published):
    options = ["--ignore-case", "--fixed-strings", "--name-only"]
    name = ADDRESS.removeprefix("https://github.com/")
    files = output("git", "-C", published, "grep", *options, "-e", name, "HEAD")
    assert files == "HEAD:pyproject.toml"


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
