"""book/look.py finds each fault in pages that are made to have it, and none in a clean one;
book/pdf.py refuses a print that lacks something.
"""

import importlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from pypdf import PdfReader

from asddim_lib.widgets import explore

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("look")  # the pages are made and looked at once
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
FAULTS = {
    "file": ("link", {"body": '<a href="nowhere.html">There</a>'}),
    "anchor": ("link", {"body": '<a href="clean.html#nowhere">There</a>'}),
    "missing": ("request", {"head": '<link rel="stylesheet" href="nowhere.css">'}),
    "outside": ("request", {"head": '<script src="https://example.org/script.js"></script>'}),
    "console": ("console", {"head": '<script>console.error("a fault")</script>'}),
    "exception": ("console", {"head": '<script>throw new Error("a fault")</script>'}),
    "theme": ("theme", {"root": ' data-theme="light"'}),
    "alt": ("picture", {"body": '<img src="dot.png">'}),
    "named": ("picture", {"body": '<img src="dot.png" alt="dot.png">'}),
    "broken": ("picture", {"body": '<img src="nowhere.png" alt="A dot.">'}),
    "math": ("math", {"body": '<span class="math">\\(x\\)</span>'}),
    "width": ("width", {"body": '<div style="width: 900px">wide</div>'}),
    "clipped": (
        "width",
        {"body": '<div style="overflow: hidden"><div style="width: 900px">wide</div></div>'},
    ),
    "label": ("axe", {"body": "<input>"}),
    "contrast": ("axe", {"body": '<p style="color: #ccc; background: #fff">pale</p>'}),
    "outline": ("focus", {"body": '<a href="clean.html" style="outline: none">There</a>'}),
    "hidden": (
        "focus",
        {"body": '<a href="clean.html" style="position: absolute; left: 0; top: -99px">There</a>'},
    ),
    "slider": ("slider", {"body": SLIDER}),
}
EQUATION = {"number": 3, "label": "eq-x", "function": "asddim_lib.core.step.ddim_step"}
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


@pytest.fixture(scope="module")
def look():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "book")
        module, browser = importlib.import_module("look"), importlib.import_module("browser")
    if not browser.installed():
        pytest.skip("there is no Chromium; `apt-get install chromium` brings one")
    return module


def write(folder, pages):
    for name, body in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            body if body.startswith("<meta") else PAGE.format(root="", head="", body=body)
        )


@pytest.fixture(scope="module")
def found(look, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    matplotlib.use("Agg")

    def draw(size):
        figure, axis = matplotlib.pyplot.subplots(figsize=(2, 2))
        axis.plot([0], [0], "o", markersize=size)
        return figure, f"A dot of size {size}."

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "dot.png")
    scrolls = (
        '<div style="overflow-x: auto" tabindex="0">'
        '<div style="width: 900px">wide, and scrolls</div></div>'
    )
    sliders = explore(draw, title="A dot", size=(5, 9, 20)).data
    place = '<a href="#place">There</a><p id="place">Text</p>'
    clean = f'<img src="dot.png" alt="A dot.">{place}{scrolls}{sliders}'
    write(folder, {"clean.html": clean})
    for name, (_, given) in FAULTS.items():
        (folder / f"{name}.html").write_text(
            PAGE.format(**{"root": "", "head": "", "body": "", **given})
        )
    return look.look(folder, tmp_path_factory.mktemp("shots"))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_on_its_page(found, name):
    assert FAULTS[name][0] in {
        finding.kind for finding in found if finding.page.startswith(f"{name}.html")
    }


def test_a_clean_page_has_no_finding(found):
    assert [finding for finding in found if finding.page.startswith("clean.html")] == []


def read(look, folder):
    with look.served(folder) as base, look.chromium() as browser:
        page, found = browser.new_page(), []
        look.reader(page, base, EQUATION, found)
    return [finding.what for finding in found]


@pytest.mark.parametrize(
    ("page", "old", "new", "said"),
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
    look, tmp_path, page, old, new, said
):
    write(tmp_path, {**BOOK, page: BOOK[page].replace(old, new) if old else BOOK[page]})
    assert read(look, tmp_path) == ([said] if said else [])


@pytest.mark.parametrize("answers", ["timestep", "nothing", "all"])
def test_a_search_that_misses_a_word_or_finds_nonsense_is_found(look, tmp_path, answers):
    hit = {"timestep": 'query === "timestep"', "nothing": "false", "all": "true"}[answers]
    script = f"""<form><input name="q" aria-label="search"></form>
    <div id="search-results"></div><script>
      const query = new URLSearchParams(location.search).get("q");
      const hits = {hit} ? '<ul><li><a href="search.html">Page</a></li></ul>' : "";
      const results = document.querySelector("#search-results");
      if (query) results.innerHTML = "<p>Search finished</p>" + hits;</script>"""
    write(tmp_path, {"search.html": script})
    with look.served(tmp_path) as base, look.chromium() as browser:
        found = []
        look.search(browser.new_page(), base, found)
    assert [finding.what for finding in found] == {
        "timestep": [],
        "nothing": ["timestep is not found"],
        "all": ["qwrtzpfg is found"],
    }[answers]


def test_a_folder_without_a_book_and_a_machine_without_a_browser_get_one_line(
    look, tmp_path, monkeypatch
):
    with pytest.raises(SystemExit, match=r"there is no index\.html; run `make book` first"):
        look.main(html=tmp_path, shots=tmp_path)
    monkeypatch.setattr(importlib.import_module("browser"), "installed", lambda: None)
    with (
        pytest.raises(SystemExit, match="there is no Chromium; `apt-get install chromium`"),
        look.chromium(),
    ):
        pass


@pytest.mark.parametrize(
    ("old", "new", "figures", "said"),
    [
        ("", "", 1, None),
        ("", "", 2, "has 1 pictures of 2"),
        ("(3)", "(4)", 1, "no Eq. 3 where its links lead"),
        ("Text", "see ??", 1, "unresolved references on pages \\[1\\]"),
        ('"#equation-eq-x"', '"nowhere.html"', 1, "a link that leads nowhere"),
    ],
)
def test_a_print_that_lacks_something_is_refused(look, tmp_path, old, new, figures, said):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "book")
        pdf = importlib.import_module("pdf")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "dot.png")
    body = (
        '<p>Text</p><a href="#equation-eq-x">Eq. (3)</a><p id="equation-eq-x">x = y (3)</p>'
        '<img src="dot.png" alt="A dot.">'
    )
    write(tmp_path, {"book.html": body.replace(old, new) if old else body})
    with look.served(tmp_path) as base, look.chromium() as browser:
        page = browser.new_page()
        page.goto(base + "book.html")
        page.pdf(path=tmp_path / "book.pdf", outline=True, tagged=True)
    if said:
        with pytest.raises(ValueError, match=said):
            pdf.check_print(PdfReader(tmp_path / "book.pdf"), [EQUATION], figures)
    else:
        pdf.check_print(PdfReader(tmp_path / "book.pdf"), [EQUATION], figures)
