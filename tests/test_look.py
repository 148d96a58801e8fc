"""book/look.py finds each fault in a page made to have it; test_small_book has pages without one.

book/pdf.py refuses a print that lacks something.
"""

from base64 import b64encode
from functools import cache
from io import BytesIO
from urllib.parse import quote

import browser as browser_tool
import look
import numpy as np
import pdf
import pytest
from PIL import Image
from pypdf import PdfReader

# one browser serves all tests of this file
pytestmark = [pytest.mark.site, pytest.mark.xdist_group("look")]
ICON = '<link rel="icon" href="data:,">'  # or the browser asks the server for one
PAGE = (
    '<!doctype html><html lang="en"{root}><head><title>A page</title>'
    + ICON
    + "{head}</head><body><main><h1>A page</h1>{body}</main></body></html>"
)
SLIDER = (
    '<div class="asddim-explorer"><img alt="A dot." src="dot.png"><label>size '
    '<input type="range"></label><p aria-live="polite">A dot.</p></div>'
)
WIDE = '<div style="width: 900px">wide</div>'
TABLE = '<table style="width: 2000px"><tr><td>wide</td></tr></table>'
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} 100" width="900">{}</svg>'
TINY = SVG.format(1800, '<text y="20" font-size="17">17 of 1,800 units are 8.5 pixels</text>')
PLOT = '<g id="text_1"><g transform="translate(9 9) scale(0.09 -0.09)"><path d="M0 0L9 9"/></g></g>'
GLYPHS = "data:image/svg+xml," + quote(SVG.format(504, PLOT))  # 9 of 504 units
#: What is not at fault: things that are wide and scroll, and letters of 9 pixels.
DESK = "".join(
    f'<div style="overflow: auto" tabindex="0">{inner}</div>'
    for inner in (
        f'<img alt="A line." src="{GLYPHS}" width="505">',
        SVG.format(1800, '<text y="20" font-size="18">9 pixels</text>'),
        f"<pre>{'x' * 400}</pre>",
        TABLE,
        WIDE,
    )
)
HEAVY = b64encode(np.random.default_rng(0).bytes(1_600_000)).decode()  # is not compressed
ABOVE = "position: absolute; left: 0; top: -99px"
#: Of each page with a fault: the kind of finding, the look that shows it, and the page's parts.
FAULTS = {
    "file": ("link", "light", {"body": '<a href="nowhere.html">There</a>'}),
    "anchor": ("link", "light", {"body": '<a href="clean.html#nowhere">There</a>'}),
    "missing": ("request", "light", {"head": '<link rel="stylesheet" href="nowhere.css">'}),
    "outside": ("request", "light", {"head": '<script src="https://example.org/a.js"></script>'}),
    "console": ("console", "light", {"head": '<script>console.error("a fault")</script>'}),
    "exception": ("console", "light", {"head": '<script>throw new Error("a fault")</script>'}),
    "theme": ("theme", "dark", {"root": ' data-theme="light"'}),
    "alt": ("picture", "light", {"body": '<img src="dot.png">'}),
    "named": ("picture", "light", {"body": '<img src="dot.png" alt="dot.png">'}),
    "broken": ("picture", "light", {"body": '<img src="nowhere.png" alt="A dot.">'}),
    "math": ("math", "light", {"body": '<span class="math">\\(x\\)</span>'}),
    "width": ("width", "phone", {"body": WIDE}),
    "clipped": ("width", "phone", {"body": f'<div style="overflow: hidden">{WIDE}</div>'}),
    "heavy": ("weight", "light", {"head": f"<!--{HEAVY}-->"}),
    "length": ("length", "light", {"body": '<p style="height: 9000px">long</p>'}),
    "table": ("cut", "light", {"body": f'<div style="overflow: hidden">{TABLE}</div>'}),
    "beyond": ("cut", "light", {"body": TABLE}),
    "code": ("cut", "light", {"body": f'<pre style="overflow: hidden">{"x" * 400}</pre>'}),
    "inline": ("letters", "light", {"body": TINY}),
    "glyphs": ("letters", "light", {"body": f'<img alt="A" src="{GLYPHS}" width="500">'}),
    "label": ("axe", "light", {"body": "<input>"}),
    "contrast": ("axe", "light", {"body": '<p style="color: #ccc; background: #fff">pale</p>'}),
    "outline": ("focus", "light", {"body": '<a href="clean.html" style="outline: none">A</a>'}),
    "hidden": ("focus", "light", {"body": f'<a href="clean.html" style="{ABOVE}">There</a>'}),
    "slider": ("slider", "light", {"body": SLIDER}),
}
PARTS = ("root", "head", "body")
EQUATION = {"number": 3, "label": "eq-x", "function": "asddim_lib.paper.ddim_step"}
#: The pages of a book in which a reader gets lost: {} is the number of the fault.
LOST = {
    "chapters/equations.html": '<a href="ddim{0}.html#equation-eq-{0}">Eq. (3)</a>',
    "chapters/ddim{0}.html": '<p style="height: 3000px">Text</p><section><div id="equation-eq-{0}">'
    '<span class="eqno">(3)</span><mjx-container>x</mjx-container></div>'
    '<a href="../_modules/asddim_lib/paper{0}.html#ddim_step">[source]</a></section>',
    "_modules/asddim_lib/paper{0}.html": '<p style="height: 3000px">Text</p>'
    '<div id="ddim_step">def ddim_step():</div>',
}
#: What is changed on which page, and a word of what the check says.
TURNS = [
    ("chapters/ddim{0}.html", "", "", None),
    ("chapters/equations.html", "#equation-eq-{0}", "", "two clicks"),
    ("chapters/ddim{0}.html", "(3)", "(4)", "number"),
    ("chapters/ddim{0}.html", "mjx-container", "span", "typeset"),
    ("chapters/ddim{0}.html", "</div><a", "</div></section><section><a", "one click"),
    ("_modules/asddim_lib/paper{0}.html", "def ", "", "source"),
]


@pytest.fixture
def page(browser):
    """A page in a context of its own, with an empty cache."""
    with browser.new_context() as context:
        yield context.new_page()


def write(folder, pages):
    for name, body in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            body if body.startswith("<meta") else PAGE.format(root="", head="", body=body)
        )


#: Faults that change what is found of others, or are found as several kinds.
ALONE = {
    "broken": {"picture", "link", "request", "console"},
    "outline": {"focus"},
    "hidden": {"focus"},
}


def shared(look_name):
    """The pages of a look: each has faults of different kinds, as a visit takes its time."""
    pages = []
    for fault, (kind, where, _) in FAULTS.items():
        if where == look_name:
            free = [page for page in pages if kind not in page.values() and not {*page} & {*ALONE}]
            free = [] if fault in ALONE else free
            page = free[0] if free else {}
            page[fault] = kind
            pages += [] if free else [page]
    return {f"{look_name}-{number}.html": page for number, page in enumerate(pages)}


PAGES = {name: page for look_name in look.LOOKS for name, page in shared(look_name).items()}


@pytest.fixture(scope="module")
def findings(browser, tmp_path_factory):
    """All findings of each page in the look that shows its faults."""
    findings = []
    for look_name in look.LOOKS:
        folder = tmp_path_factory.mktemp(look_name)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "dot.png")
        write(folder, {"clean.html": DESK if look_name == "light" else ""})
        for name, page in shared(look_name).items():
            parts = [FAULTS[fault][2] for fault in page]
            text = {key: "".join(part.get(key, "") for part in parts) for key in PARTS}
            (folder / name).write_text(PAGE.format(**text))
        shots = tmp_path_factory.mktemp("shots")
        findings += look.look(browser, folder, shots, looks=[look_name])
    return findings


@pytest.mark.parametrize("name", PAGES)
def test_the_faults_are_found_on_their_page_and_nothing_else(findings, name):
    kinds = {finding.kind for finding in findings if finding.page.startswith(name)}
    alone = [ALONE[fault] for fault in PAGES[name] if fault in ALONE]
    assert kinds == (alone[0] if alone else set(PAGES[name].values()))


def test_a_clean_page_has_no_finding(findings):
    assert [finding for finding in findings if finding.page.startswith("clean.html")] == []


def test_a_reader_who_gets_lost_is_a_finding(page, tmp_path):
    start = {"index.html": '<meta http-equiv="Refresh" content="0; url=chapters/start.html" />'}
    pages = {**start, "chapters/start.html": '<a href="equations.html">All</a>'}
    for number, (place, old, new, _) in enumerate(TURNS):
        for name, body in LOST.items():
            text = body.replace(old, new) if old and name == place else body
            pages[name.format(number)] = pages.get(name, "") + text.format(number)
    write(tmp_path, pages)
    with browser_tool.served(tmp_path) as base:
        for number, (*_, word) in enumerate(TURNS):
            function = f"asddim_lib.paper{number}.ddim_step"
            findings = []
            equation = {"number": 3, "label": f"eq-{number}", "function": function}
            look.reader(page, base, equation, findings)
            assert [word in finding.what for finding in findings] == ([True] if word else [])


def test_a_search_that_misses_a_word_or_finds_nonsense_is_found(page, tmp_path):
    script = """<form><input name="q" aria-label="search"></form>
    <div id="search-results"></div><script>
      const query = new URLSearchParams(location.search).get("q");
      const hits = location.pathname.includes("all") ?
        '<ul><li><a href="search.html">Page</a></li></ul>' : "";
      const results = document.querySelector("#search-results");
      if (query) results.innerHTML = "<p>Search finished</p>" + hits;</script>"""
    write(tmp_path, {"all/search.html": script, "nothing/search.html": script})
    with browser_tool.served(tmp_path) as base:
        for folder, word in (("all", "qwrtzpfg"), ("nothing", "timestep")):
            findings = []
            look.search(page, f"{base}{folder}/", findings)
            assert [word in finding.what for finding in findings] == [True]


def test_a_folder_without_a_book_and_a_machine_without_a_browser_get_one_line(
    tmp_path, monkeypatch
):
    with pytest.raises(SystemExit, match="run `make book` first"):
        look.main(html=tmp_path, shots=tmp_path)
    monkeypatch.setattr(browser_tool, "installed", lambda: None)
    with (
        pytest.raises(SystemExit, match="`apt-get install chromium`"),
        browser_tool.chromium(),
    ):
        pass


PRINT = (
    '<p>Text</p><a href="#equation-eq-x">Eq. (3)</a><p id="equation-eq-x">x = y (3)</p>'
    '<img src="dot.png" alt="A dot."><img src="line.svg" alt="A line.">'
)


@pytest.fixture(scope="module")
def printed(browser, tmp_path_factory):
    """Prints the page with a change of its text, each change once."""
    folder = tmp_path_factory.mktemp("print")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "dot.png")
    (folder / "line.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0L9 9"/></svg>'
    )
    with browser.new_context() as context:
        page = context.new_page()

        @cache
        def printer(old, new):
            write(folder, {"book.html": PRINT.replace(old, new) if old else PRINT})
            page.goto((folder / "book.html").as_uri())
            page.pdf(path=folder / "book.pdf", outline=True, tagged=True)
            return (folder / "book.pdf").read_bytes()

        yield lambda old, new: PdfReader(BytesIO(printer(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "figures", "pixels", "message"),
    [
        ("", "", 2, 1, None),
        ("", "", 2, 2, "pictures"),
        ("", "", 3, 1, "described figures"),
        ('alt="A line."', 'alt=""', 2, 1, "described figures"),
        ("(3)", "(4)", 2, 1, "Eq. 3"),
        ("Text", "see ??", 2, 1, "references on pages \\[1\\]"),
        ('"#equation-eq-x"', '"http://127.0.0.1/nowhere.html"', 2, 1, "link"),
    ],
)
def test_a_print_that_lacks_something_is_refused(printed, old, new, figures, pixels, message):
    if message:
        with pytest.raises(ValueError, match=message):
            pdf.check_print(printed(old, new), [EQUATION], figures, pixels)
    else:
        pdf.check_print(printed(old, new), [EQUATION], figures, pixels)
