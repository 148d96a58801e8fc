"""Pages as a reader gets them: a small book, made by the tools that make the real one."""

import re
import shutil

import build
import look
import pytest
import yaml
from bs4 import BeautifulSoup

import asddim_lib
from tests import small_book

# one browser, and one small book, serve all of it
pytestmark = [pytest.mark.site, pytest.mark.xdist_group("editor")]
ICONS = re.compile("fontawesome.*[.]js")


def read(file):
    return BeautifulSoup(file.read_text(), "html.parser")


@pytest.fixture(scope="module")
def pages(built):
    """Each page's HTML by its name, as a parser reads it."""
    return {file.stem: read(file) for file in (built / "chapters").glob("*.html")}


@pytest.fixture(scope="module")
def chapter(pages):
    """The body of the chapter with code."""
    return pages["ddim"].find("article")


def test_every_fold_says_what_it_has_and_preparations_are_left_out(chapter):
    titles = [fold.select("p.collapsed") for fold in chapter.select("details.hide")]
    assert [title.get_text() for (title,) in titles] == [
        "Code of this figure",
        "Code of this figure",
        "Code of this table",
        "Code of this text",
        "Code of this measurement",
        "Table: all sizes",
        "Checked",
        "Solution",
        "Solution",
    ]
    assert not chapter.select("[aria-label='Toggle hidden content']")
    text = chapter.get_text()
    assert "import sys" not in text
    assert "a library's notice" not in text
    for shown in ("size = 5", "doubled = 2 * size", "2 is shown with its code", "assert size == 5"):
        assert shown in text


def test_folded_code_is_below_what_it_shows_and_open_code_above(chapter):
    for cell in chapter.select(".cell"):
        if cell.select(".cell_output") and cell.select(".cell_input"):
            first = cell.select(".cell_output, .cell_input")[0]
            assert ("cell_output" in first["class"]) == bool(cell.select("details.above-input"))


def test_each_exercise_is_followed_by_its_solution_and_its_check_in_one_fold(chapter):
    for number, word in ((1, "one"), (2, "two")):
        text = f"{number}. Write {word}."
        (exercise,) = [p for p in chapter.select("p") if p.get_text() == text]
        fold = exercise.find_next("details")
        assert fold.find("summary").get_text().split() == ["Solution"] * 2
        source = fold.get_text()
        assert f"def {word}" in source
        assert source.index("# Checked:") < source.index(f"assert {word}()")
    assert "checked one" in chapter.get_text()


def test_equations_have_their_numbers_and_references_lead_to_them(pages, chapter):
    for number, label in ((1, "eq-ddim"), (2, "eq-variance")):
        (equation,) = chapter.select(f"[id='equation-{label}']")
        assert equation.select_one(".eqno").get_text().startswith(f"({number})")
    (link,) = pages["start"].find("article").select("a[href$='#equation-eq-ddim']")
    assert (link.get_text(), link["href"]) == ("Eq. (1)", "ddim.html#equation-eq-ddim")
    (printed,) = chapter.select("td a[href='#equation-eq-variance']")
    assert printed.get_text() == "Eq. (2)"


def test_a_number_that_is_not_the_paper_s_fails_the_build(built, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "BOOK", built.parents[3] / "book")
    build.check_numbers(built / "chapters")
    page = tmp_path / "ddim.html"
    shutil.copyfile(built / "chapters" / "ddim.html", page)
    page.write_text(page.read_text().replace('"eqno">(2)', '"eqno">(3)'))
    with pytest.raises(ValueError, match="eq-variance"):
        build.check_numbers(tmp_path)


def test_a_source_is_one_click_from_the_first_mention_in_each_section(built, chapter):
    found = [
        (link.find_parent("section")["id"], link["href"].split("#")[1])
        for link in chapter.select("a[href*='_modules/']")
    ]
    step, variance = "ddim_step", "NoiseSchedule.variance"
    assert found == [("the-step", step), ("second", step), ("second", variance)]
    source = read(built / "_modules" / "asddim_lib" / "paper.html")
    for name in (step, variance):
        assert f"def {name.rsplit('.')[-1]}(" in source.find(id=name).get_text()


def test_figures_have_captions_and_say_what_they_show(chapter):
    (figure,) = chapter.select("figure")
    assert figure.find("img")["alt"] == "A line from 0 to 1."
    assert "Fig. 1 The line." in figure.find("figcaption").get_text()
    assert chapter.select_one(".asddim-explorer img")["alt"] == "A dot of size 9."


def test_works_are_cited_by_author_and_year_and_listed(pages, chapter):
    assert re.search(r"Known since Song et al\. \[2021\w?\]", chapter.get_text())
    works = pages["bibliography"].select("[role=listitem]")
    assert any("Jiaming Song" in work.get_text() for work in works)
    assert not pages["bibliography"].select("[role=doc-biblioentry]")


def test_every_page_has_the_version_the_licence_and_the_way_to_the_citation(pages):
    assert pages["start"].find(id="how-to-cite")
    for name, page in pages.items():
        footer = page.select_one("footer.bd-footer-content")
        text = footer.get_text()
        assert f"Version {asddim_lib.__version__}." in text, name
        assert "CC BY 4.0" in text
        cited = {"start": "#how-to-cite"}.get(name, "start.html#how-to-cite")
        targets = [link.get("href") for link in footer.select("a")]
        assert {cited, small_book.ADDRESS} <= set(targets)


def test_no_page_asks_anybody_else_or_for_the_icons_script(built):
    for file in built.rglob("*.html"):
        page = read(file)
        for part in page.select("script[src], link[rel=stylesheet][href], img[src], iframe[src]"):
            address = part.get("src") or part["href"]
            assert not re.match(r"https?:|//", address), (file.name, address)
            assert not ICONS.search(address)


def test_the_pages_that_are_made_have_their_tables(built, pages):
    status = pages["status"].get_text()
    assert re.search(r"The step\s+size = 5\s+\d+ s", status)
    (link,) = [a for a in pages["api"].select("article a") if a.get_text() == "asddim_lib.paper"]
    assert link["href"].startswith("api/asddim_lib.html#")
    assert "ddim_step" in read(built / "chapters" / "api" / "asddim_lib.html").get_text()
    assert "StableDiffusionPipeline" in pages["support"].get_text()
    for page in pages.values():
        assert not re.search(r"^\{\w+\}$", page.get_text(), re.MULTILINE), "a mark is left"


def test_only_a_page_with_code_opens_in_colab(pages):
    notebooks = "https://colab.research.google.com/github/OWNER/NAME/blob/notebooks"
    for name, page in pages.items():
        opens = [link["href"] for link in page.select("a") if "Colab" in link.get_text()]
        assert opens == ([f"{notebooks}/ddim.ipynb"] if name == "ddim" else [])


def test_a_reader_gets_to_each_equation_and_its_source_and_nothing_is_amiss(
    browser, built, tmp_path
):
    """In light, in dark and on a phone: links, requests, console, contrast, focus, sliders."""
    equations = yaml.safe_load(small_book.CONTRACT)
    two = "chapters/[de]d*"  # ddim, which has the boxes, and editor
    assert look.look(browser, built, tmp_path, equations, pages=two) == []
    shots = {file.name for file in tmp_path.iterdir()}
    names = ("ddim", "editor")
    assert shots == {f"chapters-{name}-{how}.png" for name in names for how in look.LOOKS}


def test_the_book_is_printed(built):
    """pdf.py checks figures, their texts, references, links and the equations' numbers itself."""
    folder = built.parents[3]
    said = small_book.run(folder, "pdf.py")
    assert re.search(r"asddim.pdf: \d+ pages, 2 figures and sliders", said)
