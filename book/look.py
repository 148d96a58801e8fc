"""Looks at the built book as its readers do, in a browser without a network: every page in light, in dark and on a phone.

    python book/look.py     checks _build/book/_build/html, with screenshots into _build/look

Needs Chromium, and the extra `look`. Prints one line for each kind of check, and exits with 1 when there is a finding.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import typer
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

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


class Finding(NamedTuple):
    kind: str
    page: str
    what: str


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
    """Everything that is wrong with a folder of HTML: pages are visited in all looks, but for those that only lead on."""
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


class Sheet(HTMLParser):
    """What an HTML file points to, and what in it can be pointed to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.leads_on = False
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.targets += [given[name] for name in ("href", "src") if name in given]
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if given.get("http-equiv", "").lower() == "refresh":
            self.leads_on = True
            self.targets.append(given["content"].partition("url=")[2])


def links(folder: Path, sheets: dict[str, Sheet]) -> list[Finding]:
    """Links that lead to no file, or to no place in one."""
    found = []
    for path, sheet in sheets.items():
        for target in dict.fromkeys(sheet.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (
                ((folder / path).parent / unquote(parts.path)).resolve()
                if parts.path
                else (folder / path).resolve()
            )
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                found.append(Finding("link", path, f"{target} leads to no file"))
            elif (
                parts.fragment
                and file.suffix == ".html"
                and unquote(parts.fragment)
                not in sheets[file.relative_to(folder.resolve()).as_posix()].anchors
            ):
                found.append(Finding("link", path, f"{target} leads to no place on its page"))
    return found


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, served to this machine: a page opened as a file may not search."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def installed() -> str | None:
    """Where the machine's own Chromium is, or else Playwright's."""
    with sync_playwright() as tool:
        return shutil.which("chromium") or (
            tool.chromium.executable_path if Path(tool.chromium.executable_path).exists() else None
        )


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium, started and ended. It runs as root in a container, hence without its sandbox; it opens nothing but our pages."""
    path = installed()
    if not path:
        raise SystemExit(
            "there is no Chromium; `apt-get install chromium` or `playwright install chromium` brings one"
        )
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched(
    browser: Browser, base: str, found: list[Finding], **how: Any
) -> Iterator[BrowserContext]:
    """A browser's window from which nothing gets out, and whose failures are written down."""

    def note(kind: str, page: Page | None, what: str) -> None:
        found.append(Finding(kind, page.url.removeprefix(base) if page else "?", what))

    context = browser.new_context(**how)
    context.set_default_timeout(120_000)  # a busy machine is no finding
    context.route(
        lambda url: url.startswith("http") and not url.startswith(base), lambda route: route.abort()
    )
    context.on(
        "requestfailed",
        lambda request: note("request", request.frame.page, f"{request.url} failed"),
    )
    context.on(
        "response",
        lambda answer: (
            answer.ok
            or answer.status == 304
            or note("request", answer.frame.page, f"{answer.url} gave {answer.status}")
        ),
    )
    context.on(
        "console",
        lambda message: message.type == "error" and note("console", message.page, message.text),
    )
    context.on("weberror", lambda error: note("console", error.page, str(error.error)))
    yield context
    context.close()


def settle(page: Page) -> None:
    """Waits until the formulas are typeset and the fonts are there."""
    page.evaluate(
        "async () => { if (window.MathJax?.startup?.promise) await MathJax.startup.promise; await document.fonts.ready; }"
    )


PAGE = """phone => {
  const found = [], say = (kind, what) => found.push([kind, what.replace(/\\s+/g, " ").slice(0, 200)]);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light", theme = document.documentElement.dataset.theme;
  if (theme && theme !== dark) say("theme", `is ${theme} where ${dark} is asked for`);
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) say("picture", `${image.src.slice(0, 80)} is not drawn`);
    if (!image.alt.trim() || /^\\S+\\.\\w{3,4}$/.test(image.alt.trim())) say("picture", `${image.src.slice(0, 80)} has the alternative text "${image.alt}"`);
  }
  for (const formula of document.querySelectorAll(".math"))
    if (!formula.querySelector("mjx-container, svg") || formula.querySelector("mjx-merror, [data-mjx-error]")) say("math", formula.textContent);
  if (phone) {
    const scrolls = element => element && element !== document.body && (/auto|scroll/.test(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
    const wide = [...document.body.querySelectorAll("*")].filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e));
    const hidden = e => getComputedStyle(e).position === "fixed" || e.closest("mjx-assistive-mml, dialog, .sr-only, .visually-hidden");
    for (const e of wide.filter(e => !hidden(e)).slice(0, 3)) say("width", `${Math.round(e.getBoundingClientRect().right)}: ${e.outerHTML}`);
    if (document.documentElement.scrollWidth > innerWidth) say("width", `the page is ${document.documentElement.scrollWidth} wide`);
  }
  return found;
}"""


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
                    f"{rule['id']}, {rule['impact']}, {len(rule['nodes'])} times: {rule['help']}: {nodes}",
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
                        f"slider {k + 1} of {explorer.get_attribute('id')} does not change everything by {key}"
                    )
                before = after
    return found


FOCUS = """() => {
  const e = document.activeElement;
  if (!e || e === document.body || e.dataset.seen) return null;
  e.dataset.seen = 1;
  const box = e.getBoundingClientRect(), style = getComputedStyle(e), name = e.outerHTML.slice(0, 120);
  if (!box.width || !box.height || box.bottom < 0 || box.top > innerHeight) return `out of sight: ${name}`;
  if ((style.outlineStyle === "none" || style.outlineWidth === "0px") && style.boxShadow === "none") return `not shown: ${name}`;
  return "";
}"""


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
    """Goes from the landing page to an equation, and on to its function's source, as a reader would: by clicks on what is seen."""

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
            "() => /finished|matching|match/i.test(document.querySelector('#search-results')?.innerText ?? '')"
        )
        if bool(page.locator("#search-results li a").count()) is not known:
            found.append(
                Finding("search", "search.html", f"{word} is {'not ' if known else ''}found")
            )


if __name__ == "__main__":
    app()
