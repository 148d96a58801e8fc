"""The page of the grid editor: the chapter's text with the editor's files written into it.

The scripts stand in the page, as the sliders' do, so that it works when it is opened as a file.
"""

from __future__ import annotations

import re

from chapter import BOOK

EDITOR = BOOK / "js" / "editor"
SCRIPTS = ("maths.js", "view.js", "controls.js")


def editor_page() -> str:
    """The page `editor`, in MyST, with the figure in place of its mark."""
    text = (BOOK / "chapters" / "editor.md").read_text()
    return text.replace("{editor}", f"```{{raw}} html\n{figure()}\n```")


def figure() -> str:
    """The editor as HTML that needs nothing else; comments and indentation stay behind."""
    files = {name: (EDITOR / name).read_text() for name in (*SCRIPTS, "data.json", "editor.css")}
    scripts = "".join(f"<script>\n{files[name]}</script>\n" for name in SCRIPTS)
    data = f'<script type="application/json" id="grid-editor-data">\n{files["data.json"]}</script>'
    style = f"<style>\n{files['editor.css']}</style>"
    whole = "\n".join([style, (EDITOR / "editor.html").read_text(), data, scripts])
    return re.sub(r"^\s+", "", re.sub(r"/\*.*?\*/", "", whole, flags=re.DOTALL), flags=re.MULTILINE)
