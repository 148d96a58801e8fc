"""The blind test: SciPy's sign test, no name before the end, and the right count."""

import itertools
import json
import math
from types import SimpleNamespace

import jupytext
import look
import numpy as np
import pytest
import torch
from build import BOOK
from scipy.stats import binom, binomtest

from tests import pages
from tests.pages import PAGE, opening

# one browser serves all tests of this file
pytestmark = [pytest.mark.site, pytest.mark.xdist_group("editor")]
SCRIPT, STYLE = BOOK / "_static" / "blind.js", BOOK / "_static" / "blind.css"
CHAPTER = (BOOK / "chapters" / "blind.md").read_text()
PAIRS = 12


def node(script, given=None):
    """What a script returns for `given`; it finds the functions of the page in `b`."""
    program = f"""const b = require({json.dumps(str(SCRIPT))});
      const given = JSON.parse(require("fs").readFileSync(0));
      console.log(JSON.stringify(({script})(given)));"""
    return pages.node(program, given)


def test_the_sign_test_is_scipy_s():
    asked = [(k, n) for n in range(1, 26) for k in range(n + 1)]
    asked += [(400, 1000), (469, 1000), (500, 1000), (0, 1000), (333, 777)]
    found = node("(all) => all.map(([k, n]) => [b.signTest(k, n), b.verdict(k, n)])", asked)
    for (k, n), (p, verdict) in zip(asked, found, strict=True):
        expected = binomtest(k, n).pvalue
        assert math.isclose(p, expected, rel_tol=1e-9, abs_tol=1e-300), (k, n)
        assert verdict == ("tie" if expected >= 0.05 else "win" if 2 * k > n else "loss")
    assert {verdict for _, verdict in found} == {"win", "tie", "loss"}


def more_pairs(k, n, shown):
    """The definition in the chapter's words, with SciPy's test; None where 1,000 are too few."""
    if 2 * k == n:
        return None
    totals = np.arange(n, 1001)
    alike = (2 * k * totals + n) // (2 * n)
    p = 2 * binom.cdf(np.minimum(alike, totals - alike), totals, 0.5)
    decided = totals[p < 0.05]
    return math.ceil(decided[0] * shown / n) - shown if len(decided) else None


def test_the_number_of_further_pairs_is_the_smallest_that_would_decide():
    asked = [(k, n, PAIRS) for n in range(1, PAIRS + 1) for k in range(n + 1)]
    asked += [(51, 100, 100), (5, 11, 12)]
    found = node("(all) => all.map((one) => b.morePairs(...one))", asked)
    assert found == [more_pairs(*one) for one in asked]
    assert found[-2] is None, "a share so near to ½ needs more than 1,000"
    decided = [binomtest(k, n).pvalue < 0.05 for k, n, _ in asked]
    assert [one == 0 for one in found] == decided, "nothing more is needed once it is decided"


def test_a_coin_lays_each_pair_and_the_seed_alone_says_how():
    found = node("(count) => [...Array(count).keys()].map((seed) => b.sides(seed, 12))", 4000)
    assert found[:50] == node("() => [...Array(50).keys()].map((seed) => b.sides(seed, 12))")
    heads = sum(map(sum, found))
    assert binomtest(heads, 12 * 4000).pvalue > 0.001
    for k in range(12):
        assert binomtest(sum(one[k] for one in found), 4000).pvalue > 0.001
        same = sum(one[k] == one[(k + 1) % 12] for one in found)
        assert binomtest(same, 4000).pvalue > 0.001, "one pair says nothing of the next"
        alike = sum(a[k] == b[k] for a, b in itertools.pairwise(found))
        assert binomtest(alike, 3999).pvalue > 0.001, "nor one seed of the next"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((10, 2), ["10 pairs", "2 pairs", "A win for a", "3.9 %"]),
        ((1, 9), ["A loss for a", "In 2 pairs you saw no difference", "2.1 %"]),
        ((3, 7), ["A tie", "34 %", "22 pairs more would decide"]),
        ((6, 6), ["A tie", "100 %", "no number of pairs"]),
        ((0, 0), ["In 12 pairs you saw no difference", "no pair is decided"]),
        ((1, 0), ["1 pair and", "60 pairs more"]),
    ],
)
def test_the_verdict_in_words(counts, words):
    said = node("(counts) => b.result(['a', 'b'], ...counts, 12)", counts)
    assert [word for word in words if word not in said] == []


@pytest.fixture(scope="module")
def fragment(shared_small):
    """What the chapter's cells show, with flat colours for pictures: no network draws them."""
    cells = jupytext.reads(CHAPTER, fmt="md:myst").cells
    drawn: dict = {}

    def draw(pipe, prompts, seeds, timesteps, guidance_scale):
        assert len(prompts) == len(seeds) == PAIRS
        drawn[tuple(timesteps)] = drawn.get(tuple(timesteps), len(drawn))
        images = torch.full((PAIRS, 3, 64, 64), 40 * drawn[tuple(timesteps)], dtype=torch.uint8)
        images[:, 2] = torch.tensor(seeds, dtype=torch.uint8)[:, None, None]
        return SimpleNamespace(images=images)

    names: dict = {}
    scheduler = shared_small.scheduler
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        exec(cell.source, names)
        names |= {"draw": draw, "load_pipeline": lambda name: shared_small}
    shared_small.scheduler = scheduler
    assert sorted(map(len, drawn)) == [8, 8, 8, 100]
    assert not set(names["chosen"].ravel()) - set(names["unseen"])
    return names["page"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fragment):
    made = tmp_path_factory.mktemp("blind")
    parts = f"<style>{STYLE.read_text()}</style><script>{SCRIPT.read_text()}</script>{fragment}"
    (made / "blind.html").write_text(PAGE % parts)
    return made


@pytest.fixture
def opened(browser, folder):
    """Opens the page from its file, on a phone's screen."""
    with opening(browser, folder / "blind.html", 390, 844) as open_page:
        yield open_page


def named(page):
    """Of which grid each picture is, by the folded list: 0 for the first, 1 for the other."""
    rows = page.locator(".blind-pairs tbody tr").all()
    return {
        image.get_attribute("src"): grid
        for row in rows
        for grid, image in enumerate(row.locator("img").all())
    }


@pytest.mark.parametrize("number", [0, 1, 2])
def test_twelve_choices_by_keyboard_end_in_the_right_count_and_no_name_is_seen_before(
    opened, number
):
    page = opened()
    grids, wanted = named(page), [0] * 7 + [1] * 3 + [None] * 2
    page.evaluate("document.querySelector('.asddim-blind').dataset.order = 7")
    test = page.locator(".blind-test").nth(number)
    names = [test.get_attribute(f"data-{which}") for which in ("one", "other")]
    for _ in range(number + 1):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    lefts = []
    for k, grid in enumerate(wanted):
        seen = page.locator("main").inner_text()
        seen += page.locator("main").aria_snapshot() if k in (0, PAIRS - 1) else ""
        assert f"Pair {k + 1} of {PAIRS}" in page.locator("[role=status]").inner_text()
        assert not [name for name in names if name in seen]
        left, right = (
            grids[image.get_attribute("src")] for image in page.locator(".blind-pictures img").all()
        )
        assert left == 1 - right
        lefts.append(left)
        key = "ArrowDown" if grid is None else "ArrowLeft" if left == grid else "ArrowRight"
        page.keyboard.press(key)
    assert lefts == [1 - side for side in node("() => b.sides(7, 12).map(Number)")]
    assert len(set(lefts)) == 2, "each grid is left sometimes"
    said = page.locator("[role=status]").inner_text()
    assert said.startswith("A tie.")
    assert f"You chose {names[0]} in 7 pairs and {names[1]} in 3 pairs." in said
    assert "34 %" in said
    assert page.evaluate("document.activeElement.getAttribute('role')") == "status"
    assert test.locator("mark").count() == 10
    assert "correct" in test.locator(".blind-record").inner_text()
    assert page.locator(".blind-test:visible").count() == 1
    assert (
        page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    )


def test_a_choice_by_a_click_counts_the_same_and_a_second_test_starts_anew(opened):
    page = opened()
    for name in ("Left", "No difference"):
        page.locator(".blind-menu button").first.click()
        for _ in range(PAIRS):
            page.get_by_role("button", name=name).click()
        said = page.locator("[role=status]").inner_text()
        assert ("no pair is decided" in said) == (name == "No difference")
        page.get_by_role("button", name="Another test").click()
    assert page.locator("mark").count() == 0
    assert page.locator(".blind-test:visible").count() == 0


def test_without_scripts_the_pairs_stand_in_a_list_to_open_with_their_names(opened):
    page = opened(java_script_enabled=False)
    tests = page.locator(".blind-test")
    assert tests.count() == 3
    for test in tests.all():
        test.locator("summary").click()
        text = test.locator(".blind-pairs").inner_text()
        assert test.get_attribute("data-one") in text
        assert test.locator(".blind-pairs img").count() == 2 * PAIRS
        assert test.locator("img").first.is_visible()


def test_in_dark_and_on_a_phone_the_checks_of_the_book_find_nothing(browser, folder, tmp_path):
    assert look.look(browser, folder, tmp_path, looks=("dark", "phone")) == []
