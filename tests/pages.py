"""What tests of the book's scripts share: pages opened from a file, and programs for node."""

import json
import re
import shutil
import subprocess
from contextlib import contextmanager

import pytest

#: A page with the colours of the book's theme, light and dark.
PAGE = """<!doctype html><html lang="en"><head><title>A page</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body { margin: 16px; background: var(--pst-color-background); }
:root { --pst-color-background: #fff; --pst-color-text-base: #222832; --pst-color-border: #d1d5da;
  --pst-color-text-muted: #48566b; --pst-color-surface: #f3f4f5; }
[data-theme=dark] { --pst-color-background: #121212; --pst-color-text-base: #ced6dd;
  --pst-color-border: #48566b; --pst-color-text-muted: #9ca4af; --pst-color-surface: #29313d; }
:focus-visible { outline: 3px solid #176de8; outline-offset: 2px; }
h1 { color: var(--pst-color-text-base); }
</style><script>document.documentElement.dataset.theme =
  matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";</script></head>
<body><main><h1>A page</h1>%s</main></body></html>"""


@contextmanager
def opening(browser, file, width, height):
    """Yields what opens the file in a context of one's choice, a screen of that size by default.

    An error in the page, or a request to anywhere, fails the test.
    """
    contexts, errors = [], []

    def open_page(**options):
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        context.route(re.compile("^https?:"), lambda route: errors.append(route.request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def node(program, given, *options):
    """What a program prints as JSON; it reads `given` as JSON from its standard input."""
    path = shutil.which("node")
    if not path:
        pytest.skip("there is no node; `apt-get install nodejs` brings one")
    done = subprocess.run(
        [path, *options, "-e", program],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
