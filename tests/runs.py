"""A small run of the experiment, and how two runs are compared."""

import os
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from asddim_lib.experiment import evaluate as experiment
from asddim_lib.experiment import setting as design
from asddim_lib.models.prompts import load_prompts

ROOT = Path(__file__).parents[1]
SETTING = design.Setting(
    methods=("ddim", "noise"),
    steps=(1, 2),
    guidance_scales=(2.0,),
    calibrate_on=1,
    calibrate_steps=3,
    batch_size=2,
)
TABLE = load_prompts("bundled", 5)
ONE_THREAD = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}  # the order of a sum is then the same in any process


def held(folder):
    """The pictures of a run, and its records without the seconds, which are measured."""
    files = sorted((folder / "images").glob("[!.]*.safetensors"))
    return {
        f.name: {k: v for k, v in load_file(f).items() if k != "seconds"} for f in files
    }, experiment.read_records(folder).drop(columns="seconds")


def assert_same(folder, other):
    (pictures_here, records), (pictures_there, wanted) = held(folder), held(other)
    assert list(pictures_here) == list(pictures_there)
    for name, parts in pictures_there.items():
        assert all(torch.equal(pictures_here[name][key], part) for key, part in parts.items()), name
    pd.testing.assert_frame_equal(records, wanted, check_exact=True)


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
