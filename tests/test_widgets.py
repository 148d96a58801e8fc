"""Sliders without a kernel: what each position shows is what was drawn for it."""

import base64
import json
import re

import matplotlib
import matplotlib.pyplot as plt

from experiments.widgets import explore
from tests.refusals import refuses

matplotlib.use("Agg")


def draw(p, steps):
    figure, axis = plt.subplots(figsize=(1, 1))
    axis.set_title(f"{p} {steps}")
    return figure, f"p is {p}, <{steps}> steps"


def test_every_combination_is_drawn_and_the_middle_is_shown():
    page = explore(draw, title="Two & three", p=(0.5, 1.0), steps=(5, 10, 20)).data
    frames = json.loads(re.search(r"frames = (\[\[.*?\]\])", page)[1])
    assert [said for _, said in frames] == [
        f"p is {p}, <{k}> steps" for p in (0.5, 1.0) for k in (5, 10, 20)
    ]
    assert all(
        base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG") for source, _ in frames
    )
    assert len({source for source, _ in frames}) == 6
    assert frames[4][0] in page.split("<script>")[0], "the middle: the second p, the second count"
    assert 'alt="p is 1.0, &lt;10&gt; steps"' in page
    assert page.count('type="range"') == 2
    assert "Two &amp; three" in page
    assert "http" not in page
    assert not plt.get_fignums()


def test_a_page_can_tell_line_plots_from_pictures():
    def show(p):
        figure, axis = plt.subplots(figsize=(1, 1))
        axis.imshow([[p, 1], [0, 1]])
        return figure, f"a picture, {p}"

    assert '<div class="asddim-explorer drawn"' in explore(draw, title="a", p=(1,), steps=(5,)).data
    assert '<div class="asddim-explorer"' in explore(show, title="a", p=(0, 1)).data


def test_live_sliders_draw_what_they_are_moved_to():
    made = explore(draw, title="Two & three", live=True, steps=(5, 10, 20), p=(1,))
    title, steps, _, picture, sentence = made.children
    assert title.value == "<b>Two &amp; three</b>"
    assert (steps.value, sentence.value) == (10, "p is 1, <10> steps")
    before = bytes(picture.value)
    steps.value = 20
    assert sentence.value == "p is 1, <20> steps"
    assert bytes(picture.value).startswith(b"\x89PNG")
    assert picture.value != before
    assert not plt.get_fignums()


def test_a_slider_needs_something_to_choose():
    for values in ({}, {"p": ()}):
        with refuses("values"):
            explore(draw, title="none", **values)
