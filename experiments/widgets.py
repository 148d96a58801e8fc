"""Figures with sliders, drawn beforehand for a browser without a kernel, or live with one."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from asddim_lib.errors import check

_PAGE = """<div class="{kind}" id="{id}" role="group" aria-label="{title}">
<img alt="{alt}" src="{source}" style="max-width:100%">
{sliders}
<p aria-live="polite" style="font-size:0.9em">{said}</p>
<script>(() => {{
const root = document.getElementById("{id}"), said = root.querySelector("p");
const frames = {frames}, counts = {counts}, values = {values};
const inputs = [...root.querySelectorAll("input")], image = root.querySelector("img");
const show = () => {{
  let place = 0;
  inputs.forEach((input, k) => {{
    const value = values[k][input.value];
    place = place * counts[k] + Number(input.value);
    input.nextElementSibling.value = value;
    input.setAttribute("aria-valuetext", value);
  }});
  image.src = frames[place][0];
  image.alt = said.textContent = frames[place][1];
}};
inputs.forEach(input => input.addEventListener("input", show));
}})();</script></div>"""
_SLIDER = """<label style="display:block">
<span style="display:inline-block;min-width:9em">{name}</span>
<input type="range" min="0" max="{last}" value="{start}" step="1" aria-valuetext="{value}"
 style="width:14em;vertical-align:middle"> <output>{value}</output></label>"""


def explore(
    draw: Callable[..., tuple[Any, str]], *, title: str, live: bool = False, **values: Sequence[Any]
) -> Any:
    """A figure with a slider for each of `values`, each starting in the middle of its options.

    `draw` takes one option of each slider by name. It returns a matplotlib figure and a sentence
    that describes it, which becomes the alternative text. All combinations are drawn at once, into
    HTML that needs nothing else. With `live`, ipywidgets draw what is asked for, with a kernel.
    Raises WrongUse without sliders, or for one without options.
    """
    check(
        bool(values) and all(len(options) > 0 for options in values.values()),
        "values",
        {name: list(options) for name, options in values.items()},
        "give each slider something to choose",
    )
    if live:
        return _live(draw, title, values)
    frames, photographic = [], False
    for options in itertools.product(*values.values()):
        picture, sentence, held = _render(draw, **dict(zip(values, options, strict=True)))
        frames.append(("data:image/png;base64," + base64.b64encode(picture).decode(), sentence))
        photographic |= held
    labels = {name: [*map(str, options)] for name, options in values.items()}
    return _page(title, frames, labels, drawn=not photographic)


def _render(draw: Callable[..., tuple[Any, str]], **options: Any) -> tuple[bytes, str, bool]:
    """A figure as PNG, its sentence, and whether it holds pictures.

    Lines need few colours, and a page holds many frames.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    figure, sentence = draw(**options)
    held = any(axis.images for axis in figure.axes)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80, bbox_inches="tight")
    plt.close(figure)
    if held:
        return file.getvalue(), sentence, held
    small = io.BytesIO()
    Image.open(file).convert("RGB").quantize(64).save(small, format="png", optimize=True)
    return small.getvalue(), sentence, held


def _page(
    title: str, frames: list[tuple[str, str]], labels: dict[str, list[str]], *, drawn: bool
) -> Any:
    """The frames, in the order of `itertools.product` of the labels, as HTML with sliders.

    Frames that are `drawn`, and hold no pictures, have a class by which a dark page turns them.
    """
    from IPython.display import HTML

    counts = [len(options) for options in labels.values()]
    place = 0
    for count in counts:
        place = place * count + count // 2
    source, sentence = frames[place]
    sliders = [
        _SLIDER.format(
            name=escape(name),
            last=len(options) - 1,
            start=len(options) // 2,
            value=escape(options[len(options) // 2]),
        )
        for name, options in labels.items()
    ]
    slug = "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")
    data = {"frames": frames, "counts": counts, "values": list(labels.values())}
    return HTML(
        _PAGE.format(
            kind="asddim-explorer drawn" if drawn else "asddim-explorer",
            id=f"explorer-{slug}",
            source=source,
            sliders="\n".join(sliders),
            title=escape(title),
            alt=escape(sentence),
            said=escape(sentence),
            **{key: json.dumps(value).replace("</", "<\\/") for key, value in data.items()},
        )
    )


def _live(
    draw: Callable[..., tuple[Any, str]], title: str, values: dict[str, Sequence[Any]]
) -> Any:
    """The same sliders as ipywidgets, with an Image and a Label.

    An Output widget, which `interactive` fills, made nbclient wait for ever.
    """
    import ipywidgets

    sliders = {
        name: ipywidgets.SelectionSlider(
            description=name, options=list(options), value=options[len(options) // 2]
        )
        for name, options in values.items()
    }
    picture, sentence = ipywidgets.Image(format="png"), ipywidgets.Label()

    def redraw(_: Any = None) -> None:
        options = {name: slider.value for name, slider in sliders.items()}
        picture.value, sentence.value, _ = _render(draw, **options)

    for slider in sliders.values():
        slider.observe(redraw, "value")
    redraw()
    heading = ipywidgets.HTML(f"<b>{escape(title)}</b>")
    return ipywidgets.VBox([heading, *sliders.values(), picture, sentence])
