"""A browser without a network, for the pages of a folder."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from sheets import Finding

JS = Path(__file__).with_name("js")
SETTLE = (JS / "settle.js").read_text()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder to this machine, and yields its address.

    The book's search does not work on pages that are opened as files.
    """

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def installed() -> str | None:
    """The path of the machine's own Chromium, or else of Playwright's; None without either."""
    own = shutil.which("chromium")
    if own:
        return own
    with sync_playwright() as tool:
        path = tool.chromium.executable_path
    return path if Path(path).exists() else None


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts Chromium, and closes it at the end.

    Chromium's sandbox does not start for root, as whom a container runs. It opens only our pages.
    """
    path = installed()
    if not path:
        raise SystemExit(
            "there is no Chromium; `apt-get install chromium` or"
            " `playwright install chromium` brings one"
        )
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched(
    browser: Browser, base: str, findings: list[Finding], **options: Any
) -> Iterator[BrowserContext]:
    """A browser context that reaches `base` only, and adds its failures to `findings`."""

    def note(kind: str, page: Page | None, what: str) -> None:
        findings.append(Finding(kind, page.url.removeprefix(base) if page else "?", what))

    context = browser.new_context(**options)
    context.set_default_timeout(120_000)  # a slow machine is no fault of the book
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
    """Waits until the formulas are typeset and the fonts are loaded."""
    page.evaluate(SETTLE)
