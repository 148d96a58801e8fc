"""What the book's pages fold, name and leave out, in every chapter."""

import folds
import jupytext
import links
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

CHAPTERS = pytest.mark.parametrize("chapter", links.chapters())
HIDES = {"hide-input", "hide-output"}


def written(chapter):
    """The cells of a chapter's source, with room for outputs."""
    return jupytext.reads(links.pages()[chapter], fmt="md:myst").cells


def tags(cell):
    return set(cell.metadata.get("tags", []))


def code(source, *named):
    return new_code_cell(source, metadata={"tags": list(named)})


@CHAPTERS
def test_each_fold_of_a_chapter_has_a_name_that_is_not_the_default(chapter):
    hidden = [cell for cell in folds.folded(written(chapter)) if HIDES & tags(cell)]
    names = [cell.metadata["mystnb"] for cell in hidden]
    assert all({"code_prompt_show", "code_prompt_hide"} <= set(one) for one in names)
    assert not [one for one in names if "code cell" in "".join(map(str, one.values()))]


@CHAPTERS
def test_a_page_leaves_out_preparations_only(chapter):
    """Every other cell's source is on the page, a check's in the fold of its solution."""
    page = folds.folded(written(chapter))
    text = "\n\n".join(cell.source for cell in page if cell.cell_type == "code")
    for cell in written(chapter):
        if cell.cell_type == "code":
            left_out = {"hide-input", "remove-output"} <= tags(cell) and "import " in cell.source
            assert (cell.source not in text) == left_out
    prose = "\n".join(cell.source for cell in page if cell.cell_type == "markdown")
    for cell in written(chapter):
        if cell.cell_type == "markdown":
            kept = folds.TARGET.sub("", folds.LINK.sub("", cell.source))
            assert set(kept.split()) <= set(prose.split())


@CHAPTERS
def test_each_exercise_is_followed_by_one_fold_with_its_solution_and_its_check(chapter):
    cells = written(chapter)
    solutions = [cell.source for cell in cells if "solution" in tags(cell)]
    checks = [cell.source for cell in cells if "check" in tags(cell)]
    page = folds.folded(cells)
    places = [k for k, cell in enumerate(page) if "solution" in tags(cell)]
    assert len(places) == len(solutions)
    for number, place in enumerate(places):
        source = f"{solutions[number]}\n\n\n# Checked:\n{checks[number]}"
        assert page[place].source == source
        assert f"**{number + 1}.** " in page[place - 1].source
        assert page[place - 1].source.endswith(")=")
    assert not [cell for cell in page if "check" in tags(cell)]
    assert not [cell for cell in page if folds.LINK.search(cell.source)]


def test_hidden_output_must_have_a_name():
    with pytest.raises(ValueError, match="rows"):
        folds.folded([code("rows", "remove-input", "hide-output")])


def test_an_exercise_without_a_solution_is_refused():
    text = new_markdown_cell("**1.** Write it. {ref}`Solution <a-1>`\n\n(a-1)=")
    with pytest.raises(ValueError, match="1 exercises"):
        folds.folded([text])
