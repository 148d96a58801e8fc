"""The page of the API: a section for each package, an entry for each public module."""

from __future__ import annotations

import ast
from pathlib import Path

from chapter import BOOK, ROOT

#: Packages in reading order, with their headings. Single files come first.
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


def reference_page() -> str:
    """The page `api`, with an entry for each public module and its public names."""
    text = (BOOK / "chapters" / "api.md").read_text()
    parts = [section(folder, title) for folder, title in PACKAGES.items()]
    return text.replace("{modules}", "\n\n".join(part for part in parts if part))


def section(folder: str, title: str) -> str:
    """A heading and the entries of a package's modules; empty where none is public."""
    files = sorted((ROOT / folder).glob("[!_]*.py"))
    entries = [entry(file, names) for file in files if (names := public_names(file))]
    if not entries:
        return ""
    return "\n\n".join([f"## {title}", "```{eval-rst}\n" + "\n\n".join(entries) + "\n```"])


def entry(file: Path, names: list[str]) -> str:
    """The directive of one module; the names are listed, since some classes name another home."""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return f".. automodule:: {module}\n   :members: {', '.join(names)}"


def public_names(file: Path) -> list[str]:
    """The public functions and classes that a file defines."""
    body = ast.parse(file.read_text()).body
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in body if isinstance(node, kinds) and node.name[0] != "_"]
