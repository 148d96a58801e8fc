"""What a newcomer meets first: README, landing page, recipes, citation, changelog and footer."""

import base64
import csv
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jupytext
import links
import nbformat
import picture
import pytest
import typer
import yaml
from PIL import Image

import asddim_lib
from asddim_lib.cli import app
from asddim_lib.grids.table import METHODS
from experiments.cli import app as experiments_app
from experiments.setting import TRIED
from tests.colab_machine import ADDRESS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
START, USE = ((ROOT / "book" / "chapters" / f"{name}.md").read_text() for name in ("start", "use"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
COMMANDS = typer.main.get_command(app).commands
EXPERIMENTS = typer.main.get_command(experiments_app).commands


def fences(text, language):
    """The blocks of code in a Markdown text that are not executed with it."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readme_fits_one_screen():
    assert len(README.splitlines()) <= 45
    (shown,) = re.findall(r"!\[[^\]]{40,}\]\(([^)]+)\)", README)
    assert ROOT / shown == picture.FILE
    assert picture.FILE.stat().st_size < 300_000


def test_what_the_readme_names_is_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"book", "test"} <= set(re.findall(r"make ([a-z]+)", README)) <= targets
    commands = set(re.findall(r"`?asddim ([a-z]+)", README))
    assert commands
    assert commands <= set(COMMANDS)
    for file in re.findall(r"`([\w/]+\.(?:md|py|cff))`", README):
        assert (ROOT / file).is_file(), file
    assert README.index("pip install") < README.index("![")


def test_the_readme_counts_the_pipelines_that_take_a_plan():
    with (ROOT / "data" / "support.csv").open(newline="") as file:
        plans = [row["guidance plan"] == "✓" for row in csv.DictReader(file)]
    numbers = re.search(r"on (\d+) of the (\d+)\s+pipelines tried", README)
    assert numbers
    assert [int(one) for one in numbers.groups()] == [sum(plans), len(plans)]


def test_the_makefile_gives_commands_the_options_that_they_have():
    """Without running them, as a GPU's weights would be needed."""
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    values = dict(re.findall(r"^([A-Z_]+) :?\??= *([^#\n]*)", lines, re.MULTILINE))
    while (longer := re.sub(r"\$\((\w+)\)", lambda name: values.get(name[1], "x"), lines)) != lines:
        lines = longer
    lines = re.sub(r"\$\$\w+", "x", lines)
    call = r"bin/(asddim|python -m experiments) ([a-z]+) (.*?)(?:&&|\|\||;|$)"
    found = re.findall(call, lines, re.MULTILINE)
    assert {"clock", "compare", "evaluate"} <= {command for _, command, _ in found}
    for program, command, words in found:
        commands = COMMANDS if program == "asddim" else EXPERIMENTS
        known = {name for option in commands[command].params for name in option.opts}
        given = [word for word in shlex.split(words) if word.startswith("--")]
        assert set(given) <= known, command
        for grids in re.findall(r"--grids ([\w,-]+)", words):
            names = {name for name in grids.split(",") if name != "x"}
            assert names <= {*METHODS, *TRIED, "x"}, command


def test_the_commands_in_the_pages_are_understood():
    lines = [
        line for text in (USE, README) for line in re.findall(r"(?<=asddim )[a-z]+ [^`#\n]+", text)
    ]
    lines = [line for line in lines if line.split()[0] in COMMANDS]
    assert len(lines) > 2
    for line in lines:
        name, *words = re.sub(r'"[^"]*"', "words", line).split()
        COMMANDS[name].make_context(name, words, resilient_parsing=True)


def test_the_citation_is_valid_and_of_this_version():
    schema = ["--builtin-schema", "vendor.citation-file-format"]
    command = [sys.executable, "-m", "check_jsonschema", *schema, ROOT / "CITATION.cff"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (entry,) = fences(START, "bibtex")
    shown = dict(re.findall(r"(\w+) += \{+([^}]+)\}", entry))
    assert shown["title"] == CITATION["title"]
    assert shown["author"] == CITATION["authors"][0]["name"]
    assert shown["license"] == CITATION["license"]
    assert shown["year"].isdigit()
    version = asddim_lib.__version__.partition(".dev")[0]
    assert shown["version"] == CITATION["version"] == version
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == version


@pytest.mark.parametrize("address", [ADDRESS, ""])
def test_the_footer_links_to_the_repository_if_it_is_public(address, monkeypatch):
    """The rest of the footer is in test_small_book."""
    monkeypatch.setattr(links, "address", lambda: address)
    footer = links.footer((ROOT / "book" / "_config.yml").read_text())
    assert (f'href="{ADDRESS}"' in footer) == bool(address)
    assert "{repository}" not in footer


def test_every_part_of_the_sidebar_has_a_name():
    parts = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())["parts"]
    captions = [part["caption"] for part in parts]
    assert captions == ["Learn", "Play", "Measure", "Use", "Appendices"]


def test_the_landing_page_types_no_figure():
    """Figures of our records are computed; its prose has whole numbers only, and few."""
    cells = jupytext.reads(START, fmt="md:myst").cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    prose = prose.split("## How to cite")[0].replace("Diffusion 3.5", "")
    assert not re.findall(r"\d[.,]\d|\d ?%", prose)


def notebook(name):
    """An executed notebook whose figure of this name is a gradient of many colours."""
    figure = Image.linear_gradient("L").convert("RGB")
    file = io.BytesIO()
    figure.save(file, format="PNG")
    data = {"image/png": base64.b64encode(file.getvalue()).decode()}
    cell = nbformat.v4.new_code_cell(metadata={"mystnb": {"figure": {"name": name}}})
    cell.outputs = [nbformat.v4.new_output("display_data", data)]
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("text"), cell])


def test_the_picture_of_the_readme_is_the_landing_page_s_figure(tmp_path):
    nbformat.write(notebook(picture.FIGURE), tmp_path / "right.ipynb")
    picture.write(tmp_path / "right.ipynb", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as made:
        assert made.size == (256, 256)
        assert made.mode == "P"
    nbformat.write(notebook("other"), tmp_path / "wrong.ipynb")
    with pytest.raises(ValueError, match="no figure same-noise"):
        picture.write(tmp_path / "wrong.ipynb", tmp_path / "none.png")
    assert f"name: {picture.FIGURE}}}" in START
