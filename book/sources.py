"""A Sphinx extension: beside the first mention of each function in a section, a link to its source, where viewcode has one; works as list items."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.ext.viewcode import viewcode_anchor
from sphinx.transforms.post_transforms import SphinxPostTransform


class SourceLinks(SphinxPostTransform):
    """Runs before references are resolved, while they still name their functions, and before viewcode turns its anchors into links."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        known = getattr(self.env, "_viewcode_modules", {})
        seen = set()
        for mention in list(self.document.findall(pending_xref)):
            module, _, name = mention["reftarget"].replace(".", "/", 1).partition(".")
            section = mention
            while section.parent and not isinstance(section, nodes.section):
                section = section.parent
            if (
                mention.get("refdomain") != "py"
                or (name, id(section)) in seen
                or name not in (known.get(module.replace("/", ".")) or [(), (), ()])[2]
            ):
                continue
            seen.add((name, id(section)))
            place = mention.parent.index(mention) + 1
            mention.parent.insert(
                place,
                viewcode_anchor(
                    reftarget=f"_modules/{module}", refid=name, refdoc=self.env.docname
                ),
            )


def list_works(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """docutils calls the bibliography a list, whose entries are no list items: a role that WAI-ARIA has withdrawn."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_post_transform(SourceLinks)
    app.connect("html-page-context", list_works)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
