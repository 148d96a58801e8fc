"""The code that README and the pages on use tell readers to copy: in order, and each block alone.

The weights of the named models are not here. diffusers' `from_pretrained` gives tiny pipelines of
the same classes instead; everything else is what a reader runs.
"""

import re
from pathlib import Path

import diffusers
import pytest
import transformers
from PIL import Image

from asddim_lib import ASDDIMScheduler
from asddim_lib.models.load import data_folder
from asddim_lib.models.prompts import load_prompts
from asddim_lib.tuning import candidates
from tests.zoo import ZOO

ROOT = Path(__file__).parents[1]
CHAPTERS = ROOT / "book" / "chapters"
#: What the recipes load, and the pipeline of the zoo that stands for it.
STAND_INS = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-3.5-medium": "sd3",
    "black-forest-labs/FLUX.1-dev": "flux-dev",
}
CLIP = "openai/clip-vit-large-patch14"


def blocks(file):
    """The Python blocks of a Markdown text that are not executed with it."""
    return re.findall(r"^```python\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL)


PAGES = {
    "readme": blocks(ROOT / "README.md"),
    "use": blocks(CHAPTERS / "use.md"),
    "grids": blocks(CHAPTERS / "grids.md"),
}
EACH = [
    pytest.param(code, id=f"{page}-{number}")
    for page, codes in PAGES.items()
    for number, code in enumerate(codes)
]


def seen_by(load):
    """`from_pretrained` of transformers, with the bundled CLIP in place of the large one."""

    def loaded(source, **options):
        return load(str(data_folder() / "clip") if source == CLIP else source, **options)

    return loaded


@pytest.fixture
def kitchen(tmp_path, monkeypatch):
    """An empty folder with the reader's own files, where the named models can be loaded."""
    monkeypatch.chdir(tmp_path)
    loaded = diffusers.DiffusionPipeline.from_pretrained.__func__

    def load(cls, source, **options):
        if source not in STAND_INS:
            return loaded(cls, source, **options)
        pipe, call = ZOO[STAND_INS[source]]()
        size = {key: value for key, value in call.items() if key in ("height", "width")}
        kind = type(pipe)
        body = {"__call__": lambda self, *one, **more: kind.__call__(self, *one, **size, **more)}
        pipe.__class__ = type(kind.__name__, (kind,), body)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(load))
    models = (transformers.AutoModel, transformers.CLIPModel)
    for kind in (*models, transformers.AutoImageProcessor, transformers.CLIPProcessor):
        monkeypatch.setattr(kind, "from_pretrained", seen_by(kind.from_pretrained))
    # find_recipe tries one scale, splits no guidance and draws few steps: here it need only run
    for name, value in {"GRIDS": (), "FLOW_GRIDS": (), "SLOW": 4}.items():
        monkeypatch.setattr(candidates, name, value)
    monkeypatch.setattr(candidates, "scales_of", lambda run, others=(): [3.0])
    monkeypatch.setattr(candidates.Builder, "splits", lambda self, form, rows: [])
    texts = load_prompts("bundled-tune")["prompt"].drop_duplicates()[:16]
    (tmp_path / "my-prompts.txt").write_text("\n".join(texts))
    Image.new("RGB", (64, 64)).save(tmp_path / "my-picture.png")
    saved = ASDDIMScheduler(grid=list(range(900, 100, -100)))
    saved.save_pretrained(tmp_path / "tuned" / "scheduler")


def check_drawn(code, names):
    """The picture is there, drawn in as many steps as the code says."""
    assert names["image"].size[0] > 0
    said = re.search(r"num_inference_steps=(\d+)", code)
    steps = int(said[1]) if said else 10
    if "**call" in code:
        steps = names["call"]["num_inference_steps"]
    assert len(names["pipe"].scheduler.timesteps) == steps


@pytest.mark.parametrize("code", EACH)
def test_a_block_runs_alone(code, kitchen):
    names = {"__name__": "__main__"}
    exec(code, names)
    check_drawn(code, names)


def test_the_blocks_run_in_order_in_one_process(kitchen):
    names = {"__name__": "__main__"}
    for codes in PAGES.values():
        for code in codes:
            exec(code, names)
            check_drawn(code, names)


def test_each_page_has_code_to_copy():
    assert all(PAGES.values())
    assert len(PAGES["use"]) > 5


def test_the_list_in_the_box_is_the_published_grid():
    """It is printed as a plain list, so that it needs none of our code."""
    (printed,) = re.findall(r"^ays_sdxl = \[(.*)\]$", "\n".join(PAGES["use"]), re.MULTILINE)
    published = diffusers.schedulers.AysSchedules["StableDiffusionXLTimesteps"]
    assert [int(word) for word in printed.split(",")] == published
