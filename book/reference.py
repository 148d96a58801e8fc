"""The pages of the API: one for each package, with an entry for each public module."""

from __future__ import annotations

import ast
from pathlib import Path

from chapter import BOOK, ROOT

#: Packages in reading order, with the titles of their pages.
PACKAGES = {
    "asddim_lib": "The ground floor",
    "asddim_lib/grids": "Grids",
    "asddim_lib/evidence": "What is measured on a model",
    "asddim_lib/schedulers": "Schedulers",
    "asddim_lib/guidance": "Guidance",
    "asddim_lib/pipeline": "Running a pipeline",
    "asddim_lib/tuning": "Tuning",
    "asddim_lib/metrics": "Metrics",
    "asddim_lib/models": "Models and prompts",
    "experiments": "Experiments and the book",
}
CONTENTS = "      - file: chapters/api\n"


def reference_pages() -> dict[str, str]:
    """The text of each page by its name: `api`, with a line for each module, and the packages'."""
    parts, lists = {}, []
    for folder, title in PACKAGES.items():
        files = sorted((ROOT / folder).glob("[!_]*.py"))
        public = {file: names for file in files if (names := public_names(file))}
        if public:
            entries = "\n\n".join(entry(file, names) for file, names in public.items())
            page = f"api/{Path(folder).name}"
            parts[page] = f"# {title}\n\n```{{eval-rst}}\n{entries}\n```\n"
            lines = [f"- {{py:mod}}`{module_of(file)}`: {summary(file)}" for file in public]
            lists.append("\n".join([f"## [{title}]({page}.md)", "", *lines]))
    text = (BOOK / "chapters" / "api.md").read_text().replace("{modules}", "\n\n".join(lists))
    return {"api": text, **parts}


def contents(text: str) -> str:
    """A table of contents with the packages' pages below `api`."""
    names = [name for name in reference_pages() if "/" in name]
    sections = "".join(f"          - file: chapters/{name}\n" for name in names)
    return text.replace(CONTENTS, f"{CONTENTS}        sections:\n{sections}")


def module_of(file: Path) -> str:
    """A file's dotted name."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def summary(file: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def entry(file: Path, names: list[str]) -> str:
    """The directive of one module; the names are listed, since some classes name another home."""
    return f".. automodule:: {module_of(file)}\n   :members: {', '.join(names)}"


def public_names(file: Path) -> list[str]:
    """The public functions and classes that a file defines."""
    body = ast.parse(file.read_text()).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"]
