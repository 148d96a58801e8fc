"""book/look.py finds each fault in a page made to have it, and none in a clean page.

book/pdf.py refuses a print that lacks something.
"""

from base64 import b64encode
from urllib.parse import quote

import browser as browser_tool
import look
import matplotlib
import numpy as np
import pdf
import pytest
from PIL import Image
from pypdf import PdfReader

from experiments.widgets import explore

pytestmark = pytest.mark.xdist_group("look")  # one browser serves all tests of this file
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
BOOK = {
    "index.html": '<meta http-equiv="Refresh" content="0; url=chapters/start.html" />',
    "chapters/start.html": '<a href="equations.html">All</a>',
    "chapters/equations.html": '<a href="ddim.html#equation-eq-x">Eq. (3)</a>',
    "chapters/ddim.html": '<p style="height: 3000px">Text</p><section><div id="equation-eq-x">'
    '<span class="eqno">(3)</span><mjx-container>x</mjx-container></div>'
    '<a href="../_modules/asddim_lib/core/step.html#ddim_step">[source]</a></section>',
    "_modules/asddim_lib/core/step.html": '<p style="height: 3000px">Text</p>'
    '<div id="ddim_step">def ddim_step():</div>',
}


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


def clean_page():
    """The body of a page without a fault: a picture, a link, a wide part that scrolls, a slider."""
    matplotlib.use("Agg")

    def draw(size):
        figure, axis = matplotlib.pyplot.subplots(figsize=(2, 2))
        axis.plot([0], [0], "o", markersize=size)
        return figure, f"A dot of size {size}."

    place = '<a href="#place">There</a><p id="place">Text</p>'
    scrolls = f'<div style="overflow-x: auto" tabindex="0">{WIDE}</div>'
    sliders = explore(draw, title="A dot", size=(5, 9, 20)).data
    plot = f'<img alt="A line." src="{GLYPHS}" width="505">'
    text = SVG.format(1800, '<text y="20" font-size="18">9 pixels</text>')
    lines = f'<pre style="overflow: auto" tabindex="0">{"x" * 400}</pre>'
    table = f'<div style="overflow-x: auto" tabindex="0">{TABLE}</div>'
    desk = f'<div style="overflow: auto" tabindex="0">{plot}{text}</div>{lines}{table}'
    return f'<img src="dot.png" alt="A dot.">{place}{scrolls}{sliders}{desk}'


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
    """All findings: the clean page's in each look, each other page's in the look of its faults."""
    clean, findings = clean_page(), []
    for look_name in look.LOOKS:
        folder = tmp_path_factory.mktemp(look_name)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "dot.png")
        write(folder, {"clean.html": clean})
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


def test_each_page_that_does_not_redirect_is_opened_in_every_look(browser, tmp_path):
    redirect = '<meta http-equiv="Refresh" content="0; url=wide.html" />'
    write(tmp_path / "pages", {"index.html": redirect, "wide.html": WIDE})
    findings = look.look(browser, tmp_path / "pages", tmp_path / "shots")
    assert {finding.page for finding in findings} == {"wide.html (phone)"}
    shots = {file.name for file in (tmp_path / "shots").iterdir()}
    assert shots == {f"wide-{name}.png" for name in look.LOOKS}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("chapters/start.html", "", "", None),
        (
            "chapters/start.html",
            "equations.html",
            "ddim.html",
            "is not two clicks from the landing page",
        ),
        ("chapters/ddim.html", "(3)", "(4)", "is not typeset with its number"),
        ("chapters/ddim.html", "mjx-container", "span", "is not typeset with its number"),
        (
            "chapters/ddim.html",
            "</div><a",
            "</div></section><section><a",
            "ddim_step's source is not one click from its derivation",
        ),
        (
            "_modules/asddim_lib/core/step.html",
            "def ",
            "",
            "ddim_step's source is not where its link leads",
        ),
    ],
)
def test_a_reader_finds_an_equation_and_its_source_or_says_where_it_got_lost(
    page, tmp_path, file, old, new, message
):
    write(tmp_path, {**BOOK, file: BOOK[file].replace(old, new) if old else BOOK[file]})
    findings = []
    with browser_tool.served(tmp_path) as base:
        look.reader(page, base, EQUATION, findings)
    assert [finding.what for finding in findings] == ([message] if message else [])


@pytest.mark.parametrize("answers", ["timestep", "nothing", "all"])
def test_a_search_that_misses_a_word_or_finds_nonsense_is_found(page, tmp_path, answers):
    hit = {"timestep": 'query === "timestep"', "nothing": "false", "all": "true"}[answers]
    script = f"""<form><input name="q" aria-label="search"></form>
    <div id="search-results"></div><script>
      const query = new URLSearchParams(location.search).get("q");
      const hits = {hit} ? '<ul><li><a href="search.html">Page</a></li></ul>' : "";
      const results = document.querySelector("#search-results");
      if (query) results.innerHTML = "<p>Search finished</p>" + hits;</script>"""
    write(tmp_path, {"search.html": script})
    findings = []
    with browser_tool.served(tmp_path) as base:
        look.search(page, base, findings)
    assert [finding.what for finding in findings] == {
        "timestep": [],
        "nothing": ["timestep is not found"],
        "all": ["qwrtzpfg is found"],
    }[answers]


def test_a_folder_without_a_book_and_a_machine_without_a_browser_get_one_line(
    tmp_path, monkeypatch
):
    with pytest.raises(SystemExit, match=r"there is no index\.html; run `make book` first"):
        look.main(html=tmp_path, shots=tmp_path)
    monkeypatch.setattr(browser_tool, "installed", lambda: None)
    with (
        pytest.raises(SystemExit, match="there is no Chromium; `apt-get install chromium`"),
        browser_tool.chromium(),
    ):
        pass


@pytest.mark.parametrize(
    ("old", "new", "figures", "pixels", "message"),
    [
        ("", "", 2, 1, None),
        ("", "", 2, 2, "has 1 pictures of 2"),
        ("", "", 3, 1, "has 2 described figures of 3"),
        ('alt="A line."', 'alt=""', 2, 1, "has 1 described figures of 2"),
        ("(3)", "(4)", 2, 1, "no Eq. 3 where its links lead"),
        ("Text", "see ??", 2, 1, "unresolved references on pages \\[1\\]"),
        ('"#equation-eq-x"', '"nowhere.html"', 2, 1, "a link that leads nowhere"),
    ],
)
def test_a_print_that_lacks_something_is_refused(
    page, tmp_path, old, new, figures, pixels, message
):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "dot.png")
    body = (
        '<p>Text</p><a href="#equation-eq-x">Eq. (3)</a><p id="equation-eq-x">x = y (3)</p>'
        '<img src="dot.png" alt="A dot."><img src="line.svg" alt="A line.">'
    )
    (tmp_path / "line.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0L9 9"/></svg>'
    )
    write(tmp_path, {"book.html": body.replace(old, new) if old else body})
    with browser_tool.served(tmp_path) as base:
        page.goto(base + "book.html")
        page.pdf(path=tmp_path / "book.pdf", outline=True, tagged=True)
    if message:
        with pytest.raises(ValueError, match=message):
            pdf.check_print(PdfReader(tmp_path / "book.pdf"), [EQUATION], figures, pixels)
    else:
        pdf.check_print(PdfReader(tmp_path / "book.pdf"), [EQUATION], figures, pixels)
