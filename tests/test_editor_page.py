"""The grid editor in a browser, opened as a file: mouse, finger, keyboard, phone and dark."""

import itertools
import json
import re

import editor
import pytest
import torch

from asddim_lib.levels import noise_schedule
from asddim_lib.metrics.distance import relative_distance
from experiments.mixtures import GaussianMixture, follow
from tests.pages import opening
from tests.test_editor import guided_path

# one browser serves all tests of this file
pytestmark = [pytest.mark.site, pytest.mark.xdist_group("editor")]
TICK = "#grid-editor [role=slider]"
SAID = "document.querySelector('[aria-live]').innerText"
STRIPES, WRONG = "[data-part=factors] path", ".ge-unstable"


@pytest.fixture
def opened(browser, built):
    """Opens the small book's page with the editor from its file, and waits for the editor."""
    with opening(browser, built / "chapters" / "editor.html", 1280, 1000) as open_page:

        def open_editor(**options):
            page = open_page(**options)
            page.wait_for_selector(TICK)
            return page

        yield open_editor


def grid(page):
    """Where the ticks are, as a screen reader is told."""
    return [int(tick.get_attribute("aria-valuenow")) for tick in page.locator(TICK).all()]


def moved(page, act):
    """The grid after an act of the reader, once it has been drawn."""
    before = grid(page)
    act()
    page.wait_for_function(
        "([selector, before]) => before !== JSON.stringify([...document.querySelectorAll(selector)]"
        ".map((tick) => Number(tick.ariaValueNow)))",
        arg=[TICK, json.dumps(before, separators=(",", ":"))],
    )
    return grid(page)


def shown(page):
    """The error at the end, as the page shows it."""
    return page.locator("[data-part=end]").inner_text()


def guide(page, scale):
    """Opens the part on guidance, and sets the scale."""
    if not page.locator("#grid-editor details[open]").count():
        page.locator("#grid-editor summary").click()
    page.get_by_label("Scale w").fill(str(scale))
    page.wait_for_function(f"/w = {scale}/.test(document.querySelector('summary').innerText)")


def picture(page):
    """All that is drawn, and said in numbers, once the page has said what it has drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    page.wait_for_function(f"{SAID}.includes(document.querySelector('[data-part=end]').innerText)")
    parts = ("plane", "bars", "ticks", "scores", "end", "said")
    return [page.locator(f"[data-part={part}]").inner_html() for part in parts]


def middle(page, k):
    """The middle of tick k, in pixels of the window."""
    page.locator(TICK).nth(k).scroll_into_view_if_needed()
    box = page.locator(TICK).nth(k).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def library_error(name, timesteps):
    """The library's error of a grid on the paths that are drawn."""
    data = json.loads((editor.EDITOR / "data.json").read_text())
    parts = data["mixtures"][name]
    mixture = GaussianMixture(*([p[key] for p in parts] for key in ("mean", "std", "weight")))
    schedule = noise_schedule(data["schedule"])
    bars = schedule.alphas_cumprod
    points = torch.tensor(data["points"][: data["drawn"]], dtype=torch.float64)
    ends = follow(lambda x, t: mixture.eps(x, float(bars[t])), points, schedule, timesteps).end
    goal = mixture.solve(points, float(bars[-1]), 1.0)
    return float(relative_distance(ends, goal).mean())


def test_the_buttons_lay_grids_and_the_page_shows_the_library_s_error(opened):
    page = opened()
    assert grid(page) == [999, 832, 666, 499, 332, 166]
    assert shown(page) == f"{library_error('Three clusters', grid(page)):.3f}"
    page.select_option("[data-part=data]", label="One Gaussian")
    for name in ("leading", "noise", "karras", "dual-weighted"):
        laid = moved(page, page.get_by_role("button", name=name, exact=True).click)
        assert page.locator("button[aria-pressed=true]").inner_text() == name
        assert shown(page) == f"{library_error('One Gaussian', laid):.3f}"
    moved(page, page.get_by_role("button", name="combined").click)
    laid = moved(page, lambda: page.get_by_label("p of Eq. 5").fill("1.5"))
    assert laid != moved(page, lambda: page.get_by_label("λ of Eq. 9").fill("4"))
    assert len(moved(page, lambda: page.get_by_role("slider", name="Steps").fill("11"))) == 11


def test_a_drag_moves_a_tick_and_never_past_its_neighbours(opened):
    page = opened()
    before, first = grid(page), shown(page)
    x, y = middle(page, 3)
    page.mouse.move(x, y)
    page.mouse.down()
    after = moved(page, lambda: page.mouse.move(x - 200, y, steps=4))
    assert after == [*before[:3], before[4] + 1, *before[4:]]
    assert shown(page) == f"{library_error('Three clusters', after):.3f}" != first
    back = moved(page, lambda: page.mouse.move(x + 30, y, steps=4))
    page.mouse.up()
    assert before[3] < back[3] < before[2]
    page.mouse.move(x - 100, y)  # the button is up: nothing follows
    page.wait_for_timeout(100)
    assert grid(page) == back


def test_a_finger_drags_a_tick(opened):
    page = opened(has_touch=True, is_mobile=True)
    x, y = middle(page, 5)
    touch = page.context.new_cdp_session(page)

    def swipe():
        for kind, at in (("Start", 0), ("Move", -15), ("Move", -40), ("End", None)):
            points = [] if at is None else [{"x": x + at, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    assert moved(page, swipe)[5] < 166 - 30


def test_the_keyboard_reaches_and_moves_every_tick_and_says_what_happened(opened):
    page = opened()
    page.get_by_role("button", name="dual-weighted").focus()
    for k in range(6):
        page.keyboard.press("Tab")
        tick = page.locator(":focus")
        assert tick.get_attribute("aria-label") == f"Step {k + 1} of 6"
        assert tick.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    for key, expected in (
        ("ArrowLeft", 165),
        ("Shift+ArrowRight", 175),
        ("PageDown", 125),
        ("Home", 0),
        ("End", 331),
    ):
        assert moved(page, lambda key=key: page.keyboard.press(key))[5] == expected
        assert tick.get_attribute("aria-valuetext") == f"timestep {expected}"
    assert grid(page) == [999, 832, 666, 499, 332, 331]
    said = f"ends {library_error('Three clusters', grid(page)):.3f} from the exact samples"
    page.wait_for_function(
        "said => document.querySelector('[aria-live]').innerText.includes(said)", arg=said
    )


def test_the_bars_are_not_rescaled_while_ticks_move(opened):
    page = opened()

    def top():
        return float(page.locator("[data-part=bars] text").first.text_content().split()[1])

    page.get_by_role("button", name="trailing").click()
    last = page.locator(TICK).last
    tops = [top()]
    for key in ("End", "Home", *["PageUp"] * 4):
        moved(page, lambda key=key: last.press(key))
        tops.append(top())
    assert tops == sorted(tops)
    assert tops[0] < tops[-1]
    moved(page, page.get_by_role("button", name="trailing").click)
    assert top() == tops[0]


def test_the_best_is_kept_and_a_search_is_not_the_reader_s(opened):
    page = opened()
    back, verdict = (
        page.get_by_role("button", name="Back to my best"),
        page.locator("[data-part=verdict]"),
    )
    assert back.is_disabled()
    moved(page, page.get_by_role("button", name="Search from here").click)
    assert back.is_disabled()
    assert "Searched on the 16 paths" in verdict.inner_text()
    moved(page, page.get_by_role("button", name="trailing").click)
    good = moved(page, lambda: page.locator(TICK).nth(5).press("PageDown"))
    moved(page, lambda: page.locator(TICK).nth(5).press("Home"))
    assert "more error than dual-weighted" in verdict.inner_text()
    assert moved(page, back.click) == good
    assert "your best" in page.locator("[data-part=scores]").inner_text()


def test_guidance_is_folded_away_and_at_scale_one_nothing_is_changed(opened):
    page = opened()
    page.get_by_role("button", name="karras").click()
    before = picture(page)
    assert page.get_by_label("Scale w").is_hidden()
    assert page.locator("[data-part=law]").is_hidden()
    guide(page, 7.5)
    page.get_by_label("Cap the scale").check()
    page.wait_for_function(f"{SAID}.includes('Unstable: 0 of 6 steps.')")
    assert all(new != old for old, new in zip(before, picture(page), strict=True))
    page.get_by_label("Scale w").fill("1")  # the cap, which is still on, has nothing to lower
    page.locator("#grid-editor summary").click()
    page.wait_for_function("document.querySelector('[data-part=law]').hidden")
    assert picture(page) == before


def test_the_keyboard_sets_the_scale_and_the_cap_and_the_page_says_which_steps_are_unstable(opened):
    page = opened()
    page.get_by_role("slider", name="Steps").focus()
    for key in ("Tab", "Enter", "Tab", *["ArrowRight"] * 13):
        page.keyboard.press(key)
    page.wait_for_function(f"{SAID}.includes('Unstable: 1 of 6 steps (number 6).')")
    even = grid(page)
    free, capped = (guided_path("Three clusters", even, 7.5, cap)[1] for cap in (None, 2.0))
    assert shown(page) == f"{free:.3f}"
    assert page.locator(f"{STRIPES}, text{WRONG}").count() == 2
    assert page.locator(TICK).nth(5).get_attribute("aria-valuetext").startswith("timestep 166, fa")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_function(f"{SAID}.includes('Unstable: 0 of 6 steps.')")
    assert shown(page) == f"{capped:.3f}"
    gain = page.locator("[data-part=gain]").inner_text()
    assert re.findall(r"\d\.\d{3}", gain) == [f"{free:.3f}", f"{capped:.3f}"]
    assert not page.locator(f"{STRIPES}, text{WRONG}").count()
    assert grid(page) == even


def test_the_reader_s_own_grid_stays_when_the_scale_changes(opened):
    page = opened()
    own = moved(page, lambda: page.locator(TICK).nth(5).press("PageDown"))
    before = shown(page)
    guide(page, 3)
    assert grid(page) == own
    assert shown(page) != before
    measured = moved(page, page.get_by_role("button", name="dual-weighted").click)
    guide(page, 7.5)
    assert grid(page) != measured, "the measured grid is the guided data's"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_are_seen_against_the_ground(opened, scheme):
    """Three to one, as WCAG asks of what is drawn."""
    page = opened(color_scheme=scheme)
    page.wait_for_selector("[data-part=bars] rect[stroke]")

    def colour(selector, name):
        text = page.locator(selector).first.evaluate("(e, name) => getComputedStyle(e)[name]", name)
        return [int(part) / 255 for part in re.findall(r"\d+", text)[:3]]

    def light(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = light(colour("body", "backgroundColor"))
    assert (ground < 0.1) == (scheme == "dark")
    lines = ["[data-part=bars] rect[stroke]", "[data-part=bars] line", STRIPES]
    marks = [(selector, "stroke", 3) for selector in lines]
    marks += [("[data-part=plane] path[stroke-width='1.5']", "stroke", 3)]
    marks += [("[data-part=factors] rect:nth-of-type(3)", "fill", 3)]
    marks += [(f"[data-part=factors] text{unstable}", "fill", 4.5) for unstable in ("", WRONG)]
    guide(page, 7.5)
    for selector, name, least in marks:
        levels = sorted([ground, light(colour(selector, name))])
        assert (levels[1] + 0.05) / (levels[0] + 0.05) > least, selector


@pytest.mark.parametrize(("width", "steps"), [(390, 0), (360, 6), (360, 10)])
def test_on_a_phone_the_figure_fits_and_is_read(opened, width, steps):
    page = opened(has_touch=True, is_mobile=True)
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_function(f"document.querySelector('[data-part=bars]').clientWidth < {width}")
    if steps:
        page.get_by_role("slider", name="Steps").fill(str(steps))
        guide(page, 12)
        page.get_by_label("Cap the scale").check()
        page.wait_for_function(f"{SAID}.includes('Unstable: 0 of {steps} steps.')")
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts = page.locator("[data-part=factors] text").all()
    assert len(texts) == {0: 0, 6: 12, 10: 10}[steps], "numbers where there is room"
    boxes = sorted((t.bounding_box() for t in texts), key=lambda box: (box["y"], box["x"]))
    for one, other in itertools.pairwise(boxes):
        assert one["y"] < other["y"] or one["x"] + one["width"] < other["x"], "numbers overlap"
    sizes = page.locator("svg text").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 12
    boxes = [t.bounding_box() for t in page.locator(TICK).all()]
    assert all(box["width"] >= 22 and box["height"] >= 36 for box in boxes)
    assert all(-11 <= box["x"] <= width for box in boxes)
