"""Makes plain notebooks of the chapters, for Colab: `python book/colab.py` writes them into _build/colab.

Colab shows MyST as it is written. So roles, targets, labels and directives are translated into what every notebook shows, and whatever is left
of them is refused. A first cell fetches the library and the records, from the commit that the notebook was made from.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jupytext
import nbformat
import yaml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from myst_parser.config.main import MdParserConfig
from myst_parser.parsers.mdit import create_md_parser
from pybtex.database import BibliographyData, Entry, parse_file

ROOT = Path(__file__).parents[1]
BOOK, OUT = ROOT / "book", ROOT / "_build" / "colab"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
EXTENSIONS = {
    *yaml.safe_load((BOOK / "_config.yml").read_text())["parse"]["myst_enable_extensions"],
    "substitution",
}
SYNTAX = re.compile(
    r"^(?P<mark>`{3,}|~{3,}|:{3,})(?P<info>[^\n]*)\n(?P<body>(?:[^\n]*\n)*?)(?P=mark)[ \t]*$"  # a fence, or a directive
    r"|^\$\$(?P<display>(?:(?!\$\$).)+)\$\$(?:[ \t]*\((?P<label>[^)\s]+)\))?[ \t]*$"
    r"|^\([^)\s]+\)=[ \t]*\n?"  # a target
    r"|^%[^\n]*\n?"  # a comment
    r"|\{(?P<role>[a-z:]+)\}`(?P<text>[^`]+)`"
    r"|(?P<tick>`+)(?:(?!(?P=tick)).)+(?P=tick)"
    r"|(?<![\\$])\$(?P<inline>[^$]+)\$",
    re.MULTILINE | re.DOTALL,
)
CODE_ROLE = re.compile(
    r"(?P<open>\{\{?)(?P<role>eq|doc|ref|term|cite|cite:[a-z]+|py:[a-z]+)\}\}?`(?P<text>[^`]+)`"
)  # in what a cell prints
TABLES = {"eq": "EQUATIONS", "doc": "CHAPTERS"}


def main() -> None:
    """Writes the notebook of every chapter that has code."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    if changed:
        print(
            f"not all is committed: the notebooks will fetch the library as it is in {commit[:8]}"
        )
    for file in write(OUT, commit):
        print(file.relative_to(ROOT))


def write(out: Path, commit: str) -> list[Path]:
    """Writes the notebooks into the folder `out`, removes others there, and returns their paths. Raises ValueError as `notebook` does."""
    made = {
        f"{name}.ipynb": nbformat.writes(
            notebook(name, (BOOK / "chapters" / f"{name}.md").read_text(), commit)
        )
        for name in chapters()
    }
    out.mkdir(parents=True, exist_ok=True)
    for file in out.glob("*.ipynb"):
        file.unlink()
    for name, text in made.items():
        (out / name).write_text(text + "\n")
    return [out / name for name in made]


# where things are


@cache
def address() -> str:
    """The public address of the repository: it stands in pyproject.toml, and nowhere else."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def colab_link(chapter: str) -> str:
    """Where Colab opens a chapter: from the branch `notebooks`, which the workflow `pages` fills."""
    return f"https://colab.research.google.com/github/{address().removeprefix('https://github.com/')}/blob/notebooks/{chapter}.ipynb"


def page_link(chapter: str) -> str:
    """Where a chapter's rendered page is."""
    owner, name = address().removeprefix("https://github.com/").split("/")
    return f"https://{owner}.github.io/{name}/chapters/{chapter}.html"


@cache
def pages() -> dict[str, str]:
    """The source of each page of the book, by its name, in the order of the contents."""

    def files(entry: Any) -> Iterator[str]:
        for key, value in entry.items() if isinstance(entry, dict) else enumerate(entry):
            if key in ("root", "file"):
                yield Path(value).name
            elif isinstance(value, dict | list):
                yield from files(value)

    sources = {
        name: BOOK / "chapters" / f"{name}.md"
        for name in files(yaml.safe_load((BOOK / "_toc.yml").read_text()))
    }
    return {name: source.read_text() if source.exists() else "" for name, source in sources.items()}


def chapters() -> list[str]:
    """The pages that have code, each of which becomes a notebook."""
    return [name for name, source in pages().items() if "```{code-cell}" in source]


@cache
def equations() -> dict[str, dict[str, Any]]:
    """The equation contract by label."""
    return {
        equation["label"]: equation
        for equation in yaml.safe_load((BOOK / "equations.yml").read_text())
    }


@cache
def targets() -> dict[str, tuple[str, str | None]]:
    """The page of each target, and the heading that follows it: none before a solution's code."""
    return {
        label: (name, heading)
        for name, source in pages().items()
        for label, heading in re.findall(r"^\((\S+)\)=\n+(?:#+ (.+))?", source, re.MULTILINE)
    }


@cache
def bibliography() -> BibliographyData:
    """What the chapters cite."""
    source = BOOK / "references.bib"
    return parse_file(str(source)) if source.exists() else BibliographyData()


# a chapter as a notebook


def notebook(chapter: str, source: str, commit: str) -> nbformat.NotebookNode:
    """The notebook of a chapter's source. Raises ValueError that names chapter and line when MyST is left that has no translation."""
    read = jupytext.reads(source, fmt="md:myst")
    cells, solution = [], 0
    for cell in read.cells:
        tags = cell.metadata.get("tags", [])
        solution += "solution" in tags
        if cell.cell_type == "markdown":
            text = markdown(cell.source, chapter)
            refuse(leftovers(text), chapter, source)
            cells += [nbformat.v4.new_markdown_cell(text)] if text else []
        else:
            cells.append(code_cell(cell, chapter, solution))
            refuse([found[0] for found in CODE_ROLE.finditer(cells[-1].source)], chapter, source)
    cells[0].source = under_title(
        cells[0].source, f"[![Open in Colab]({BADGE})]({colab_link(chapter)})"
    )
    cells.insert(1, nbformat.v4.new_code_cell(setup(commit), metadata={"cellView": "form"}))
    for place, cell in enumerate(cells):
        cell.id = f"{chapter}-{place}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": kernel,
            "language_info": {"name": "python"},
            "colab": {"name": f"{chapter}.ipynb"},
        },
    )


def under_title(text: str, line: str) -> str:
    """A page's text with a line of its own under the title."""
    return re.sub(
        r"^# .*$", lambda title: f"{title[0]}\n\n{line}", text, count=1, flags=re.MULTILINE
    )


def setup(commit: str) -> str:
    """The first code cell: `setup_cell.py` with the repository's address and the commit."""
    return (
        (BOOK / "setup_cell.py")
        .read_text()
        .replace("{repository}", address())
        .replace("{commit}", commit)
        .strip()
    )


def code_cell(cell: nbformat.NotebookNode, chapter: str, solution: int) -> nbformat.NotebookNode:
    """A code cell as Colab folds it: what the page hides becomes a form, whose title is the figure's caption, or what the cell is for."""
    tags = cell.metadata.get("tags", [])
    hidden = "hide-input" in tags
    purpose = {
        "solution": f"Solution {solution}",
        "check": f"Check {solution}",
        "remove-output": "Preparation",
    }
    caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption")
    title = (
        caption or next((name for tag, name in purpose.items() if tag in tags), "Code")
        if caption or hidden
        else None
    )
    source = (
        re.sub(r"^live = False\b", "live = True", code(cell.source, chapter), flags=re.MULTILINE)
        if "parameters" in tags
        else code(cell.source, chapter)
    )
    metadata = {**({"tags": tags} if tags else {}), **({"cellView": "form"} if hidden else {})}
    return nbformat.v4.new_code_cell(
        f"# @title {title}\n{source}" if title else source, metadata=metadata
    )


# text


def markdown(text: str, chapter: str) -> str:
    """MyST as plain Markdown; what has no translation is left as it is."""
    return SYNTAX.sub(lambda found: _translated(found, chapter), text).strip()


def _translated(found: re.Match[str], chapter: str) -> str:
    part = found.groupdict()
    if part["mark"]:
        return directive(found, chapter)
    if part["role"]:
        return role(part["role"], " ".join(part["text"].split()), chapter) or found[0]
    if part["label"]:
        return (
            f"$${part['display'].rstrip()} \\tag{{{equations()[part['label']]['number']}}}\n$$"
            if part["label"] in equations()
            else found[0]
        )
    if part["inline"]:
        return " ".join(found[0].split("\n"))  # Colab ends a formula with its line
    return found[0] if part["display"] or part["tick"] else ""


def directive(found: re.Match[str], chapter: str) -> str:
    """An admonition as a quotation under its name or title, shown code as a plain fence; others are left."""
    named = re.match(r"\s*\{([\w-]+)\}\s*(.*)", found["info"])
    if not named:
        return found[0]
    kind, argument = named.groups()
    body = re.sub(r"\A(?::[\w-]+:.*\n|---\n(?:.*\n)*?---\n)*\n*", "", found["body"])
    if kind in ("code", "code-block"):
        return f"```{argument}\n{body}```"
    if kind in (
        "admonition",
        "attention",
        "caution",
        "danger",
        "dropdown",
        "error",
        "hint",
        "important",
        "note",
        "seealso",
        "tip",
        "warning",
    ):
        title = (
            argument
            if kind in ("admonition", "dropdown")
            else {"seealso": "See also"}.get(kind, kind.capitalize())
        )
        inside = body if argument == title else f"{argument}\n{body}"
        return "\n".join(
            f"> {line}".rstrip()
            for line in f"**{title}**\n\n{markdown(inside, chapter)}".splitlines()
        )
    return found[0]


def role(name: str, text: str, chapter: str) -> str | None:
    """What stands for a role: a link, a name or plain text. None for a role, or a thing it names, that is not known."""
    titled = re.fullmatch(r"(.+?)\s*<(.+)>", text)
    shown, target = titled.groups() if titled else (None, text)
    if name.startswith("py:"):
        return f"`{shown or (target.rsplit('.', 1)[-1] if target.startswith('~') else target)}`"
    if name.startswith("cite"):
        return cited(
            name.removeprefix("cite").removeprefix(":"), [key.strip() for key in text.split(",")]
        )
    if name in ("term", "abbr"):
        return shown or target
    if name == "math":
        return f"${text}$"
    if name == "eq" and target in equations():
        return equation_link(target, chapter)
    if name == "doc" and target in pages():
        return chapter_link(target, shown)
    if name == "ref" and target in targets():
        page, heading = targets()[target]
        if page != chapter:
            return chapter_link(page, shown or heading)
        return (shown or heading) if heading else shown and f"*{shown} below.*"
    return None


def chapter_link(name: str, shown: str | None = None) -> str:
    """A link to a chapter's notebook, or to its page where it has none."""
    heading = re.search(r"^# (.+)$", pages()[name], re.MULTILINE)
    return f"[{shown or (heading[1] if heading else name)}]({colab_link(name) if name in chapters() else page_link(name)})"


def equation_link(label: str, chapter: str) -> str:
    """An equation's number, with a link where it is another chapter's."""
    equation = equations()[label]
    return (
        f"Eq. ({equation['number']})"
        if equation["chapter"] == chapter
        else f"[Eq. ({equation['number']})]({colab_link(equation['chapter'])})"
    )


def cited(style: str, keys: list[str]) -> str:
    """Authors and years with links to the works, as `cite:p` (in brackets), `cite:t` (in the text) or `cite:alp` sets them; a key that is not known as it is."""
    found = {key: bibliography().entries.get(key) for key in keys}
    if style == "t":
        return ", ".join(
            _linked(f"{authors(work)} ({work.fields.get('year', 'n.d.')})", work) if work else key
            for key, work in found.items()
        )
    listed = "; ".join(
        _linked(f"{authors(work)}, {work.fields.get('year', 'n.d.')}", work) if work else key
        for key, work in found.items()
    )
    return listed if style == "alp" else f"({listed})"


def authors(work: Entry) -> str:
    """A work's authors by last name: one, two, or the first and others."""
    people = work.persons.get("author") or work.persons.get("editor") or []
    names = [
        " ".join(str(part) for part in (*one.rich_prelast_names, *one.rich_last_names))
        for one in people
    ] or [work.fields.get("title", work.key)]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} et al."


def _linked(text: str, work: Entry) -> str:
    starts = {"url": "", "doi": "https://doi.org/", "eprint": "https://arxiv.org/abs/"}
    link = next(
        (start + work.fields[field] for field, start in starts.items() if field in work.fields),
        None,
    )
    return f"[{text}]({quote(link, safe=':/')})" if link else text


# code that prints MyST


def code(source: str, chapter: str) -> str:
    """Python whose strings no longer print roles. One that an f-string fills in looks its link up in a table put before it."""
    tables = {}

    def plain(found: re.Match[str]) -> str:
        name, text = found["role"], found["text"]
        filled = re.fullmatch(r"~?\{([^{}]+)\}", text)
        if filled and name.startswith("py:"):
            return f"`{{{filled[1]}}}`"
        if filled and name in TABLES:
            known = (
                {label: equation_link(label, chapter) for label in equations()}
                if name == "eq"
                else {page: chapter_link(page) for page in pages()}
            )
            tables[TABLES[name]] = known
            return f"{{{TABLES[name]}[{filled[1]}]}}"
        made = role(name, text, chapter)
        return made if made and _parses(source.replace(found[0], made)) else found[0]

    translated = CODE_ROLE.sub(plain, source)
    return (
        "".join(
            f"{name} = {{\n"
            + "".join(f"    {key!r}: {link!r},\n" for key, link in known.items())
            + "}\n"
            for name, known in tables.items()
        )
        + translated
    )


def _parses(source: str) -> bool:
    try:
        ast.parse(
            "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))
        )
    except SyntaxError:
        return False
    return True


# what is left


def leftovers(text: str) -> list[str]:
    """What MyST, and nobody else, would read in a text: roles, directives, targets, labels, footnotes, links within the book."""
    parser = create_md_parser(MdParserConfig(enable_extensions=EXTENSIONS), RendererHTML)
    return [raw for token in _all(parser.parse(text)) if (raw := _raw(token))]


def _all(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all(token.children or [])


def _raw(token: Token) -> str | None:
    where = token.attrs.get("href", token.attrs.get("src"))
    if where is not None:
        return None if re.match(r"[a-z]+:", str(where)) else str(where)
    if token.type in ("fence", "colon_fence"):
        return (
            token.info.strip()
            if token.type == "colon_fence" or token.info.strip().startswith("{")
            else None
        )
    shapes = {
        "myst_role": lambda: f"{{{token.meta['name']}}}`{token.content}`",
        "myst_target": lambda: f"({token.content})=",
        "myst_line_comment": lambda: f"%{token.content}",
        "myst_block_break": lambda: "+++",
        "math_block_label": lambda: f"({token.info})",
        "footnote_ref": lambda: f"[^{token.meta['label']}]",
        "substitution_inline": lambda: f"{{{{ {token.content} }}}}",
        "substitution_block": lambda: f"{{{{ {token.content} }}}}",
    }
    return shapes[token.type]() if token.type in shapes else None


def refuse(found: list[str], chapter: str, source: str) -> None:
    """Raises ValueError that names chapter and line when anything was found."""
    if found:
        place = re.search(r"\s*".join(re.escape(word) for word in found[0].split()), source)
        line = source.count("\n", 0, place.start()) + 1 if place else "?"
        raise ValueError(
            f"book/chapters/{chapter}.md:{line} has {found[0]}, which Colab would show as it is; write it otherwise, or teach book/colab.py"
        )


if __name__ == "__main__":
    main()
