"""The notebooks for Colab: plain Markdown and Python, with nothing left of MyST."""

import re

import citations
import colab
import jupytext
import links
import nbformat
import plain
import pytest
import yaml
from leftovers import leftovers

from tests.colab_machine import ADDRESS, public

ROOT = links.ROOT
COMMIT = "0" * 40
CHAPTERS = pytest.mark.parametrize("chapter", links.chapters())
HEADER = """---
jupytext: {text_representation: {format_name: myst}}
kernelspec: {name: python3, display_name: Python 3}
---

# Crafted

"""


@pytest.fixture(params=[ADDRESS, ""], ids=["public", "clone"])
def address(request):
    """The public address, and none."""
    with public(request.param):
        yield request.param


def made(chapter):
    """The notebook of a chapter."""
    return colab.notebook(chapter, links.pages()[chapter], COMMIT)


def crafted(text):
    """The notebook of a page with that text under its title."""
    return colab.notebook("ddim", f"{HEADER}{text}\n", COMMIT)


@CHAPTERS
def test_nothing_of_myst_is_left(chapter, address):
    notebook = made(chapter)
    nbformat.validate(notebook)
    text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert not [raw for one in text for raw in leftovers(one)]
    assert not re.search(
        r"\{\{?(eq|doc|ref|cite|term|py)\b", "".join(cell.source for cell in notebook.cells)
    )
    badge = links.colab_link(chapter)
    assert ("colab.research.google.com" in text[0]) == bool(badge)
    assert f"]({badge})" in text[0].split("\n\n")[1] or not badge, "a badge under the title"
    assert all(
        set(cell.metadata) <= {"tags", "cellView"} and not cell.get("outputs")
        for cell in notebook.cells
    )


@CHAPTERS
def test_code_is_the_chapter_s_own_but_for_links_and_sliders(chapter):
    written = [
        cell
        for cell in jupytext.reads(links.pages()[chapter], fmt="md:myst").cells
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
        if not plain.CODE_ROLE.search(before.source):
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
    assert {file.stem for file in tmp_path.iterdir()} == set(links.chapters())
    assert "api" not in links.chapters()


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("$$\na\n$$ (eq-ddim)", "$$\na \\tag{3}\n$$"),
        ("$$a$$ (eq-start)", "$$a \\tag{13}\n$$"),
        ("$$\na\n$$", "$$\na\n$$"),
        ("by {eq}`eq-ddim`.", "by Eq. (3)."),
        ("by {eq}`eq-fid`.", "by [Eq. (14)](<judging>)."),
        ("see {doc}`noise`", "see [Noise, forward and back](<noise>)"),
        ("see {doc}`the\nfirst <noise>`", "see [the first](<noise>)"),
        ("see {doc}`api`", "see [Reference](<api>)"),
        ("{py:func}`~asddim_lib.paper.ddim_step`", "`ddim_step`"),
        (
            "{py:class}`asddim_lib.paper.NoiseSchedule`",
            "`asddim_lib.paper.NoiseSchedule`",
        ),
        ("{ref}`Solution <ddim-1>`", "*Solution below.*"),
        ("{ref}`Solution <noise-1>`", "[Solution](<noise>)"),
        ("{term}`adjoint`, {term}`paths <path>`", "adjoint, paths"),
        ("(here)=\n## A heading", "## A heading"),
        (
            ":::{admonition} Mind *this*\ntwo\n\nlines\n:::",
            "> **Mind *this***\n>\n> two\n>\n> lines",
        ),
        (
            "::::{grid} 1 1 2 2\n:gutter: 3\n\n:::{grid-item-card} One\nsee {eq}`eq-ddim`\n:::\n"
            "\n:::{grid-item-card} Two\n:link: noise\n- it\n:::\n::::",
            "> **One**\n>\n> see Eq. (3)\n\n> **Two**\n>\n> - it",
        ),
        ("$a\n+ b$", "$a + b$"),
        ("`{eq}` and ``{doc}`x` ``", "`{eq}` and ``{doc}`x` ``"),
        ("```\n{eq}`eq-ddim`\n```", "```\n{eq}`eq-ddim`\n```"),
    ],
)
def test_what_becomes_of_myst(myst, markdown, address):
    markdown = re.sub(r"<(judging|noise)>", lambda name: links.notebook_link(name[1]), markdown)
    api = f"[Reference]({links.page_link('api')})" if address else "Reference"
    markdown = markdown.replace("[Reference](<api>)", api)
    assert plain.markdown(myst, "ddim") == markdown
    assert crafted(myst).cells[0].source.endswith(markdown)


def test_citations_name_authors_and_years(tmp_path, monkeypatch):
    (tmp_path / "references.bib").write_text(
        r"""@article{one, author = {Bi{\'n}kowski, Miko{\l}aj}, title = {A}, year = {2018},
 eprint = {1801.01401}}
@book{two, author = {de Boor, Carl and Swartz, Blair}, title = {B}, year = {1973},
 doi = {10.1/a(b)c}}
@misc{many, author = {Song, Y. and Sohl-Dickstein, J. and Kingma, D.}, title = {C}, year = {2021}}
"""
    )
    monkeypatch.setattr(citations, "BOOK", tmp_path)
    citations.bibliography.cache_clear()
    try:
        shown = plain.markdown("{cite:p}`one,two` {cite:t}`many` {cite:p}`none`", "ddim")
    finally:
        citations.bibliography.cache_clear()
    assert shown == (
        "([Bińkowski, 2018](https://arxiv.org/abs/1801.01401); [de Boor and Swartz, 1973]"
        "(https://doi.org/10.1/a%28b%29c)) Song et al. (2021) (none)"
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
        "```{note}\na\n```",
        "% a comment",
        "$$\na\n$$ (eq-none)",
        "a[^1]\n\n[^1]: b",
        "[noise](noise.md)",
        "![a](a.png)",
        "[nowhere](nowhere.ipynb)",
        "{{ version }}",
    ],
)
def test_what_has_no_translation_is_refused(raw):
    with pytest.raises(ValueError, match=r"^book/chapters/ddim\.md:(8|9|10) has "):
        crafted(raw)


def test_code_that_prints_roles_prints_links():
    cell = "```{code-cell} ipython3\nname, label = 'asddim_lib.paper.ddim_step', 'eq-fid'\n"
    cell += 'text = f"{{py:obj}}`~{name}` {{eq}}`{label}` {{doc}}`noise`" + "{eq}`eq-ddim`"\n```'
    names = {}
    exec(crafted(cell).cells[-1].source, names)
    judging, noise = links.notebook_link("judging"), links.notebook_link("noise")
    text = f"[Eq. (14)]({judging}) [Noise, forward and back]({noise})"
    assert names["text"] == f"`{names['name']}` {text}Eq. (3)"
    with pytest.raises(ValueError, match=r"ddim\.md:9 has \{doc\}`nowhere`"):
        crafted('```{code-cell} ipython3\nprint("{doc}`nowhere`")\n```')
