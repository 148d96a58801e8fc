"""The models in the page draw the library's pictures, in a browser without a network."""

import json
import re
import time

import browser as browser_tool
import live
import live_models
import live_record
import look
import numpy as np
import pytest

from asddim_lib import ASDDIMScheduler, GuidancePlan, Recipe, load_pipeline
from asddim_lib.pipeline.run import Run

# one browser at a time
pytestmark = [pytest.mark.site, pytest.mark.xdist_group("look")]
PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Live</title>'
    '<link rel="icon" href="data:,">'
    '<meta name="viewport" content="width=device-width"></head><body><main><h1>Live</h1>{body}'
    "</main></body></html>"
)
#: The pixels of one of the three pictures.
PIXELS = """(k) => {
  const canvas = document.querySelectorAll(".asddim-live .columns > div > canvas")[k];
  return [...canvas.getContext("2d").getImageData(0, 0, 64, 64).data];
}"""
#: Shows the last frames, which a drawing under way may leave again at once.
LAST = """(k) => {
  const slider = document.querySelector(".asddim-live .step input");
  slider.value = slider.max;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
"""
DRAWN = ".columns[aria-busy=false]"
#: Counts the rows that the networks are given, as the worker is asked for them.
COUNT = """
  window.rows = 0;
  const post = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message) {
    window.rows += message.values?.inputs?.sample?.[1][0] ?? 0;
    post.call(this, message);
  };
"""
#: What the tests draw, which is quicker: two starting noises, and a goal of 20 steps.
SEEDS, EACH = [1, 2], 5
#: What the page says once a tick was moved, read before anything else can happen.
MOVED = """(tick) => {
  tick.dispatchEvent(new KeyboardEvent("keydown", { key: "PageUp", bubbles: true }));
  return document.querySelector(".state").textContent;
}"""


def write(folder):
    """Writes the page, in a bare frame, and what it fetches."""
    body = re.search(r"```\{raw\} html\n(.*?)\n```", live.page(), re.DOTALL)[1]
    (folder / "chapters").mkdir()
    (folder / "chapters" / "live.html").write_text(PAGE.format(body=body))
    live.install(folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def findings():
    return []


@pytest.fixture(scope="module")
def page(browser, site, findings):
    """The page with the model loaded and the first choice drawn; all tests share it."""
    if live.missing():
        pytest.skip(live.missing())
    with (
        browser_tool.served(site) as base,
        browser_tool.watched(browser, base, findings) as context,
    ):
        context.set_default_timeout(240_000)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.add_init_script(COUNT)
        known = json.loads((site / "live" / "manifest.json").read_text())
        known["seeds"] = SEEDS
        for model in known["models"].values():
            assert len(model["fine"]) == live_models.FINE
            model["fine"] = model["fine"][::EACH]
        few = json.dumps(known)
        context.route("**/manifest.json", lambda route: route.fulfill(body=few))
        page = context.new_page()
        page.goto(base + "chapters/live.html")
        buttons = page.locator(".load button")
        texts = [f"Load the {one['label']} ({one['whole']} MB)" for one in live.sizes()]
        assert buttons.all_inner_texts() == texts
        begun = time.perf_counter()
        buttons.first.press("Enter")
        page.wait_for_selector(".controls:not([hidden])")
        print(f"loaded and opened in {time.perf_counter() - begun:.1f} s")
        page.wait_for_selector(DRAWN)
        yield page


@pytest.fixture(scope="module")
def pipe():
    loaded = load_pipeline("bundled")
    loaded.scheduler = ASDDIMScheduler.from_config(loaded.scheduler.config)
    return loaded


@pytest.fixture(scope="module")
def models():
    return json.loads((live.recorded() / "known.json").read_text())["models"]


@pytest.fixture(scope="module")
def known(models):
    return models["unet"]


def shown(page, column, pixels=PIXELS):
    """One of the three pictures (64 × 64 × 3)."""
    return np.array(page.evaluate(pixels, column)).reshape(64, 64, 4)[..., :3]


def drawn(pipe, prompt, seed, guidance, grid, plan=None, **options):
    """The library's picture (64 × 64 × 3), and the network evaluations that a plan spent."""
    run = Run(pipe, [prompt], [seed], guidance, options=options, guidance_plan=plan)
    found = run.pictures(grid)
    return found.images[0].permute(1, 2, 0).numpy(), found.rows


def choose(page, label, value):
    page.get_by_label(label, exact=True).select_option(value)


def grid_of(page):
    ticks = page.locator(".line [role=slider]").all()
    return [int(tick.get_attribute("aria-valuenow")) for tick in ticks]


def plan_of(page):
    """The guided steps, as the buttons say them and the ticks show them."""
    buttons = page.locator(".steps button")
    pressed = buttons.evaluate_all("all => all.map((one) => one.ariaPressed === 'true')")
    ticks = page.locator(".line [role=slider]")
    shown = ticks.evaluate_all("all => all.map((one) => one.classList.contains('guided'))")
    assert pressed == shown
    return "".join("G" if one else "·" for one in pressed)


def left(page):
    return page.locator(".last output").inner_text()


def evaluations(page):
    """The evaluations that stand below each of the three pictures."""
    texts = page.locator(".columns > div > p").all_inner_texts()
    return [int(re.search(r"(\d+) evaluations", text)[1]) for text in texts]


def test_ten_guided_steps_are_the_library_s_picture(page, pipe, known):
    steps = page.get_by_label("Steps", exact=True)
    for _ in range(5):
        steps.press("ArrowRight")
    begun = time.perf_counter()
    page.wait_for_selector(DRAWN)
    print(f"two pictures of ten guided steps in {time.perf_counter() - begun:.1f} s")
    prompt = live_record.prompt_of(live_record.START)
    run = Run(pipe, [prompt], [live_record.SEED], live_record.GUIDANCE)
    grids = [known["grids"]["measured"]["10"], known["grids"]["even"]["10"]]
    grids.append(known["fine"][::EACH])
    library = [run.pictures(grid) for grid in grids]
    for column in range(3):
        ours = shown(page, column)
        assert abs(ours - library[column].images[0].permute(1, 2, 0).numpy()).mean() <= 1
        assert ours.std() > 10, "an empty picture would prove nothing"
    far = [(one.latents - library[2].latents).square().mean().sqrt() for one in library]
    verdicts = live_record.judged([one.images[0] for one in library])
    for column, text in enumerate(page.locator(".columns > div").all_inner_texts()[:2]):
        assert f"latents {far[column]:.3f}" in text
        features = float(re.search(r"features (\S+)", text)[1])
        assert features == pytest.approx(verdicts[column]["features"], abs=0.002)
        assert ("✓ as asked" in text) is (verdicts[column]["wrong"] == [])


def test_another_prompt_seed_guidance_and_grid_are_the_library_s_too(page, pipe):
    choose(page, "Relation", "none")
    choose(page, "How many", "3")
    choose(page, "Colour", "orange")
    choose(page, "Garment", "dress")
    choose(page, "Starting noise", "2")
    guidance = page.get_by_label("Guidance", exact=True)
    guidance.press("Home")  # 1: the prompt's own prediction, without guidance
    tick = page.locator(".line [role=slider]").nth(4)
    assert tick.evaluate(MOVED) == "", "the page speaks of a drawing that a new one replaces"
    page.wait_for_function("document.querySelector('.state').innerText == 'Drawing: even grid.'")
    grid = grid_of(page)
    picture = shown(page, 0, LAST + PIXELS.removeprefix("(k) => {"))
    prompt = "three orange dresses on a mint ground"
    assert page.locator(".prompt-text").inner_text() == f"“{prompt}”"
    assert abs(picture - drawn(pipe, prompt, 2, 1.0, grid)[0]).mean() <= 1
    assert plan_of(page) == "·" * 10, "at scale 1 no step is guided"
    assert left(page) == "0"


def test_the_pressed_button_and_the_measured_grid_s_distance_stay_in_sight(page):
    pressed = page.locator(".named button[aria-pressed=true]")
    page.get_by_role("button", name="Measured", exact=True).click()
    page.wait_for_selector(DRAWN)
    assert pressed.all_inner_texts() == ["Measured"]
    assert page.locator(".state").inner_text().startswith("The measured grid ends ")
    column = page.locator(".columns > div").first.inner_text()
    distance = re.search(r"latents ([\d.]+)", column)[1]
    page.locator(".line [role=slider]").nth(1).press("PageUp")
    page.wait_for_selector(DRAWN)
    assert pressed.count() == 0
    said = f"The measured grid’s distance in latents is {distance}."
    assert page.locator(".state").inner_text().endswith(said)


def test_a_tick_moves_by_key_and_pointer_and_never_past_its_neighbours(page):
    ticks = page.locator(".line [role=slider]")
    before = grid_of(page)
    ticks.nth(2).focus()
    page.keyboard.press("ArrowRight")
    assert grid_of(page) == [*before[:2], before[2] + 1, *before[3:]]
    page.keyboard.press("Shift+ArrowLeft")
    assert grid_of(page) == [*before[:2], before[2] - 9, *before[3:]]
    page.keyboard.press("Home")
    assert grid_of(page)[2] == before[3] + 1
    page.keyboard.press("ArrowLeft")
    assert grid_of(page)[2] == before[3] + 1
    page.keyboard.press("End")
    assert grid_of(page)[2] == before[1] - 1
    said = ticks.nth(2).get_attribute("aria-valuetext")
    assert said == f"timestep {before[1] - 1}, not guided", "the scale is 1 here"
    tick, plan, grid = ticks.last, plan_of(page), grid_of(page)
    tick.scroll_into_view_if_needed()
    box, width = tick.bounding_box(), page.locator(".line").bounding_box()["width"]
    page.mouse.move(box["x"] + box["width"] / 2 + 9, box["y"] + 20)  # a finger is wider than a tick
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 - 21, box["y"] + 20)
    page.mouse.up()
    assert abs(grid[-1] - grid_of(page)[-1] - 30 * 999 / width) < 2
    assert grid_of(page) == sorted(set(grid_of(page)), reverse=True)
    assert plan_of(page) == plan, "a drag toggles nothing"


def test_a_step_is_guided_or_not_by_click_tap_and_keyboard(page):
    page.get_by_label("Guidance", exact=True).fill("7.5")
    page.get_by_label("Steps", exact=True).fill("5")
    page.get_by_role("button", name="Even", exact=True).click()
    assert (plan_of(page), left(page)) == ("GGGGG", "0")
    ticks, buttons = page.locator(".line [role=slider]"), page.locator(".steps button")
    factors = [text.split()[-1] for text in buttons.all_inner_texts()]
    assert factors == ["−3.89", "−3.14", "−2.68", "−2.82", "−6.12"]
    assert page.locator(".steps .unstable").count() == 5
    grid = grid_of(page)
    ticks.nth(0).press(" ")
    assert (plan_of(page), left(page)) == ("·GGGG", "1")
    ticks.nth(1).press("Enter")
    buttons.nth(2).press("Enter")
    buttons.nth(3).click()
    ticks.nth(4).click()
    assert (plan_of(page), left(page)) == ("·····", "5")
    assert ticks.nth(4).get_attribute("aria-valuetext") == "timestep 199, not guided"
    ticks.nth(4).click()
    said = "timestep 199, guided, factor −6.12, unstable"
    assert ticks.nth(4).get_attribute("aria-valuetext") == said
    assert buttons.nth(4).get_attribute("aria-label") == (
        "Guide step 5 (199): guided, factor −6.12, unstable"
    )
    assert grid_of(page) == grid, "a click moves nothing"
    page.get_by_label("Steps", exact=True).fill("8")
    assert plan_of(page) == "····GGGG", "steps that come are guided"
    race = page.get_by_role("button", name="Race")
    assert (left(page), race.is_disabled()) == ("2 too many", True)
    page.get_by_label("Budget", exact=True).fill("12")
    assert (left(page), race.is_disabled()) == ("0", False)
    page.get_by_label("Budget", exact=True).fill("10")
    page.get_by_label("Steps", exact=True).fill("5")


def raced(page, pipe, prompt, seed, racers, **options):
    """Races, and compares each picture of the chosen noise with the library's, and the rows."""
    page.evaluate("window.rows = 0")
    page.get_by_role("button", name="Race").click()
    page.wait_for_selector(".result:not([hidden])")
    spent = []
    for column, (scale, grid, plan) in enumerate(racers):
        ours = shown(page, column, LAST + PIXELS.removeprefix("(k) => {"))
        library, rows = drawn(pipe, prompt, seed, scale, grid, plan, **options)
        assert abs(ours - library).max() <= 1
        assert ours.std() > 10, "an empty picture would prove nothing"
        spent.append(rows)
    assert evaluations(page) == spent
    return spent


def test_a_race_draws_the_library_s_pictures_and_skips_the_rows_of_unguided_steps(
    page, pipe, known
):
    page.wait_for_selector(DRAWN)
    page.get_by_role("button", name="Even", exact=True).click()
    for k in range(5):
        if plan_of(page)[k] != "G·GG·"[k]:
            page.locator(".steps button").nth(k).click()
    page.wait_for_selector(DRAWN)
    page.evaluate("window.rows = 0")
    page.locator(".line [role=slider]").nth(1).press("ArrowLeft")
    page.wait_for_selector(DRAWN)
    assert page.evaluate("window.rows") == 8, "of three drawings, one is new"
    even, own = known["grids"]["even"]["5"], grid_of(page)
    plan = GuidancePlan.steps([7.5, 1, 7.5, 7.5, 1])
    racers = [(7.5, own, plan), (7.5, even, GuidancePlan.capped())]
    recipe = Recipe.load(live_models.MODELS["unet"].recipe)
    racers.append((recipe.guidance_scale, even, recipe.plan))
    prompt = page.locator(".prompt-text").inner_text().strip("“”")
    spent = raced(page, pipe, prompt, 2, racers)
    assert spent == [8, 10, 10]
    # The reader's picture of this noise was there already.
    assert page.evaluate("window.rows") == sum(spent) * len(SEEDS) - 8
    text = page.get_by_label("The result as text").input_value()
    page.get_by_role("button", name="Copy the result").press("Enter")
    page.wait_for_function("document.querySelector('.state').innerText == 'The result is copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == text
    first, mine, cap, recipe, address = text.splitlines()
    assert first == f"A budget of 10 evaluations, UNet, “{prompt}”"
    assert mine.endswith("Your plan: G·GG· at 7.5, 8 evaluations")
    assert cap.endswith("The cap: GGGGG at 7.5, capped, 10 evaluations")
    assert recipe.endswith("The recipe: GGGGG at 3, 10 evaluations")
    assert address == page.url
    scores = page.locator(".columns > div > p").all_inner_texts()
    for line, score in zip((mine, cap, recipe), scores, strict=True):
        count = re.search(r"\d of 2 correct", line)[0]
        assert count in score
        assert line.count("✓", 0, 2) == int(count[0])
    assert page.locator(".heats canvas").count() == 3 * len(SEEDS)
    page.locator(".steps button").nth(1).click()
    assert page.locator(".result").is_hidden(), "it is another plan's result"
    page.wait_for_selector(DRAWN)
    assert page.locator(".heats canvas").count() == 0


def test_the_transformer_s_pictures_are_the_library_s_too(page, models):
    """Of the prompt and the starting noise that a test above chose. What is shared comes once."""
    page.get_by_role("button", name="Measured", exact=True).click()
    page.locator(".steps button").nth(4).click()
    assert plan_of(page) == "GGGGG"
    unet, transformer = page.locator(".load button").all()
    assert unet.get_attribute("aria-pressed") == "true"
    assert transformer.inner_text() == f"Load the transformer ({live.sizes()[1]['rest']} MB)"
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    transformer.press("Enter")
    page.wait_for_selector(".load button:nth-child(2)[aria-pressed=true]")
    names = [re.search(r"live/(.*)\?", url)[1] for url in asked]
    assert names == ["transformer.onnx", "transformer-text.onnx"]
    assert unet.get_attribute("aria-pressed") == "false"
    assert transformer.evaluate("button => button === document.activeElement")
    begun = time.perf_counter()
    page.wait_for_function("document.querySelector('.state').innerText.includes('20 even')")
    print(f"two pictures of five guided steps in {time.perf_counter() - begun:.1f} s")
    own, prompt = live_models.MODELS["transformer"], page.locator(".prompt-text").inner_text()
    flow = load_pipeline(own.pipeline)
    for column, name in enumerate(("measured", "even")):
        ours = shown(page, column, LAST + PIXELS.removeprefix("(k) => {"))
        grid = models["transformer"]["grids"][name]["5"]
        asked = flow, prompt.strip("“”"), 2, own.guidance, grid
        library, _ = drawn(*asked, max_sequence_length=1)
        assert abs(ours - library).mean() <= 1
        assert ours.std() > 10, "an empty picture would prove nothing"
    recipe = Recipe.load(own.recipe)
    six = models["transformer"]["grids"]["even"]["6"]
    five = models["transformer"]["grids"]["even"]["5"]
    measured = models["transformer"]["grids"]["measured"]["5"]
    racers = [
        (own.guidance, measured, GuidancePlan.steps([own.guidance] * 5)),
        (own.guidance, five, GuidancePlan.capped()),
        (recipe.guidance_scale, six, recipe.plan),
    ]
    spent = raced(page, flow, prompt.strip("“”"), 2, racers, max_sequence_length=1)
    assert spent == [10, 10, 10]
    unet.press("Enter")
    page.wait_for_selector(".load button:nth-child(1)[aria-pressed=true]")
    assert page.get_by_label("Guidance", exact=True).input_value() == "7.5", "the UNet's is kept"
    assert grid_of(page) == models["unet"]["grids"]["measured"]["5"]


def test_the_loaded_page_fits_a_phone_and_has_no_serious_fault(page, findings):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert look.violations(page) == []
    assert look.focus(page) == []
    assert findings == [], "a request failed or went outside, or the console has an error"


def reasoned(context, address):
    """A page's state, after its frames were tried by keyboard."""
    page = context.new_page()
    page.goto(address)
    assert page.locator(".load button").count() == 0
    slider = page.locator(".step input")
    before = shown(page, 0)
    slider.press("ArrowLeft")
    assert (shown(page, 0) != before).any()
    label = page.locator("canvas").first.get_attribute("aria-label")
    assert "4 of 5 steps done" in label
    return page.locator(".state").inner_text()


def test_from_a_file_the_page_shows_recorded_frames_and_says_why(browser, site):
    with browser.new_context() as context:
        state = reasoned(context, (site / "chapters" / "live.html").as_uri())
    assert "Recorded when this page was built" in state
    assert live.missing() in state
    assert live.missing() or "opened as a file" in state


def test_without_webassembly_the_page_shows_recorded_frames_and_says_why(browser, site):
    if live.missing():
        pytest.skip(live.missing())
    with browser_tool.served(site) as base, browser.new_context() as context:
        context.add_init_script("delete window.WebAssembly")
        assert "no WebAssembly" in reasoned(context, base + "chapters/live.html")


def test_a_build_without_a_package_has_frames_and_a_reason(browser, tmp_path, monkeypatch, capsys):
    live.missing.cache_clear()
    monkeypatch.setattr(live, "PACKAGES", ("nowhere",))
    try:
        write(tmp_path)
        reason = "The Python package nowhere was missing when this page was built."
        assert reason in capsys.readouterr().out
        assert not (tmp_path / "live").exists()
        with browser_tool.served(tmp_path) as base, browser.new_context() as context:
            assert reason in reasoned(context, base + "chapters/live.html")
    finally:
        live.missing.cache_clear()


def test_the_recorded_frames_end_in_the_library_s_pictures(pipe, known):
    from PIL import Image

    frames = np.array(Image.open(live.recorded() / "frames.png"))
    prompt = live_record.prompt_of(live_record.START)
    grid = known["grids"]["even"][str(live_record.STEPS)]
    for row, (scale, plan) in enumerate(live_record.plans().values()):
        last = frames[64 * row : 64 * (row + 1), -64:]
        library, _ = drawn(pipe, prompt, live_record.SEED, scale, grid, plan)
        assert abs(last.astype(int) - library).max() <= 1
