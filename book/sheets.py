"""The built book's files: what each page links to, and whether the links hold."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit


class Finding(NamedTuple):
    kind: str
    page: str
    what: str


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
