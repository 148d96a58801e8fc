"""Checks the built book in a browser without a network.

    python book/look.py     checks _build/book/_build/html, with screenshots into _build/look

Each page is opened in light, in dark and on a phone. The check needs Chromium and the extra `look`.
It prints one line for each kind of check, and exits with 1 if there is a finding.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import typer
import yaml
from axe_playwright_python.sync_playwright import Axe
from browser import JS, chromium, served, settle, watched
from playwright.sync_api import Browser, BrowserContext, Locator, Page
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
    "width": "nothing is wider than a phone, except what scrolls by itself",
    "weight": "a first visit to a page fetches less than 1.5 MB, compressed as page hosts do",
    "length": "no page is longer than a reader scrolls, except the reference",
    "cut": "no table and no line of code is cut, except in what scrolls by itself",
    "letters": "no figure's letters are smaller than 9 pixels",
    "axe": "axe-core has no serious or critical finding",
    "focus": "the Tab key reaches visible elements only, and shows where it is",
    "slider": "every slider moves its picture and its text by arrow keys",
    "reader": "an equation is two clicks from the landing page, and its source one more",
    "search": "a search finds a known word, and nothing for nonsense",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    html: Annotated[Path, typer.Option(help="The folder of the built book.")] = HTML,
    shots: Annotated[Path, typer.Option(help="Where the screenshots go.")] = SHOTS,
    pages: Annotated[str, typer.Option(help="Which pages, as in chapters/use*.")] = "*",
) -> None:
    """Checks the built book in a browser."""
    if not (html / "index.html").exists():
        raise SystemExit(f"html is {html}, where there is no index.html; run `make book` first")
    equations = yaml.safe_load((ROOT / "book" / "equations.yml").read_text())
    with chromium() as browser:
        findings = look(browser, html, shots, equations, pages=pages)
    for kind, description in KINDS.items():
        number = sum(finding.kind == kind for finding in findings)
        print(f"{f'{number} findings' if number else 'ok':>12}  {description}")
    for finding in sorted(set(findings)):
        print(f"{finding.kind}: {finding.page}: {finding.what}")
    raise SystemExit(bool(findings))


def look(
    browser: Browser,
    folder: Path,
    shots: Path,
    equations: Iterable[dict[str, Any]] = (),
    looks: Iterable[str] = tuple(LOOKS),
    pages: str = "*",
) -> list[Finding]:
    """Returns the findings of all checks on a folder of HTML.

    Every page that matches `pages` is visited in each of the `looks`, except pages that only
    redirect. The links of all pages, the reader's path to each of the `equations` and the search
    are tried once.
    """
    shots.mkdir(parents=True, exist_ok=True)
    sheets = {
        file.relative_to(folder).as_posix(): Sheet(file)
        for file in sorted(folder.rglob("*.html"))
        if "_static" not in file.parts  # themes keep templates there
    }
    findings = links(folder, sheets)
    with served(folder) as base:
        for name in looks:
            with watched(browser, base, findings, **LOOKS[name]) as context:
                for path, sheet in sheets.items():
                    if fnmatch(path, pages) and not sheet.leads_on:
                        visit(context, base, folder, path, name, shots, findings)
        with watched(browser, base, findings, **LOOKS["light"]) as context:
            page = context.new_page()
            for equation in equations:
                reader(page, base, equation, findings)
            if "search.html" in sheets:
                search(page, base, findings)
    return findings


PAGE, DESK = (JS / "page.js").read_text(), (JS / "desk.js").read_text()
LONGEST, HEAVIEST = 8000, 1_500_000  # pixels, bytes
LONG = "chapters/api/*"


def visit(
    context: BrowserContext,
    base: str,
    folder: Path,
    path: str,
    look: str,
    shots: Path,
    findings: list[Finding],
) -> None:
    """Opens a page, checks its contents, and takes a screenshot."""
    page = context.new_page()
    page.goto(base + path)
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
    settle(page)
    place = f"{path} ({look})"
    findings += [Finding(kind, place, what) for kind, what in page.evaluate(PAGE, look == "phone")]
    shot = f"{path.removesuffix('.html').replace('/', '-')}-{look}.png"
    page.screenshot(path=shots / shot, full_page=True)
    findings += [Finding("axe", place, what) for what in violations(page)]
    if look == "light":  # dark differs in colours only
        findings += [Finding(kind, place, what) for kind, what in page.evaluate(DESK)]
        findings += [Finding("length", place, what) for what in length(page, path)]
        findings += [Finding("weight", place, what) for what in weight(page, base, folder)]
    if look != "dark":  # its keys are those of light
        findings += [Finding("slider", place, what) for what in sliders(page)]
        findings += [Finding("focus", place, what) for what in focus(page)]
    page.close()


def length(page: Page, path: str) -> list[str]:
    """The page's length, if it is too long."""
    pixels = page.evaluate("() => document.documentElement.scrollHeight")
    return [f"is {pixels} pixels long"] if pixels > LONGEST and not fnmatch(path, LONG) else []


def weight(page: Page, base: str, folder: Path) -> list[str]:
    """What a first visit to the page fetches, if it is too much.

    The browser lists what the page asked for, also where its cache had it.
    """
    addresses = page.evaluate(
        "() => ['navigation', 'resource'].flatMap((kind) => performance.getEntriesByType(kind))"
        ".map((entry) => entry.name)"
    )
    files = {
        folder / unquote(urlsplit(address).path).lstrip("/")
        for address in addresses
        if address.startswith(base)
    }
    total = sum(compressed(file) for file in files if file.is_file())
    return [f"fetches {total / 1e6:.2f} MB"] if total > HEAVIEST else []


@cache
def compressed(file: Path) -> int:
    """The bytes of a file as page hosts send it."""
    return len(gzip.compress(file.read_bytes()))


def violations(page: Page) -> list[str]:
    """The serious and the critical findings of axe-core."""
    # With preload, axe would fetch the files that style sheets import.
    report = Axe().run(page, options={"resultTypes": ["violations"], "preload": False})
    lines = []
    for rule in report.response["violations"]:
        if rule["impact"] in ("serious", "critical"):
            nodes = "; ".join(str(node["target"][-1]) for node in rule["nodes"][:3])
            name = f"{rule['id']}, {rule['impact']}, {len(rule['nodes'])} times"
            lines.append(f"{name}: {rule['help']}: {nodes}")
    return lines


def sliders(page: Page) -> list[str]:
    """The sliders whose picture, text or value does not follow an arrow key."""
    faults = []
    for explorer in page.locator(".asddim-explorer").all():
        for k, slider in enumerate(explorer.locator("input[type=range]").all()):
            before = _state(explorer, slider)
            last = slider.input_value() == slider.get_attribute("max")
            for key in ("ArrowLeft", "ArrowRight") if last else ("ArrowRight", "ArrowLeft"):
                slider.press(key)
                after = _state(explorer, slider)
                if any(old == new for old, new in zip(before, after, strict=True)):
                    name = f"slider {k + 1} of {explorer.get_attribute('id')}"
                    faults.append(f"{name} does not change everything by {key}")
                before = after
    return faults


def _state(explorer: Locator, slider: Locator) -> tuple[str | None, str, str | None]:
    """The picture, the text and the slider's value, as the reader gets them."""
    return (
        explorer.locator("img").get_attribute("src"),
        explorer.locator("[aria-live]").inner_text(),
        slider.get_attribute("aria-valuetext"),
    )


FOCUS = (JS / "focus.js").read_text()


def focus(page: Page, most: int = 60) -> list[str]:
    """The elements that the Tab key reaches out of sight, or without a visible focus."""
    page.evaluate("() => { scrollTo(0, 0); document.activeElement?.blur(); }")
    faults = []
    for _ in range(most):
        page.keyboard.press("Tab")
        fault = page.evaluate(FOCUS)
        if fault is None:
            break
        if fault:
            faults.append(fault)
    return faults


def reader(page: Page, base: str, equation: dict[str, Any], findings: list[Finding]) -> None:
    """Goes from the landing page to an equation and on to its source, by clicks on visible links.

    Stops at the first step that fails, with a finding.
    """

    def fail(what: str) -> None:
        findings.append(Finding("reader", f"Eq. {equation['number']}", what))

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
    parts = equation["function"].split(".")
    name, section = parts[-1], f"section:has(> [id='{spot}'])"
    # The last part of the module's name is not known: "package.module.Class.method".
    places = [".".join(parts[cut:]) for cut in range(1, len(parts))]
    if not any(
        click(f"/{module}.html#{place}", section)
        for module, place in zip(parts, places, strict=False)
    ):
        return fail(f"{name}'s source is not one click from its derivation")
    name = page.url.rpartition("#")[2]
    if (
        not in_view(page, name)
        or f"def {name.rsplit('.', 1)[-1]}" not in page.locator(f"[id='{name}']").inner_text()
    ):
        return fail(f"{name}'s source is not where its link leads")


def in_view(page: Page, spot: str) -> bool:
    """Whether the element with the id `spot` is within the window."""
    page.wait_for_timeout(100)
    element = page.locator(f"[id='{spot}']")
    box = element.first.bounding_box() if element.count() else None
    return bool(box) and box["y"] < page.viewport_size["height"] and box["y"] + box["height"] > 0


def search(page: Page, base: str, findings: list[Finding]) -> None:
    """Asks the book's search for a word of the book, and for one that is not in it."""
    for word, known in (("timestep", True), ("qwrtzpfg", False)):
        page.goto(base + "search.html")
        page.locator("main input[name=q]:visible, input[name=q]:visible").first.fill(word)
        page.keyboard.press("Enter")
        page.wait_for_url("**q=*")
        page.wait_for_function(
            "() => /finished|matching|match/i.test("
            "document.querySelector('#search-results')?.innerText ?? '')"
        )
        page.wait_for_load_state("networkidle")  # it fetches the pages that it quotes
        if bool(page.locator("#search-results li a").count()) is not known:
            what = f"{word} is {'not ' if known else ''}found"
            findings.append(Finding("search", "search.html", what))


if __name__ == "__main__":
    app()
