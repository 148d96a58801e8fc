"""Pictures with sliders: computed beforehand, so that they move in a browser without a kernel or a network; or live, where there is a kernel."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from asddim_lib.errors import check

_PAGE = """<div class="asddim-explorer" id="{id}" role="group" aria-label="{title}">
<img alt="{alt}" src="{source}" style="max-width:100%">
{sliders}
<p aria-live="polite" style="font-size:0.9em">{said}</p>
<script>(() => {{
const root = document.getElementById("{id}"), frames = {frames}, counts = {counts}, values = {values};
const inputs = [...root.querySelectorAll("input")], image = root.querySelector("img"), said = root.querySelector("p");
const show = () => {{
  let place = 0;
  inputs.forEach((input, k) => {{
    const value = values[k][input.value];
    place = place * counts[k] + Number(input.value);
    input.nextElementSibling.value = value;
    input.setAttribute("aria-valuetext", value);
  }});
  image.src = frames[place][0]; image.alt = frames[place][1]; said.textContent = frames[place][1];
}};
inputs.forEach(input => input.addEventListener("input", show));
}})();</script></div>"""
_SLIDER = """<label style="display:block"><span style="display:inline-block;min-width:9em">{name}</span>
<input type="range" min="0" max="{last}" value="{start}" step="1" aria-valuetext="{value}" style="width:14em;vertical-align:middle"> <output>{value}</output></label>"""


def explore(
    draw: Callable[..., tuple[Any, str]], *, title: str, live: bool = False, **values: Sequence[Any]
) -> Any:
    """A slider for each of `values`, over what `draw(**chosen)` gives for them: a matplotlib figure, and a sentence that says what it shows.

    The sliders begin in the middle. Every combination is drawn at once, into HTML that needs nothing else, unless `live`: then ipywidgets
    draw what is asked for, with a kernel. The sentence is the picture's alternative text. Raises ValueError without values.
    """
    check(
        bool(values) and all(len(options) > 0 for options in values.values()),
        "values",
        {k: list(v) for k, v in values.items()},
        "give each slider something to choose",
    )
    import matplotlib.pyplot as plt
    from IPython.display import HTML

    def drawn(**chosen: Any) -> tuple[bytes, str]:
        figure, said = draw(**chosen)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=80, bbox_inches="tight")
        plt.close(figure)
        return file.getvalue(), said

    if live:
        return _live(drawn, title, values)
    frames = []
    for chosen in itertools.product(*values.values()):
        picture, said = drawn(**dict(zip(values, chosen, strict=True)))
        frames.append(("data:image/png;base64," + base64.b64encode(picture).decode(), said))
    starts, counts, place = (
        [len(options) // 2 for options in values.values()],
        [len(options) for options in values.values()],
        0,
    )
    for start, count in zip(starts, counts, strict=True):
        place = place * count + start
    shown = [[str(option) for option in options] for options in values.values()]
    sliders = [
        _SLIDER.format(name=escape(n), last=len(o) - 1, start=s, value=escape(o[s]))
        for n, o, s in zip(values, shown, starts, strict=True)
    ]
    name = "explorer-" + "".join(
        letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-"
    )
    data = {"frames": json.dumps(frames), "counts": json.dumps(counts), "values": json.dumps(shown)}
    text = {
        "title": escape(title),
        "alt": escape(frames[place][1]),
        "said": escape(frames[place][1]),
    }
    return HTML(
        _PAGE.format(
            id=name,
            source=frames[place][0],
            sliders="\n".join(sliders),
            **text,
            **{k: v.replace("</", "<\\/") for k, v in data.items()},
        )
    )


def _live(
    drawn: Callable[..., tuple[bytes, str]], title: str, values: dict[str, Sequence[Any]]
) -> Any:
    """The same sliders as ipywidgets. An Image and a Label show what was drawn: an Output widget, which `interactive` fills, made nbclient wait for ever."""
    import ipywidgets

    sliders = {
        name: ipywidgets.SelectionSlider(
            description=name, options=list(options), value=options[len(options) // 2]
        )
        for name, options in values.items()
    }
    picture, sentence = ipywidgets.Image(format="png"), ipywidgets.Label()

    def redraw(_: Any = None) -> None:
        picture.value, sentence.value = drawn(
            **{name: slider.value for name, slider in sliders.items()}
        )

    for slider in sliders.values():
        slider.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox(
        [ipywidgets.HTML(f"<b>{escape(title)}</b>"), *sliders.values(), picture, sentence]
    )
