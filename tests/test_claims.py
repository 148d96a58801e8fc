"""Thirty printed claims hold, by a computation that has no code in common with the library."""

import ast
from pathlib import Path

import pytest

from tests import claims


@pytest.mark.parametrize(
    ("page", "sentence", "holds"), claims.CLAIMS, ids=[one.__name__ for *_, one in claims.CLAIMS]
)
def test_a_claim_is_printed_and_true(page, sentence, holds):
    text = (claims.ROOT / "book" / "chapters" / f"{page}.md").read_text()
    assert sentence in " ".join(text.split()), "another sentence is printed: compute that one"
    assert holds(), f"{page} prints: {sentence}"


def test_there_are_thirty_and_none_uses_the_library():
    assert len(claims.CLAIMS) == 30
    tree = ast.walk(ast.parse(Path(claims.__file__).read_text()))
    named = {
        name
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [node.names[0].name])
    }
    assert not {name.split(".")[0] for name in named} & {"asddim_lib", "experiments", "book"}
