"""Prints the built book as a PDF with Chromium, without TeX.

    python book/pdf.py     after book/build.py; writes _build/book/asddim.pdf

The PDF has a title, contents with page numbers, bookmarks, every figure, and working links. A
slider is printed at its first position, with its sentence. Folded code is left out, except the
solutions. It needs what book/look.py needs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
import yaml
from browser import JS, chromium, served, settle
from look import ROOT
from playwright.sync_api import Page
from pypdf import PdfReader
from pypdf.generic import Destination

STAGE = ROOT / "_build" / "book"
SINGLE, PDF = STAGE / "_build" / "singlehtml", STAGE / "asddim.pdf"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

PREPARE = (JS / "prepare.js").read_text()
WIDE = (JS / "wide.js").read_text()
NUMBER = (JS / "number.js").read_text()


@app.command()
def main() -> None:
    """Prints the book, and checks the PDF."""
    if not (STAGE / "_config.yml").exists():
        raise SystemExit(f"{STAGE.relative_to(ROOT)} is empty; run `make book` first")
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["-n", "-W", "--keep-going", "--builder", "singlehtml"]
    subprocess.run([str(program), "build", str(STAGE), *options], check=True)
    # The page is moved one folder up, since it names its files from there.
    text = (SINGLE / "chapters" / "start.html").read_text()
    (SINGLE / "book.html").write_text(text.replace('href="chapters/start.html#', 'href="#'))
    config = yaml.safe_load((STAGE / "_config.yml").read_text())
    with served(SINGLE) as base, chromium() as browser:
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(600_000)  # the whole book is one page, with all its formulas
        page.goto(base + "book.html")
        settle(page)
        page.evaluate(PREPARE, {"title": config["title"], "author": config["author"]})
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 643, "height": 960})  # A4 within its margins
        settle(page)
        wide = page.evaluate(WIDE)
        if wide:
            raise ValueError(f"{len(wide)} things are wider than the paper: {'; '.join(wide[:3])}")
        printed(page)
        page.evaluate(NUMBER, headings(PdfReader(PDF)))
        printed(page)
    reader, (all_figures, pixels) = PdfReader(PDF), figures()
    equations = yaml.safe_load((ROOT / "book" / "equations.yml").read_text())
    check_print(reader, equations, all_figures, pixels)
    print(
        f"{PDF.relative_to(ROOT)}: {len(reader.pages)} pages, {all_figures} figures and sliders, "
        f"{PDF.stat().st_size / 1e6:.1f} MB"
    )


def printed(page: Page) -> None:
    """Writes the page as a PDF."""
    foot = (
        '<p style="width: 100%; text-align: center; font: 8pt sans-serif">'
        '<span class="pageNumber"></span></p>'
    )
    margins = {"display_header_footer": True, "header_template": "<p></p>", "footer_template": foot}
    page.pdf(
        path=PDF,
        prefer_css_page_size=True,
        print_background=True,
        outline=True,
        tagged=True,
        **margins,
    )


def headings(reader: PdfReader) -> list[int]:
    """The pages of the chapters and their sections, in order, as the bookmarks give them."""

    def walk(entries: list[Any], depth: int) -> list[int]:
        numbers: list[int] = []
        for entry in entries:
            if isinstance(entry, Destination):
                if entry.title != "Exercises":
                    numbers.append(reader.get_destination_page_number(entry) + 1)
            elif depth < 2:
                numbers += walk(entry, depth + 1)
        return numbers

    return walk(reader.outline, 1)


def figures() -> tuple[int, int]:
    """The number of figures in the executed chapters, and how many of them are of pixels.

    A slider counts as one figure, of pixels.
    """
    drawn = pixels = 0
    for file in (STAGE / "chapters").glob("*.ipynb"):
        for cell in json.loads(file.read_text())["cells"]:
            for output in cell.get("outputs", []):
                data = json.dumps(output.get("data", {}))
                if '"image/svg+xml"' in data:
                    drawn += 1
                elif '"image/png"' in data or "asddim-explorer" in data:
                    pixels += 1
    return drawn + pixels, pixels


def described(reader: PdfReader) -> int:
    """The number of figures in a tagged PDF that have an alternative text."""
    count, waiting = 0, [reader.trailer["/Root"]["/StructTreeRoot"]]
    while waiting:
        part = waiting.pop().get_object()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            count += part.get("/S") == "/Figure" and "/Alt" in part
            waiting += [part["/K"]] if "/K" in part else []
    return count


def check_print(
    reader: PdfReader, equations: list[dict[str, Any]], figures: int, pixels: int
) -> None:
    """Raises ValueError if a figure, an equation's number or a link's target is missing.

    Of `figures`, `pixels` are pictures in the PDF; it holds the others as drawings.
    """
    pictures = sum(len(page.images.keys()) for page in reader.pages)
    if pictures < pixels:
        raise ValueError(f"the PDF has {pictures} pictures of {pixels}")
    if described(reader) < figures:
        raise ValueError(f"the PDF has {described(reader)} described figures of {figures}")
    text = [page.extract_text() for page in reader.pages]
    doubtful = [
        k + 1
        for k, page in enumerate(text)
        if re.search(r"\?\?|\[\?\]|\{eq\}|\{ref\}|\{doc\}", page)
    ]
    if doubtful:
        raise ValueError(f"the PDF has unresolved references on pages {doubtful}")
    places = reader.named_destinations
    for page_number, page in enumerate(reader.pages, 1):
        for note in (one.get_object() for one in page.get("/Annots", [])):
            target, action = note.get("/Dest"), note.get("/A", {})
            if (isinstance(target, str) and target not in places) or "127.0.0.1" in str(
                action.get("/URI", "")
            ):
                raise ValueError(
                    f"page {page_number} of the PDF has a link that leads nowhere: "
                    f"{target or action['/URI']}"
                )
    for equation in equations:
        place = places.get(f"equation-{equation['label']}") or places.get(
            f"/equation-{equation['label']}"
        )
        if (
            place is None
            or f"({equation['number']})" not in text[reader.get_destination_page_number(place)]
        ):
            raise ValueError(f"the PDF has no Eq. {equation['number']} where its links lead")


if __name__ == "__main__":
    app()
