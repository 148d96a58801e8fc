"""The table of support is what the pipelines do: every cell is tried, and stands in the book."""

import csv
import re

import pytest
from support import letters_of, support_page, table

from tests import support
from tests.support import COLUMNS, ENTRIES, FILE, MODELS, WORKS

ALL = dict.fromkeys(COLUMNS, WORKS)
MOVED = "samples is changed between steps by the pipeline"
CHANGED = "pipe is StableDiffusionControlNetPipeline, which changes what its ControlNet answers"
CUT = "denoising_end is 0.7"
BLOCKS = {
    kind: f"pipe is {kind}ModularPipeline; its blocks have no derivative: use one that is not"
    for kind in ("StableDiffusionXL", "Flux")
}
PLAN = "guidance plan"
IDEOGRAM = {
    **dict.fromkeys(COLUMNS, "pipe is Ideogram4Pipeline; it sets levels of its own"),
    **dict.fromkeys(["path recorded", "g", "adjoint"], "pipe is Ideogram4Pipeline; its scales"),
    **dict.fromkeys(["draws", PLAN], WORKS),
}
DISTILLED = {
    name: {**ALL, PLAN: f"pipe is {kind}; its guidance is distilled into the network"}
    for name, kind in {
        "flux-dev": "FluxPipeline",
        "flux-kontext": "FluxKontextPipeline",
        "modular-flux": "FluxModularPipeline",
        "hunyuan-video": "HunyuanVideoPipeline",
    }.items()
}
#: What each entry must do, or the reason why it cannot. A new one needs a row.
EXPECTED = {
    "sd15": ALL,
    "sd15-pag": ALL,
    "sd15-inpaint": {**ALL, **dict.fromkeys(["path recorded", "g", "adjoint"], MOVED)},
    "sd15-guess": {**ALL, "g": CHANGED, "adjoint": CHANGED},
    "instruct-pix2pix": ALL,
    "sdxl": ALL,
    "sdxl-base": {**dict.fromkeys(COLUMNS, CUT), "draws": WORKS, PLAN: WORKS},
    "sdxl-refiner": ALL,
    "sdxl-img2img": ALL,
    "sdxl-inpaint": ALL,
    "sdxl-controlnet": ALL,
    "modular-sdxl": {**ALL, "decoded": BLOCKS["StableDiffusionXL"]},
    "animatediff": ALL,
    "pixart-sigma": ALL,
    "cogvideox": ALL,
    "sana": ALL,
    "sd3": ALL,
    "aura-flow": ALL,
    "lumina2": ALL,
    "flux-dev": DISTILLED["flux-dev"],
    "flux-kontext": DISTILLED["flux-kontext"],
    "flux-2": ALL,
    "modular-flux": {**DISTILLED["modular-flux"], "decoded": BLOCKS["Flux"]},
    "ideogram-4": IDEOGRAM,
    "chroma": ALL,
    "qwen-image": ALL,
    "z-image": ALL,
    "hunyuan-video": DISTILLED["hunyuan-video"],
    "ltx": ALL,
    "wan-2.1": ALL,
    "wan-2.2": ALL,
}


def written():
    """The rows of the file that the book shows, by the model's name."""
    with FILE.open(newline="") as file:
        return {line["model"]: line for line in csv.DictReader(file)}


def test_every_pipeline_of_the_zoo_has_a_row():
    assert set(EXPECTED) == set(ENTRIES) == set(MODELS)
    assert list(written()) == list(MODELS.values()), "run python -m tests.support"
    assert len(set(MODELS.values())) == len(MODELS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_row_names_the_class_and_the_way_in(name):
    line = written()[MODELS[name]]
    assert {key: line[key] for key in support.row(name)} == support.row(name)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_cell_is_what_the_pipeline_does(name, column):
    """Where it fails, and that was meant: run `python -m tests.support`."""
    found = support.cell(name, column)
    assert found.startswith(EXPECTED[name][column])
    assert (found == WORKS) == (EXPECTED[name][column] == WORKS)
    assert found == written()[MODELS[name]][column]


def test_the_page_shows_each_cell_and_each_reason_once():
    rows = list(written().values())
    letters, page = letters_of(rows), support_page()
    assert len(letters) == len({c for row in EXPECTED.values() for c in row.values()}) - 1
    assert table(rows, letters) in page
    for row in rows:
        (line,) = re.findall(rf"^\| {re.escape(row['model'])}<br>.*$", page, re.MULTILINE)
        cells = [part.strip() for part in line.strip("|").split("|")][2:]
        back = {letter: reason for reason, letter in letters.items()}
        assert [back.get(cell, cell) for cell in cells] == list(row.values())[3:]
    assert all(page.count(reason) == 1 for reason in letters)
    assert not re.search(r"^\{\w+\}$", page, re.MULTILINE), "a placeholder is left"
