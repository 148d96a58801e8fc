"""The book's colours: one for each method, of related hues for related methods.

All read on a light page and on a dark one. Dashes and markers say the same again, for eyes that
tell few hues apart, and for paper without colour.
"""

from __future__ import annotations

from typing import Any

from asddim_lib.errors import check
from experiments.setting import PAPER_METHODS

#: The ink of words and axes, on a light page and on a dark one.
INK, INK_ON_DARK = "#24292f", "#e2e5e9"
#: What stands back: grid lines, spines, all data. It reads on light and on dark.
FAINT = "#858b92"
#: Nearer than what is compared with, and farther.
NEARER, FARTHER = "#0f7fd6", "#d4622a"
#: The page's ground in light and in dark, as the book's theme has it.
GROUNDS = ("#ffffff", "#121212")

#: Every method's colour. Related methods have related hues: even steps are grey, the paper's grids
#: red to orange, grids measured here blue, rules of σ or t green, published grids violet (brown for
#: flow models), and grids that others search on a path pink.
FAMILIES: dict[str, dict[str, str]] = {
    "even steps": {
        "trailing": "#6f6f6f",
        "leading": "#949494",
        "uniform": "#828780",
        "linspace": "#69656c",
        "comfy-normal": "#788185",
        "comfy-simple": "#8a8c8d",
        "comfy-sgm-uniform": "#69675f",
        "comfy-ddim-uniform": "#827f77",
    },
    "the paper's": {
        "combined": "#d13438",
        "noise": "#e8710a",
        "gradient": "#b5651d",
        "fitted": "#f0567a",
    },
    "measured": {
        "equidistributed": "#0f7fd6",
        "chosen": "#00939c",
        "dual-weighted": "#5a6ee0",
        "feature-weighted": "#2d7599",
        "dual-path": "#568be0",
        "direct": "#156da3",
        "tuned": "#1a66d8",
    },
    "rules": {
        "karras": "#2f8f4e",
        "beta": "#7c9a12",
        "logsnr": "#567046",
        "arctan": "#29a554",
        "dmn": "#548669",
        "quadratic": "#44a070",
        "exponential": "#3c8635",
        "beta-sigmas": "#488255",
        "f-scheduler": "#626e2a",
        "f-scheduler-xl": "#74913f",
        "comfy-linear-quadratic": "#56783f",
        "comfy-kl-optimal": "#548f61",
        "comfy-beta57": "#4f7857",
        "comfy-bong-tangent": "#4c995f",
    },
    "published": {
        "ays-sd15": "#8b45bd",
        "ays-sdxl": "#b064fd",
        "ays-deepfloyd": "#786cb8",
        "ays-svd": "#b182cb",
        "gits-sd15": "#5c4ee6",
    },
    "published for flow models": {
        "oss-flux": "#a88700",
        "oss-wan": "#875e14",
        "ltx2": "#a08a60",
        "wan-lightning": "#6f6a2c",
        "ideogram-4": "#96761f",
    },
    "searched by others": {
        "gits": "#c0399f",
        "oracle": "#a0527f",
        "tors": "#e75bb8",
        "constant-rate": "#b473a0",
    },
}
#: The colours of what is no method: powers, coordinates, metrics, runs.
SERIES = ("#1d81a2", "#d0632b", "#7d62c9", "#5b8c2a", "#c2408a", "#8a6d3b")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)))
_MARKERS = "osD^v<>pPX*hd8"


def _looks() -> dict[str, dict[str, Any]]:
    """Each method's colour, dashes and marker; within a family no two have both alike."""
    return {
        name: {
            "color": colour,
            "linestyle": _DASHES[place % len(_DASHES)],
            "marker": _MARKERS[place],
        }
        for family in FAMILIES.values()
        for place, (name, colour) in enumerate(family.items())
    }


#: Every method's look, as matplotlib's `plot` takes it.
LOOKS = _looks()


def style(method: str, marker: bool = True) -> dict[str, Any]:
    """The colour, dashes and marker of a method's line, as matplotlib's `plot` takes them.

    `method` is a name of the table of methods, or of an experiment: `ddim` looks like `leading`.
    Raises WrongUse for any other name.
    """
    name = PAPER_METHODS.get(method, method)
    remedy = f"use one of {', '.join(LOOKS)}, or give it a colour in FAMILIES"
    check(name in LOOKS, "method", method, remedy)
    return {key: value for key, value in LOOKS[name].items() if marker or key != "marker"}


def colour(method: str) -> str:
    """A method's colour. Raises WrongUse for an unknown name."""
    return str(style(method)["color"])


def series(count: int) -> list[dict[str, Any]]:
    """Colours and dashes of `count` lines that are no methods, as `plot` takes them."""
    return [
        {"color": SERIES[k % len(SERIES)], "linestyle": _DASHES[k % len(_DASHES)]}
        for k in range(count)
    ]
