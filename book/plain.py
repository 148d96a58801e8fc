"""MyST as the plain Markdown and Python that every notebook shows."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from citations import cite
from links import chapter_link, equation_link, equations, pages, targets

SYNTAX = re.compile(
    # A fence or a directive.
    r"^(?P<mark>`{3,}|~{3,}|:{3,})(?P<info>[^\n]*)\n(?P<body>(?:[^\n]*\n)*?)(?P=mark)[ \t]*$"
    r"|^\$\$(?P<display>(?:(?!\$\$).)+)\$\$(?:[ \t]*\((?P<label>[^)\s]+)\))?[ \t]*$"
    r"|^\([^)\s]+\)=[ \t]*\n?"  # a target
    r"|\{(?P<role>[a-z:]+)\}`(?P<text>[^`]+)`"
    r"|(?P<tick>`+)(?:(?!(?P=tick)).)+(?P=tick)"
    r"|(?<![\\$])\$(?P<inline>[^$]+)\$",
    re.MULTILINE | re.DOTALL,
)
#: A role in what a code cell prints.
CODE_ROLE = re.compile(
    r"(?P<open>\{\{?)(?P<role>eq|doc|ref|term|cite|cite:[a-z]+|py:[a-z]+)\}\}?`(?P<text>[^`]+)`"
)
#: Directives that are quoted under their title.
TITLED = ("admonition", "dropdown", "grid-item-card")


def markdown(text: str, chapter: str) -> str:
    """MyST as plain Markdown. Syntax without a translation stays as it is."""
    return SYNTAX.sub(lambda match: _translate(match, chapter), text).strip()


def _translate(match: re.Match[str], chapter: str) -> str:
    part = match.groupdict()
    if part["mark"]:
        return directive(match, chapter)
    if part["role"]:
        return role(part["role"], " ".join(part["text"].split()), chapter) or match[0]
    if part["label"] in equations():
        number = equations()[part["label"]]["number"]
        return f"$${part['display'].rstrip()} \\tag{{{number}}}\n$$"
    if part["inline"]:
        return " ".join(match[0].split("\n"))  # Colab ends a formula at the end of its line
    return match[0] if part["display"] or part["tick"] else ""


def directive(match: re.Match[str], chapter: str) -> str:
    """An admonition or a card as a quotation under its title, and a grid of cards as its cards.

    Other directives stay unchanged.
    """
    opening = re.match(r"\s*\{([\w-]+)\}\s*(.*)", match["info"])
    if not opening:
        return match[0]
    kind, argument = opening.groups()
    body = re.sub(r"\A(?::[\w-]+:.*\n|---\n(?:.*\n)*?---\n)*\n*", "", match["body"])
    if kind == "grid":
        return markdown(body, chapter)
    if kind not in TITLED:
        return match[0]
    quotation = f"**{argument}**\n\n{markdown(body, chapter)}"
    return "\n".join(f"> {line}".rstrip() for line in quotation.splitlines())


def role(name: str, text: str, chapter: str) -> str | None:
    """The plain text or link for a role; None if the role or its target is unknown."""
    titled = re.fullmatch(r"(.+?)\s*<(.+)>", text)
    title, target = titled.groups() if titled else (None, text)
    if name.startswith("py:"):
        short = target.rsplit(".", 1)[-1] if target.startswith("~") else target
        return f"`{title or short}`"
    if name.startswith("cite"):
        style = name.removeprefix("cite").removeprefix(":")
        return cite(style, [key.strip() for key in text.split(",")])
    if name == "term":
        return title or target
    if name == "eq" and target in equations():
        return equation_link(target, chapter)
    if name == "doc" and target in pages():
        return chapter_link(target, title)
    if name == "ref" and target in targets():
        page, heading = targets()[target]
        if page != chapter:
            return chapter_link(page, title or heading)
        return (title or heading) if heading else title and f"*{title} below.*"
    return None


def code(source: str, chapter: str) -> str:
    """Python whose strings print no roles.

    An f-string may fill in a role's target. Such a role becomes a look-up in a table of links,
    which is put before the code.
    """
    tables: dict[str, dict[str, str]] = {}

    def translate(match: re.Match[str]) -> str:
        name, text = match["role"], match["text"]
        filled = re.fullmatch(r"~?\{([^{}]+)\}", text)
        if filled and name.startswith("py:"):
            return f"`{{{filled[1]}}}`"
        if filled and name in TABLES:
            table, links = TABLES[name]
            tables[table] = links(chapter)
            return f"{{{table}[{filled[1]}]}}"
        plain = role(name, text, chapter)
        return plain if plain and _parses(source.replace(match[0], plain)) else match[0]

    translation = CODE_ROLE.sub(translate, source)
    return "".join(_assignment(name, table) for name, table in tables.items()) + translation


def _equation_links(chapter: str) -> dict[str, str]:
    return {label: equation_link(label, chapter) for label in equations()}


def _chapter_links(chapter: str) -> dict[str, str]:
    return {page: chapter_link(page) for page in pages()}


#: The table of links for a role that an f-string fills in, and what makes it.
TABLES: dict[str, tuple[str, Callable[[str], dict[str, str]]]] = {
    "eq": ("EQUATIONS", _equation_links),
    "doc": ("CHAPTERS", _chapter_links),
}


def _assignment(name: str, table: dict[str, str]) -> str:
    lines = "".join(f"    {key!r}: {link!r},\n" for key, link in table.items())
    return f"{name} = {{\n{lines}}}\n"


def _parses(source: str) -> bool:
    """Whether a cell is valid Python, apart from IPython's magics."""
    lines = [line for line in source.splitlines() if not line.startswith(("%", "!"))]
    try:
        ast.parse("\n".join(lines))
    except SyntaxError:
        return False
    return True
