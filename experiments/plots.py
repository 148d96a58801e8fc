"""One look for every figure of the book: its type, its lines, and how a notebook shows it.

A chapter calls `use()` once. From then on its figures are shown as SVG without a background, whose
ink turns light on a dark page. Those that hold pictures are there as PNG on white paper, too, for
whoever copies them out of a notebook.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.colours import FAINT, FARTHER, INK, INK_ON_DARK, NEARER
from experiments.colours import SERIES as SERIES
from experiments.colours import colour as colour
from experiments.colours import series as series
from experiments.colours import style as style

#: The width of the book's text, in inches: there 9-point type is 9 points tall.
WIDTH = 7.0
_STYLE: dict[str, Any] = {
    "figure.figsize": (WIDTH, 3.2),
    "figure.facecolor": "white",  # of a PNG; an SVG has no background
    "figure.constrained_layout.use": True,
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "image.interpolation": "none",  # a picture's own pixels, as few and as sharp as they are
    "svg.hashsalt": "asddim",  # the same figure gives the same file
    **{
        f"{part}size": 9
        for part in ("font.", "axes.title", "axes.label", "xtick.label", "ytick.label")
    },
    "legend.fontsize": 9,
    "figure.titlesize": 9,
    "figure.titleweight": "bold",
}
#: A mark for each number of steps.
_MARKS = "osD^v<>p"
_DARK = (
    f'<style>@media (prefers-color-scheme: dark) {{ [style*="fill: {INK}"] '
    f"{{ fill: {INK_ON_DARK} !important }} "
    f'[style*="stroke: {INK}"] {{ stroke: {INK_ON_DARK} !important }} }}</style>'
)


def use() -> None:
    """Sets the look of all figures from here on, and how a notebook shows figures and tables."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(_STYLE)  # type: ignore[arg-type]
    try:
        from IPython import get_ipython  # type: ignore[attr-defined]
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None:
        plt.switch_backend(plt.get_backend())  # loaded later, it would undo the next line
        _show_in(shell.display_formatter.formatters)


def _show_in(formatters: Any) -> None:
    """Figures as SVG, those with pictures also as PNG, and tables with one row of headings."""
    import pandas as pd
    from matplotlib.figure import Figure

    formatters["image/svg+xml"].for_type(Figure, _svg)
    formatters["image/png"].for_type(Figure, lambda figure: _png(figure) if _held(figure) else None)
    formatters["text/html"].for_type(pd.DataFrame, _with_one_heading)


def _with_one_heading(table: Any) -> str:
    """A table as HTML, with its index named in the row of headings; pandas adds a second row."""
    names = [str(name) for name in table.index.names if name is not None]
    if names:
        corner = [*table.columns.names[:-1], ", ".join(names)]
        table = table.rename_axis(index=[None] * table.index.nlevels, columns=corner)
    return table._repr_html_()


def _held(figure: Any) -> bool:
    """Whether a figure holds pictures."""
    return any(axis.images for axis in figure.axes)


def _svg(figure: Any) -> str:
    """A figure as SVG without a background. Its ink is light where its surroundings are dark."""
    file = io.StringIO()
    figure.savefig(file, format="svg", facecolor="none", metadata={"Date": None})
    start, end = file.getvalue().split("<defs>", 1)
    return f"{start}{_DARK}\n <defs>{end}"


def _png(figure: Any) -> bytes:
    """A figure as PNG. Made `WIDTH` wide, it has three pixels for two of the page's."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=144)
    return file.getvalue()


def sampling(axis: Any) -> None:
    """Writes above an axis of timesteps or noise levels which way sampling runs: to the lower."""
    inverted = axis.xaxis_inverted()
    text, place, side = ("sampling →", 0, "left") if inverted else ("← sampling", 1, "right")
    axis.annotate(
        text,
        (place, 1),
        xytext=(0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        ha=side,
        va="bottom",
        fontsize=9,
    )


def label_ends(axis: Any, labels: Mapping[str, str] | Sequence[str] = ()) -> None:
    """Writes each labelled line's name beside its right end, instead of a legend.

    `labels` gives other words for some names, or says which lines are named; by default all are.
    The names stand right of the axes, one below the other, each joined to its line by a thin one.
    Call it when the axis is otherwise complete.
    """
    drawn = {str(line.get_label()): line for line in axis.get_lines()}
    wanted = [name for name in drawn if not name.startswith("_") and (not labels or name in labels)]
    words = labels if isinstance(labels, Mapping) else {}
    axis.figure.draw_without_rendering()
    height = axis.get_window_extent().height * 72 / axis.figure.dpi
    ends = []
    for name in wanted:
        x, y = (np.asarray(values, float) for values in drawn[name].get_data(orig=False))
        to_right = -x if axis.xaxis_inverted() else x
        last = int(np.nanargmax(np.where(np.isfinite(y), to_right, np.nan)))
        ends.append(axis.transLimits.transform(axis.transScale.transform((x[last], y[last]))))
    heights = _apart([end[1] * height for end in ends], 11, height)
    for name, end, place in zip(wanted, ends, heights, strict=True):
        axis.annotate(
            words.get(name, name),
            tuple(end),
            xycoords="axes fraction",
            xytext=(1 + 12 / 72 / axis.get_window_extent().width * axis.figure.dpi, place / height),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),  # from its left end: else a steep one strikes its neighbour
                "color": drawn[name].get_color(),
                "shrinkA": 1,
                "shrinkB": 2,
                "lw": 0.8,
            },
        )


def _apart(places: Sequence[float], gap: float, top: float) -> list[float]:
    """Places from 0 to `top`, moved as little as leaves each `gap` from the next, if they fit."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(places, kind="stable")
    least = gap * np.arange(len(order))  # what each is above the lowest, at the least
    room = max(top - least[-1], 0) if len(order) else 0
    excess = isotonic_regression(np.asarray(places, float)[order] - least).x if len(order) else 0
    result = np.empty(len(order))
    result[order] = np.clip(excess, 0, room) + least
    return [float(place) for place in result]


def effects(axis: Any, rows: Any, factor: float = 1.0) -> None:
    """Differences with their 95 % intervals: a row per method, a mark per number of steps.

    `rows` are those of `contest.standing` by one measure; differences are multiplied by `factor`.
    A win is blue, a loss orange, and a tie grey and hollow.
    """
    names, counts = list(dict.fromkeys(rows["method"])), sorted(rows["steps"].unique())
    for row in rows.itertuples():
        place = counts.index(row.steps)
        shift = 0.6 * place / max(1, len(counts) - 1) - 0.3 if len(counts) > 1 else 0
        colour = {"win": NEARER, "loss": FARTHER}.get(row.verdict, FAINT)
        axis.errorbar(
            factor * row.difference,
            names.index(row.method) + shift,
            xerr=factor * row.half,
            fmt=_MARKS[place],
            ms=4,
            lw=1,
            color=colour,
            mfc="none" if row.verdict == "tie" else colour,
        )
    for count, mark in zip(counts, _MARKS, strict=False):
        axis.plot([], [], mark, ms=4, color=INK, label=f"K = {count}")
    axis.axvline(0, color=FAINT, lw=0.8, zorder=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def heat(axis: Any, ratios: Any, words: Any = None, bold: Any = None, most: float = 2.0) -> None:
    """A table of ratios as a map: blue below 1, orange above, without colour at 1.

    `ratios` is a DataFrame of positive numbers. Of the same shape, `words` is what is written in
    the cells, and `bold` says where in bold. A factor of `most` either way has the full colour,
    which is transparent enough to read ink on, in light and in dark. Missing ratios stay empty.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    values = ratios.to_numpy(float)
    depth = np.clip(np.abs(np.log(values)) / np.log(most), 0, 1)
    for row, column in zip(*np.nonzero(np.isfinite(values)), strict=True):
        ground = to_rgb(NEARER if values[row, column] < 1 else FARTHER)
        alpha = 0.75 * float(depth[row, column])
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fc=(*ground, alpha), lw=0))
        if words is not None:
            weight = "bold" if bold is not None and bold.iloc[row, column] else "normal"
            text = axis.text(column, row, str(words.iloc[row, column]), ha="center", va="center")
            text.set(fontsize=8, fontweight=weight)
    axis.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=(values.shape[0] - 0.5, -0.5))
    axis.set_xticks(range(values.shape[1]), list(ratios.columns))
    axis.set_yticks(range(values.shape[0]), list(ratios.index))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def ranks(axes: Any, ranking: Any, judges: Mapping[str, str]) -> None:
    """Rank correlations with their intervals: an axis per judge, a row per goal, a dot per K.

    `ranking` is what `experiment.agreement.agreement` returns, of one guidance scale and solver;
    `judges` gives each of its judges a title.
    """
    import matplotlib.pyplot as plt

    goals = list(dict.fromkeys(ranking["goal"]))[::-1]
    counts = sorted(ranking["steps"].unique())
    for axis, (judge, title) in zip(axes, judges.items(), strict=True):
        for place, steps in enumerate(counts):
            part = ranking[(ranking["steps"] == steps) & (ranking["judge"] == judge)]
            part = part.set_index("goal").loc[goals]
            rows = np.arange(len(goals)) + 0.36 - 0.72 * place / max(1, len(counts) - 1)
            colour = plt.get_cmap("viridis")(0.3 + 0.5 * place / len(counts))
            axis.hlines(rows, part["low"], part["high"], color=colour, lw=1)
            axis.plot(part["rho"], rows, "o", ms=4, color=colour, label=f"K = {steps}")
        axis.axvline(0, color="grey", lw=0.6)
        axis.set(title=title, xlabel="rank correlation", xlim=(-1, 1.05))
    axes[0].set_yticks(range(len(goals)), goals)
    axes[0].legend(loc="upper left")
