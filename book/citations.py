"""Citations in plain Markdown: authors, year, and a link to the work."""

from __future__ import annotations

from functools import cache
from urllib.parse import quote

from links import BOOK
from pybtex.database import BibliographyData, Entry, parse_file

#: What stands before a field of an entry in the address of its work, the best field first.
PREFIXES = {"url": "", "doi": "https://doi.org/", "eprint": "https://arxiv.org/abs/"}


@cache
def bibliography() -> BibliographyData:
    """The works that the chapters cite."""
    source = BOOK / "references.bib"
    return parse_file(str(source)) if source.exists() else BibliographyData()


def cite(style: str, keys: list[str]) -> str:
    """Authors and years with links, as `cite:p` (in brackets) or `cite:t` (in the text) set them.

    `style` is "p" or "t". An unknown key stays unchanged.
    """
    citations = [_citation(style, key) for key in keys]
    return ", ".join(citations) if style == "t" else f"({'; '.join(citations)})"


def _citation(style: str, key: str) -> str:
    work = bibliography().entries.get(key)
    if not work:
        return key
    year = work.fields.get("year", "n.d.")
    text = f"{authors(work)} ({year})" if style == "t" else f"{authors(work)}, {year}"
    prefix = next((name for name in PREFIXES if name in work.fields), None)
    if not prefix:
        return text
    return f"[{text}]({quote(PREFIXES[prefix] + work.fields[prefix], safe=':/')})"


def authors(work: Entry) -> str:
    """A work's authors by last name: one, two, or the first and "et al."."""
    people = work.persons.get("author") or work.persons.get("editor") or []
    names = [
        " ".join(str(part) for part in (*person.rich_prelast_names, *person.rich_last_names))
        for person in people
    ] or [work.fields.get("title", work.key)]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
