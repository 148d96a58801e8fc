"""The HTML files of the built book, and the links between them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Finding(NamedTuple):
    """A fault: its kind (a key of look.KINDS), its page, and what it is."""

    kind: str
    page: str
    what: str


class Sheet(HTMLParser):
    """The targets of an HTML file's links, and the anchors in it."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.leads_on = False
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.targets += [values[name] for name in ("href", "src") if name in values]
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if values.get("http-equiv", "").lower() == "refresh":
            self.leads_on = True
            self.targets.append(values["content"].partition("url=")[2])


def links(folder: Path, sheets: dict[str, Sheet]) -> list[Finding]:
    """The findings for links that lead to no file, or to no anchor in one."""
    findings = []
    for path, origin in sheets.items():
        for target in dict.fromkeys(origin.targets):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            page = folder / path
            file = (page.parent / unquote(parts.path) if parts.path else page).resolve()
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                findings.append(Finding("link", path, f"{target} leads to no file"))
            elif parts.fragment and file.suffix == ".html":
                sheet = sheets[file.relative_to(folder.resolve()).as_posix()]
                if unquote(parts.fragment) not in sheet.anchors:
                    findings.append(
                        Finding("link", path, f"{target} leads to no place on its page")
                    )
    return findings
