"""A Sphinx extension: links to source code, code below what it shows, cited works, the footer.

Beside the first mention of each function in a section stands a link to its source, where viewcode
has a page of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.viewcode import viewcode_anchor
from sphinx.transforms.post_transforms import SphinxPostTransform

from asddim_lib import __version__


class SourceLinks(SphinxPostTransform):
    """Adds the links, while references still name their functions and before viewcode runs."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Inserts an anchor after the first mention of each function in each section."""
        known = getattr(self.env, "_viewcode_modules", {})
        linked = set()
        for mention in list(self.document.findall(pending_xref)):
            if mention.get("refdomain") != "py":
                continue
            module, name = split(mention["reftarget"], known)
            tags = (known.get(module) or ((), (), ()))[2]
            place = (name, id(_section(mention)))
            if name not in tags or place in linked:
                continue
            linked.add(place)
            anchor = viewcode_anchor(
                reftarget=f"_modules/{module.replace('.', '/')}",
                refid=name,
                refdoc=self.env.docname,
            )
            mention.parent.insert(mention.parent.index(mention) + 1, anchor)


class CodeBelow(SphinxPostTransform):
    """Puts a cell's folded code below what the cell shows, once MyST-NB has folded it."""

    default_priority = 200  # MyST-NB's is 199
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Changes the order of the two parts of a cell."""
        for cell in self.document.findall(nodes.container):
            if cell.get("hide_mode") == "input" and len(cell.children) == 2:
                cell.children.reverse()


def split(target: str, modules: Iterable[str]) -> tuple[str, str]:
    """Splits "package.module.Class.method" after the longest prefix that is one of `modules`."""
    prefixes = [module for module in modules if target.startswith(f"{module}.")]
    module = max(prefixes, key=len, default="")
    return module, target.removeprefix(f"{module}.")


def _section(node: nodes.Node) -> nodes.Node:
    """The section that a node is in, or else the document."""
    while node.parent and not isinstance(node, nodes.section):
        node = node.parent
    return node


def mend_body(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Gives works the role of list items, and lets folds be read out by their own names.

    Docutils makes the bibliography a list; its entries' own role, doc-biblioentry, has been
    withdrawn from WAI-ARIA. MyST-NB labels every fold "Toggle hidden content".
    """
    if "body" in context:
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        context["body"] = body.replace(' aria-label="Toggle hidden content"', "")


def fill_footer(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Puts the version and a link to the citation into the footer."""
    if footer := context.get("theme_extra_footer"):
        front = context["pathto"](app.config.root_doc).removesuffix("#")  # which it is on itself
        cite = f"{front}#how-to-cite"
        context["theme_extra_footer"] = footer.format(version=__version__, cite=cite)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the parts with Sphinx."""
    app.add_post_transform(SourceLinks)
    app.add_post_transform(CodeBelow)
    app.connect("html-page-context", mend_body)
    app.connect("html-page-context", fill_footer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
