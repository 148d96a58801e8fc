"""Finds syntax that MyST reads and a plain notebook would show as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml
from links import BOOK, chapters
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser

EXTENSIONS = {
    *yaml.safe_load((BOOK / "_config.yml").read_text())["parse"]["myst_enable_extensions"],
    "substitution",
}


def leftovers(text: str) -> list[str]:
    """The roles, directives, targets, labels, footnotes and links within the book in a text."""
    parser = create_md_parser(MdParserConfig(enable_extensions=EXTENSIONS), RendererHTML)
    return [source for token in _flat(parser.parse(text)) if (source := _source(token))]


def _flat(tokens: list[Token]) -> Iterator[Token]:
    """The tokens and all their descendants, in order."""
    for token in tokens:
        yield token
        yield from _flat(token.children or [])


def _source(token: Token) -> str | None:
    """The source of a token that only MyST reads; None for a token of plain Markdown."""
    address = token.attrs.get("href", token.attrs.get("src"))
    if address is not None:
        beside = str(address).removesuffix(".ipynb") in chapters()
        return None if beside or re.match(r"[a-z]+:", str(address)) else str(address)
    info, content = token.info.strip(), token.content
    match token.type:
        case "colon_fence":
            return info
        case "fence":
            return info if info.startswith("{") else None
        case "myst_role":
            return f"{{{token.meta['name']}}}`{content}`"
        case "myst_target":
            return f"({content})="
        case "myst_line_comment":
            return f"%{content}"
        case "myst_block_break":
            return "+++"
        case "math_block_label":
            return f"({token.info})"
        case "footnote_ref":
            return f"[^{token.meta['label']}]"
        case "substitution_inline" | "substitution_block":
            return f"{{{{ {content} }}}}"
    return None
