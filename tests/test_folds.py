"""What the book's pages fold, name and leave out, in every chapter."""

import copy

import folds
import jupytext
import links
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

CHAPTERS = pytest.mark.parametrize("chapter", links.chapters())
HIDES = {"hide-input", "hide-output"}


def written(chapter):
    """The cells of a chapter's source, with room for outputs."""
    return jupytext.reads(links.pages()[chapter], fmt="md:myst").cells


def tags(cell):
    return set(cell.metadata.get("tags", []))


def code(source, *named, **options):
    metadata = {"tags": list(named), **({"mystnb": options} if options else {})}
    return new_code_cell(source, metadata=metadata)


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


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (code("def f(): ...", "hide-input", "solution"), "Solution"),
        (code("assert f()", "hide-input", "check"), "Checked"),
        (code("import a\nb = a.c()", "hide-input", "remove-output"), "Preparation"),
        (code("b = a.c()", "hide-input", "remove-output"), "Code of this measurement"),
        (code("b = a.c()", "hide-input"), "Code of this measurement"),
        (code("%matplotlib inline\nplt.plot(x)\nplt.show()", "hide-input"), "Code of this figure"),
        (code("explore(draw, title='x')", "hide-input"), "Code of this figure"),
        (code("pd.DataFrame(rows).style", "hide-input"), "Code of this table"),
        (code("sizes = a\nsizes", "hide-input"), "Code of this table"),
        (code("display(cost)\ndisplay(Markdown('x'))", "hide-input"), "Code of this table"),
        (code("display(Markdown('| --- |'))", "hide-input"), "Code of this table"),
        (code("display(Markdown('|:--|--:|'))", "hide-input"), "Code of this table"),
        (code("display(Markdown('5 of 6'))\nassert x", "hide-input"), "Code of this text"),
        (code("a = 1\nassert a == 1", "hide-input"), "Checked"),
        (code("for a in b:\n    assert a == 1", "hide-input"), "Checked"),
        (code("np.testing.assert_allclose(a, b)", "hide-input"), "Checked"),
    ],
)
def test_what_a_hidden_cell_is_for(cell, name):
    assert folds.purpose(cell) == name


def test_only_a_cell_of_nothing_but_assertions_is_folded_without_a_tag():
    both = [code("assert x"), code("x = 1\nassert x"), new_markdown_cell("text")]
    first, *others = folds.folded(copy.deepcopy(both))
    assert first.metadata == {
        "tags": ["hide-input"],
        "mystnb": {"code_prompt_show": "Checked", "code_prompt_hide": "Checked"},
    }
    assert others == both[1:]


def test_a_chapter_s_own_name_stays_and_hidden_output_must_have_one():
    named = code("rows", "remove-input", "hide-output", code_prompt_show="Table: all")
    (cell,) = folds.folded([named])
    prompts = {"code_prompt_show": "Table: all", "code_prompt_hide": "Table: all"}
    assert cell.metadata["mystnb"] == prompts
    with pytest.raises(ValueError, match="name the output that is hidden, by code_prompt_show"):
        folds.folded([code("rows", "remove-input", "hide-output")])


def test_what_a_check_prints_is_shown_with_its_solution():
    check = code("assert f() == 1", "hide-input", "check")
    check.outputs = [new_output("stream", text="fine")]
    (cell,) = folds.folded([code("def f(): return 1", "hide-input", "solution"), check])
    assert [output.text for output in cell.outputs] == ["fine"]


def test_an_exercise_without_a_solution_is_refused():
    text = new_markdown_cell("**1.** Write it. {ref}`Solution <a-1>`\n\n(a-1)=")
    with pytest.raises(ValueError, match="1 exercises have 0 solutions"):
        folds.folded([text])
