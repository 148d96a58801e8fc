"""Where things of the book are: the repository, each page, each equation, and links to them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"


@cache
def address() -> str:
    """The public address of the repository, empty until there is one.

    It stands in pyproject.toml (`project.urls.Repository`) and nowhere else.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project.get("urls", {}).get("Repository", "")


def footer(text: str) -> str:
    """A text with the public address, if there is one, where it says {repository}."""
    place = f' (<a href="{address()}">repository</a>)' if address() else ""
    return text.replace("{repository}", place)


def repository() -> str:
    """The repository as "owner/name"."""
    return address().removeprefix("https://github.com/")


def colab_link(chapter: str) -> str:
    """The address at which Colab opens a chapter's notebook, empty without a public address.

    It reads the branch `notebooks`, which the workflow `pages` fills.
    """
    github = "https://colab.research.google.com/github"
    return f"{github}/{repository()}/blob/notebooks/{chapter}.ipynb" if address() else ""


def page_link(chapter: str) -> str:
    """The address of a chapter's rendered page, empty without a public address."""
    owner, _, name = repository().partition("/")
    return f"https://{owner}.github.io/{name}/chapters/{chapter}.html" if address() else ""


@cache
def pages() -> dict[str, str]:
    """The source of each page of the book by its name, in the order of the contents."""
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    sources = {name: BOOK / "chapters" / f"{name}.md" for name in _files(contents)}
    return {name: source.read_text() if source.exists() else "" for name, source in sources.items()}


def _files(entry: Any) -> Iterator[str]:
    """The names of the pages below an entry of the table of contents."""
    for key, value in entry.items() if isinstance(entry, dict) else enumerate(entry):
        if key in ("root", "file"):
            yield Path(value).name
        elif isinstance(value, dict | list):
            yield from _files(value)


def chapters() -> list[str]:
    """The pages that have code, each of which becomes a notebook."""
    return [name for name, source in pages().items() if "```{code-cell}" in source]


@cache
def equations() -> dict[str, dict[str, Any]]:
    """The entries of the equation contract by label."""
    contract = yaml.safe_load((BOOK / "equations.yml").read_text())
    return {equation["label"]: equation for equation in contract}


@cache
def targets() -> dict[str, tuple[str, str | None]]:
    """The page of each target and the heading after it; a solution's code has no heading."""
    return {
        label: (name, heading)
        for name, source in pages().items()
        for label, heading in re.findall(r"^\((\S+)\)=\n+(?:#+ (.+))?", source, re.MULTILINE)
    }


def notebook_link(chapter: str) -> str:
    """Where a notebook links to another one: at Colab, or else beside it."""
    return colab_link(chapter) or f"{chapter}.ipynb"


def chapter_link(name: str, text: str | None = None) -> str:
    """A Markdown link to a chapter's notebook, or to its page if it has no code.

    Without a public address such a page has no link.
    """
    heading = re.search(r"^# (.+)$", pages()[name], re.MULTILINE)
    title = text or (heading[1] if heading else name)
    link = notebook_link(name) if name in chapters() else page_link(name)
    return f"[{title}]({link})" if link else title


def equation_link(label: str, chapter: str) -> str:
    """An equation's number, with a link unless the equation is in `chapter` itself."""
    equation = equations()[label]
    number = f"Eq. ({equation['number']})"
    home = equation["chapter"]
    return number if home == chapter else f"[{number}]({notebook_link(home)})"
