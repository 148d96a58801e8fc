"""A small run of the experiment, and how two runs are compared."""

import os
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from asddim_lib.models.prompts import load_prompts
from experiments.records import read_records
from experiments.setting import Setting

ROOT = Path(__file__).parents[1]
SETTING = Setting(
    methods=("ddim", "noise"),
    steps=(1, 2),
    guidance_scales=(2.0,),
    calibrate_on=1,
    calibrate_steps=3,
    batch_size=2,
)
TABLE = load_prompts("bundled", 5)
#: The command for that run, without its folder.
COMMAND = "evaluate --count 5 --steps 1,2 --methods ddim,noise --guidance-scale 2 --batch-size 2"
#: With one thread, the order of a sum is the same in any process.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def files(folder):
    """The batches of a run."""
    return sorted((folder / "images").glob("[!.]*.safetensors"))


def contents(folder):
    """The pictures of a run by file, and its records, without the seconds, which are measured."""
    parts = {file.name: load_file(file) for file in files(folder)}
    for part in parts.values():
        part.pop("seconds")
    return parts, read_records(folder).drop(columns="seconds")


def assert_same(folder, expected):
    """Two runs gave the same pictures and records, to the bit."""
    (parts, records), (parts_expected, records_expected) = contents(folder), contents(expected)
    assert list(parts) == list(parts_expected)
    for name, part in parts_expected.items():
        assert all(torch.equal(parts[name][key], tensor) for key, tensor in part.items()), name
    pd.testing.assert_frame_equal(records, records_expected, check_exact=True)


def flip(file, place):
    """Changes one bit."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
