"""Looks at the built book as its readers do, in a browser without a network.

Every page in light, in dark and on a phone.

    python book/look.py     checks _build/book/_build/html, with screenshots into _build/look

Needs Chromium, and the extra `look`. Prints one line for each kind of check, and exits with 1 when
there is a finding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from axe_playwright_python.sync_playwright import Axe
from browser import JS, chromium, served, settle, watched
from playwright.sync_api import BrowserContext, Page
from sheets import Finding, Sheet, links

ROOT = Path(__file__).parents[1]
HTML, SHOTS = ROOT / "_build" / "book" / "_build" / "html", ROOT / "_build" / "look"
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
KINDS = {
    "link": "internal links and their anchors hold",
    "request": "no request fails, none goes outside",
    "console": "no error in the console",
    "theme": "dark is dark, light is light",
    "picture": "every picture loads, and has an alternative text",
    "math": "every formula is typeset",
    "width": "nothing is wider than a phone, but for what scrolls by itself",
    "axe": "axe-core has no serious or critical finding",
    "focus": "the Tab key leads to what is seen, and shows where it is",
    "slider": "every slider moves its picture and its text by arrow keys",
    "reader": "an equation is two clicks from the landing page, its source one more",
    "search": "a search finds its word, and nothing for nonsense",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    html: Annotated[Path, typer.Option(help="The folder of the built book.")] = HTML,
    shots: Annotated[Path, typer.Option(help="Where the screenshots go.")] = SHOTS,
) -> None:
    """Checks the built book in a browser."""
    if not (html / "index.html").exists():
        raise SystemExit(f"html is {html}, where there is no index.html; run `make book` first")
    found = look(html, shots, yaml.safe_load((ROOT / "book" / "equations.yml").read_text()))
    for kind, says in KINDS.items():
        number = sum(finding.kind == kind for finding in found)
        print(f"{f'{number} findings' if number else 'ok':>12}  {says}")
    for finding in sorted(set(found)):
        print(f"{finding.kind}: {finding.page}: {finding.what}")
    raise SystemExit(bool(found))


def look(folder: Path, shots: Path, equations: list[dict[str, Any]] | None = None) -> list[Finding]:
    """Everything that is wrong with a folder of HTML.

    Pages are visited in all looks, but for those that only lead on.
    """
    shots.mkdir(parents=True, exist_ok=True)
    sheets = {
        file.relative_to(folder).as_posix(): Sheet(file)
        for file in sorted(folder.rglob("*.html"))
        if "_static" not in file.parts
    }  # where themes keep templates
    found = links(folder, sheets)
    with served(folder) as base, chromium() as browser:
        for name, how in LOOKS.items():
            with watched(browser, base, found, **how) as context:
                for path, sheet in sheets.items():
                    if not sheet.leads_on:
                        visit(context, base, path, name, shots, found)
        with watched(browser, base, found, **LOOKS["light"]) as context:
            page = context.new_page()
            for equation in equations or []:
                reader(page, base, equation, found)
            if "search.html" in sheets:
                search(page, base, found)
    return found


PAGE = (JS / "page.js").read_text()


def visit(
    context: BrowserContext, base: str, path: str, look: str, shots: Path, found: list[Finding]
) -> None:
    """Opens a page, checks what is on it, and takes its picture."""
    page = context.new_page()
    page.goto(base + path)
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    settle(page)
    place = f"{path} ({look})"
    found += [Finding(kind, place, what) for kind, what in page.evaluate(PAGE, look == "phone")]
    page.screenshot(
        path=shots / f"{path.removesuffix('.html').replace('/', '-')}-{look}.png", full_page=True
    )
    for rule in (
        Axe()
        .run(page, options={"resultTypes": ["violations"], "preload": False})
        .response["violations"]
    ):  # it would look for @import beside the page
        if rule["impact"] in ("serious", "critical"):
            nodes = "; ".join(str(node["target"][-1]) for node in rule["nodes"][:3])
            found.append(
                Finding(
                    "axe",
                    place,
                    f"{rule['id']}, {rule['impact']}, {len(rule['nodes'])} times: "
                    f"{rule['help']}: {nodes}",
                )
            )
    if look != "dark":  # the same keys
        found += [Finding("slider", place, what) for what in sliders(page)]
        found += [Finding("focus", place, what) for what in focus(page)]
    page.close()


def sliders(page: Page) -> list[str]:
    """Sliders that arrow keys do not move, with their picture and their text."""
    found = []
    for explorer in page.locator(".asddim-explorer").all():
        for k, slider in enumerate(explorer.locator("input[type=range]").all()):

            def shown(explorer: Any = explorer, slider: Any = slider) -> tuple[str, str, str]:
                return (
                    explorer.locator("img").get_attribute("src"),
                    explorer.locator("[aria-live]").inner_text(),
                    slider.get_attribute("aria-valuetext"),
                )

            before = shown()
            last = slider.input_value() == slider.get_attribute("max")
            for key in ("ArrowLeft", "ArrowRight") if last else ("ArrowRight", "ArrowLeft"):
                slider.press(key)
                after = shown()
                if any(one == other for one, other in zip(before, after, strict=True)):
                    found.append(
                        f"slider {k + 1} of {explorer.get_attribute('id')} does not change "
                        f"everything by {key}"
                    )
                before = after
    return found


FOCUS = (JS / "focus.js").read_text()


def focus(page: Page, most: int = 60) -> list[str]:
    """Where the Tab key leads without its being seen."""
    page.evaluate("() => { scrollTo(0, 0); document.activeElement?.blur(); }")
    found = []
    for _ in range(most):
        page.keyboard.press("Tab")
        said = page.evaluate(FOCUS)
        if said is None:
            break
        if said:
            found.append(said)
    return found


def reader(page: Page, base: str, equation: dict[str, Any], found: list[Finding]) -> None:
    """Goes from the landing page to an equation, and on to its source, as a reader would.

    By clicks on what is seen.
    """

    def fail(what: str) -> None:
        found.append(Finding("reader", f"Eq. {equation['number']}", what))

    def click(target: str, where: str = "main") -> bool:
        link = page.locator(f'{where} a[href$="{target}"]:visible').first
        if not link.count():
            return False
        link.click()
        page.wait_for_load_state()
        settle(page)
        return True

    page.goto(base)
    page.wait_for_url("**/chapters/**")
    settle(page)
    spot = f"equation-{equation['label']}"
    if not click(f"#{spot}") and not (click("equations.html") and click(f"#{spot}")):
        return fail("is not two clicks from the landing page")
    typeset = page.locator(f"[id='{spot}'] mjx-container").first
    if (
        not typeset.count()
        or f"({equation['number']})" not in page.locator(f"[id='{spot}'] .eqno").inner_text()
    ):
        return fail("is not typeset with its number")
    if not in_view(page, spot):
        return fail("is not where its link leads")
    *module, name = equation["function"].split(".", 3)
    if not click(
        f"_modules/{'/'.join(module)}.html#{name}",
        f"section:has(> [id='{spot}'])",
    ):
        return fail(f"{name}'s source is not one click from its derivation")
    if (
        not in_view(page, name)
        or f"def {name.rsplit('.', 1)[-1]}" not in page.locator(f"[id='{name}']").inner_text()
    ):
        return fail(f"{name}'s source is not where its link leads")


def in_view(page: Page, spot: str) -> bool:
    """Whether the browser has gone to an element."""
    page.wait_for_timeout(100)
    box = (
        page.locator(f"[id='{spot}']").first.bounding_box()
        if page.locator(f"[id='{spot}']").count()
        else None
    )
    return bool(box) and box["y"] < page.viewport_size["height"] and box["y"] + box["height"] > 0


def search(page: Page, base: str, found: list[Finding]) -> None:
    """Asks the book's search for a word that it has, and for one that it has not."""
    for word, known in (("timestep", True), ("qwrtzpfg", False)):
        page.goto(base + "search.html")
        page.locator("main input[name=q]:visible, input[name=q]:visible").first.fill(word)
        page.keyboard.press("Enter")
        page.wait_for_url("**q=*")
        page.wait_for_function(
            "() => /finished|matching|match/i.test("
            "document.querySelector('#search-results')?.innerText ?? '')"
        )
        if bool(page.locator("#search-results li a").count()) is not known:
            found.append(
                Finding("search", "search.html", f"{word} is {'not ' if known else ''}found")
            )


if __name__ == "__main__":
    app()
