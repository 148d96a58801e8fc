"""Guess before you look: a box's right option is what its chapter computes."""

import re

import jupytext
import links
import pytest

from tests.pages import opening
from tests.small_book import BOX, BOXES

# one browser serves all tests of this file
pytestmark = [pytest.mark.site, pytest.mark.xdist_group("editor")]
RIGHT = {
    name: int(re.search(r"^\*\*(\d)\.\*\*", box, re.MULTILINE)[1]) for name, box in BOXES.items()
}


def options(box):
    return re.findall(r"^(\d)\. ", box, re.MULTILINE)


@pytest.mark.parametrize("chapter", BOXES)
def test_the_option_that_a_box_marks_is_the_one_that_its_chapter_computes(chapter):
    """A cell below the box asserts the number of the option; that it runs is the build's matter."""
    assert len(BOX.findall(links.pages()[chapter])) == 1
    numbers = options(BOXES[chapter])
    assert numbers == [str(k + 1) for k in range(len(numbers))]
    assert 3 <= len(numbers) <= 4
    below = links.pages()[chapter].split(BOXES[chapter])[1]
    cells = [c for c in jupytext.reads(below, fmt="md:myst").cells if c.cell_type == "code"]
    asserting = [
        cell.source for cell in cells if re.search(r"^guess = ", cell.source, re.MULTILINE)
    ]
    assert len(asserting) == 1
    said = re.findall(
        r"^assert (?:\[k .*|guess\.index.*) == \[?(\d)\]?$", asserting[0], re.MULTILINE
    )
    assert said == [str(RIGHT[chapter])]


def test_the_boxes_are_where_they_were_asked_for():
    wanted = {"paper", "nearer", "judging", "flow", "clock"}
    assert wanted <= set(BOXES)
    assert len(set(RIGHT.values())) > 1, "the right option is not always the same"


@pytest.fixture
def opened(browser, built):
    """Opens the small book's page that has all boxes from its file, on a phone's screen."""
    with opening(browser, built / "chapters" / "ddim.html", 390, 844) as open_page:
        yield open_page


def test_a_guess_says_whether_it_is_right_and_opens_the_answer(opened):
    page = opened()
    boxes = page.locator(".guess").all()
    assert len(boxes) == len(BOXES)
    for k, (box, right) in enumerate(zip(boxes, RIGHT.values(), strict=True)):
        assert not box.locator("details p").first.is_visible()
        wrong = right % len(options(list(BOXES.values())[k])) + 1
        picked = right if k % 2 else wrong
        box.get_by_role("button").nth(picked - 1).click()
        said = box.get_by_role("status").inner_text()
        assert said == ("Right." if k % 2 else f"No: it is option {right}.")
        assert box.locator("details p").first.is_visible()
        shown = [li.get_attribute("class") or "" for li in box.locator("li").all()]
        assert [n for n, name in enumerate(shown, 1) if "guess-right" in name] == [right]
        box.get_by_role("button").nth(right % len(shown)).dispatch_event("click")
        assert box.get_by_role("status").inner_text() == said, "a second guess changes nothing"


def test_the_keyboard_alone_guesses(opened):
    page = opened()
    first = page.locator(".guess").first
    first.get_by_role("button").first.focus()
    for _ in range(next(iter(RIGHT.values())) - 1):
        page.keyboard.press("Tab")
    page.keyboard.press(" ")
    assert first.get_by_role("status").inner_text() == "Right."


def test_whoever_opens_the_answer_sees_which_option_is_right(opened):
    page = opened()
    page.locator(".guess summary").first.click()
    page.wait_for_selector(".guess-done")
    assert page.locator(".guess").first.locator(".guess-right").count() == 1
    assert page.locator(".guess-done").count() == 1


def test_without_scripts_all_is_readable(opened):
    page = opened(java_script_enabled=False)
    for box in page.locator(".guess").all():
        assert box.locator("li").first.is_visible()
        box.locator("summary").click()
        assert box.locator("details p").first.is_visible()
