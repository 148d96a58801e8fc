"""The look of the book's figures: one colour a method, legible in light and dark, to all eyes."""

import base64
import io
import itertools
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import DisplayFormatter
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from asddim_lib.grids.table import METHODS
from experiments import colours, plots, setting
from tests.refusals import refuses

matplotlib.use("Agg")
CHAPTERS = Path(__file__).parents[1] / "book" / "chapters"
CSS = CHAPTERS.parent / "_static" / "book.css"
COLOURS = {name: colour for group in colours.FAMILIES.values() for name, colour in group.items()}
#: What an eye without red or green cones sees, on linear RGB (Machado et al. 2009).
EYES = {
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def linear(colour):
    """A colour's linear RGB."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """The ratio of two colours' luminances, as WCAG 2 has it."""
    luminances = [linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other)]
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.fixture(autouse=True)
def _own_style():
    with matplotlib.rc_context():
        plots.use()
        yield
    plt.close("all")


def test_every_method_has_one_colour_and_no_two_the_same():
    names = [name for group in colours.FAMILIES.values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) == {*METHODS, *setting.TRIED}
    assert len(set(COLOURS.values())) == len(names)
    assert not set(COLOURS.values()) & set(colours.SERIES)


def test_an_experiment_s_names_look_like_the_methods_they_stand_for():
    for name, method in setting.PAPER_METHODS.items():
        assert plots.style(name) == plots.style(method)
    with refuses("method"):
        plots.style("ddpm")


@pytest.mark.parametrize("ground", colours.GROUNDS)
def test_every_colour_stands_out_from_a_light_and_from_a_dark_page(ground):
    for colour in [*COLOURS.values(), *colours.SERIES, colours.FAINT]:
        assert contrast(colour, ground) >= 3, colour


def test_words_read_on_a_light_and_on_a_dark_page_and_in_the_deepest_cell_of_a_map():
    for ground, ink in zip(colours.GROUNDS, (colours.INK, colours.INK_ON_DARK), strict=True):
        assert contrast(ink, ground) >= 7
        for colour in (colours.NEARER, colours.FARTHER):
            cell = 0.75 * np.array(to_rgb(colour)) + 0.25 * np.array(to_rgb(ground))
            assert contrast(ink, cell) >= 3.5


@pytest.mark.parametrize("eye", EYES)
def test_lines_that_an_eye_could_confuse_differ_in_dashes_or_marker(eye):
    """Where the colours are near, the second channel tells."""
    seen = {name: np.array(EYES[eye]) @ linear(colour) for name, colour in COLOURS.items()}
    for (one, a), (other, b) in itertools.combinations(seen.items(), 2):
        if np.abs(a - b).max() < 0.02:
            first, second = (colours.LOOKS[name] for name in (one, other))
            assert (first["linestyle"], first["marker"]) != (second["linestyle"], second["marker"])


@pytest.mark.parametrize("file", sorted(CHAPTERS.glob("*.md")), ids=lambda file: file.stem)
def test_no_chapter_has_a_palette_of_its_own(file):
    """Colours come from experiments.plots."""
    code = "".join(re.findall(r"^```\{code-cell\}.*?^```", file.read_text(), re.S | re.M))
    assert all(hasattr(plots, name) for name in re.findall(r"\bplots\.(\w+)", code))
    assert not re.findall(r"color_palette|\bcmap\b|[\"']#[0-9a-fA-F]{6}|[\"']C\d[\"']", code)
    assert not re.findall(r"\bcolou?rs?=\(?[\"'](?!none)", code)
    assert re.search(r"\buse\(\)", code) or "plt." not in code


def svg(draw):
    figure, axis = plt.subplots()
    draw(axis)
    return plots._svg(figure)


def test_a_line_plot_has_no_ground_and_its_ink_is_light_in_the_dark():
    text = svg(lambda axis: axis.plot([0, 1], **plots.style("noise")))
    assert text == svg(lambda axis: axis.plot([0, 1], **plots.style("noise")))
    assert colours.INK in text.split("</style>", 1)[1], "what the rule changes"
    assert COLOURS["noise"] in text
    assert re.search(rf"prefers-color-scheme: dark.*{colours.INK_ON_DARK} !important", text)
    assert "#ffffff" not in text
    width = float(re.search(r'<svg[^>]* width="([\d.]+)pt"', text, re.S)[1])
    assert width == plots.WIDTH * 72, "the page's width, so that 9 points are 9 points"


def test_a_notebook_shows_figures_as_svg_and_those_with_pictures_also_as_png():
    shell = DisplayFormatter()
    plots._show_in(shell.formatters)
    for draw, kinds in (
        (lambda axis: axis.plot([0, 1]), {"image/svg+xml"}),
        (lambda axis: axis.imshow(np.zeros((2, 2, 3))), {"image/svg+xml", "image/png"}),
    ):
        figure, axis = plt.subplots()
        draw(axis)
        assert {name for name in shell.format(figure)[0] if "image" in name} == kinds


def test_a_picture_lies_in_the_svg_with_its_own_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    text = svg(lambda axis: axis.imshow(pixels))
    (data,) = re.findall(r'href="data:image/png;base64,([^"]+)"', text)
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert any(np.array_equal(found[::way], pixels) for way in (1, -1))


def test_a_notebook_shows_a_table_s_index_named_in_its_row_of_headings():
    shell = DisplayFormatter()
    plots._show_in(shell.formatters)
    plain = pd.DataFrame({"grid": ["beta", "gits"], "K": [5, 8], "fid": [1.0, 2.0]})
    deep = plain.set_index(["grid", "K"])
    for table, rows in (
        (plain, [["", "grid", "K", "fid"]]),
        (plain.set_index("K"), [["K", "grid", "fid"]]),
        (deep, [["", "grid, K", "fid"]]),
        (deep.rename_axis(columns="measure"), [["", "grid, K", "fid"]]),
        (deep.unstack(), [["", "fid"], ["grid", "5", "8"]]),
    ):
        before = table.copy()
        (head,) = re.findall("<thead>(.*)</thead>", shell.format(table)[0]["text/html"], re.S)
        found = [re.findall("<th.*?>(.*?)</th>", row) for row in head.split("</tr>")[:-1]]
        assert [row for row in found if any(row)] == rows
        pd.testing.assert_frame_equal(table, before)


def test_the_arrow_points_to_where_sampling_goes():
    for limits, text, x in (((0, 9), "← sampling", 1), ((9, 0), "sampling →", 0)):
        _, axis = plt.subplots()
        axis.set_xlim(limits)
        plots.sampling(axis)
        assert (axis.texts[0].get_text(), axis.texts[0].xy[0]) == (text, x)


def test_names_stand_at_the_ends_of_their_lines_in_order_and_apart():
    figure, axis = plt.subplots()
    axis.set(xscale="log", yscale="log")
    ends = {"noise": 2.0, "karras": 2.02, "beta": 9.0, "gits": 2.01, "without": 4.0}
    for name, end in ends.items():
        axis.plot([1, 10], [1, end], label=name)
    axis.plot([1, 10], [3, 3], label="_no name")
    plots.label_ends(axis, {"noise": "Eq 5", "karras": "karras", "beta": "beta", "gits": "gits"})
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without their leaders
    middles = [(box.y0 + box.y1) / 2 for box in boxes]
    assert [t.get_text() for t in axis.texts] == ["Eq 5", "karras", "beta", "gits"]
    assert sorted(range(4), key=middles.__getitem__) == [0, 3, 1, 2], "in the order of the ends"
    gaps = np.diff(sorted(middles)) * 72 / figure.dpi
    assert gaps.min() > 10.9
    at = axis.transData.transform((10, 9.0))[1]
    assert abs(middles[2] - at) * 72 / figure.dpi < 1, "who has room stays where the line ends"
    assert all(box.x0 > axis.transData.transform((10, 1))[0] for box in boxes)


def test_on_a_turned_axis_the_right_end_is_the_lowest_x():
    _, axis = plt.subplots()
    axis.plot([0, 1], [5, 9], label="noise")
    axis.set(xlim=(1, 0), ylim=(0, 10))
    plots.label_ends(axis)
    assert axis.texts[0].xy == pytest.approx((1, 0.5))


@given(places=st.lists(st.floats(-20, 120), min_size=1, max_size=9))
def test_names_stand_apart_within_the_axes_and_keep_their_order(places):
    found = plots._apart(places, 11, 100)
    assert min(np.diff(sorted(found)), default=11) > 10.9
    assert all(-1e-9 <= one <= 100 + 1e-9 for one in found)
    for (a, b), (c, d) in itertools.combinations(zip(places, found, strict=True), 2):
        assert a == c or (a < c) == (b < d)


def test_a_map_is_blue_where_nearer_orange_where_farther_and_deep_at_most():
    ratios = pd.DataFrame([[0.25, 0.5, 1.0], [2.0, 2**0.5, np.nan]], ["a", "b"], ["x", "y", "z"])
    _, axis = plt.subplots()
    plots.heat(axis, ratios, ratios.map("{:.2f}".format), ratios < 0.4)
    assert [text.get_text() for text in axis.texts if text.get_weight() == "bold"] == ["0.25"]
    found = {patch.get_xy(): patch.get_facecolor() for patch in axis.patches}
    assert len(found) == len(axis.texts) == 5, "a missing ratio has no cell"
    near, far = to_rgb(colours.NEARER), to_rgb(colours.FARTHER)
    assert found[-0.5, -0.5] == found[0.5, -0.5] == (*near, 0.75)
    assert found[-0.5, 0.5] == (*far, 0.75)
    assert found[0.5, 0.5] == pytest.approx((*far, 0.375))
    assert found[1.5, -0.5][3] == 0


def test_the_page_neither_dims_nor_frames_a_figure_in_the_dark():
    text = CSS.read_text()
    assert re.search(r'data-theme="dark"\] \.bd-content img:not\([^)]*\) \{ filter: none', text)
    assert re.search(r'data-theme="dark"\][^{]*cell_output img \{ background: none', text)


def test_ranks_stand_where_their_goal_is_named():
    rows = [
        {"goal": goal, "judge": judge, "steps": steps, "rho": rho, "low": rho - 0.1, "high": rho}
        for judge in ("kid", "right")
        for steps in (5, 10)
        for goal, rho in (("latents", 0.2), ("embedding", 0.8))
    ]
    _, axes = plt.subplots(1, 2, sharey=True)
    plots.ranks(axes, pd.DataFrame(rows), {"kid": "KID", "right": "all right"})
    assert [axis.get_title(plt.rcParams["axes.titlelocation"]) for axis in axes] == [
        "KID",
        "all right",
    ]
    named = {label.get_text(): tick for tick, label in enumerate(axes[0].get_yticklabels())}
    for axis in axes:
        dots = [line for line in axis.lines if line.get_marker() == "o"]
        assert [line.get_label() for line in dots] == ["K = 5", "K = 10"]
        for line in dots:
            at = dict(zip(line.get_xdata(), np.round(line.get_ydata()).astype(int), strict=True))
            assert at == {0.2: named["latents"], 0.8: named["embedding"]}
    plt.close("all")


def test_effects_have_a_row_for_each_method_a_mark_for_each_count_and_ties_are_hollow():
    rows = pd.DataFrame(
        [
            ("one", 5, -0.2, 0.1, "win"),
            ("one", 10, 0.1, 0.3, "tie"),
            ("two", 10, 0.4, 0.1, "loss"),
        ],
        columns=["method", "steps", "difference", "half", "verdict"],
    )
    _, axis = plt.subplots()
    plots.effects(axis, rows, 100)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["one", "two"]
    drawn = [bars.lines[0] for bars in axis.containers]
    assert [line.get_xdata()[0] for line in drawn] == [-20, 10, 40]
    assert [line.get_markerfacecolor() for line in drawn] == [plots.NEARER, "none", plots.FARTHER]
    assert drawn[0].get_marker() != drawn[1].get_marker() == drawn[2].get_marker()
    assert drawn[0].get_ydata()[0] < 0 < drawn[1].get_ydata()[0]  # the first count above
    assert axis.get_legend_handles_labels()[1] == ["K = 5", "K = 10"]
