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
    """Chromium, started and ended.

    It runs as root in a container, hence without its sandbox; it opens nothing but our pages.
    """
    path = installed()
    if not path:
        raise SystemExit(
            "there is no Chromium; install it by `apt-get install chromium` or "
            "`playwright install chromium`"
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
    page.evaluate(SETTLE)
