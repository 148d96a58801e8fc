"""Draws the README's picture, which is the landing page's figure, into book/method.png.

    python book/picture.py

It executes the chapter `start` and takes the figure `same-noise` of it, in at most 256 colours.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
from chapter import BOOK, BUILD, ROOT, execute
from PIL import Image

CHAPTER, FIGURE = "start", "same-noise"
FILE = BOOK / "method.png"


def main() -> None:
    """Executes the chapter, and writes the picture."""
    executed = BUILD / "runs" / f"{CHAPTER}-picture.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    execute(CHAPTER, executed, {})
    write(executed, FILE)
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1000:.0f} kB")


def write(executed: Path, out: Path) -> None:
    """Writes the figure of an executed notebook as a PNG.

    Raises ValueError if the notebook has no such figure.
    """
    for cell in nbformat.read(executed, as_version=4).cells:
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") != FIGURE:
            continue
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
                picture.convert("RGB").quantize(256).save(out, optimize=True)
                return
    raise ValueError(f"{executed} has no figure {FIGURE}; see book/chapters/{CHAPTER}.md")


if __name__ == "__main__":
    main()
