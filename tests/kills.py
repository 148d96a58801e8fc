"""An experiment killed at random moments: python -m tests.kills FOLDER PROCESSES KILLS. Prints how many runs that were killed came to their end.

Its processes are forks of one that has all libraries and the model in memory, so that most of a run is work. Seconds are measured, and differ.
"""

import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from asddim_lib import load_pipeline, metrics
from asddim_lib.experiment import evaluate as experiment
from asddim_lib.experiment import setting as design
from asddim_lib.experiment.shards import joined
from asddim_lib.models.prompts import load_prompts

SETTING = design.Setting(
    methods=("ddim", "combined"),
    steps=(1, 2),
    guidance_scales=(3.0,),
    reference_steps=3,
    calibrate_on=1,
    calibrate_steps=3,
    batch_size=2,
)
COUNT = 7


def start(out: Path, size: int) -> list[int]:
    """Forks the processes of one run, as torchrun does, and gives their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        if not (child := os.fork()):
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
            )
            with joined() as shard:
                experiment.evaluate(PIPE, TABLE, SETTING, out, shard=shard)
            os._exit(0)
        children.append(child)
    return children


def end(children: list[int]) -> bool:
    """Whether all came to their end by themselves."""
    found = [os.waitpid(child, 0)[1] for child in children]
    assert all(os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0 for status in found), found
    return not any(os.WIFSIGNALED(status) for status in found)


def check(out: Path, whole: Path) -> None:
    """Nothing lost, nothing twice, every byte the same."""
    held, wanted = (
        {file.name: load_file(file) for file in (folder / "images").glob("[!.]*.safetensors")}
        for folder in (out, whole)
    )
    assert set(held) == set(wanted)
    for name in wanted:
        assert all(
            torch.equal(held[name][key], wanted[name][key])
            for key in wanted[name]
            if key != "seconds"
        ), name
    records, right = (
        experiment.read_records(folder).drop(columns="seconds") for folder in (out, whole)
    )
    assert not records.duplicated(["method", "steps", "index"]).any()
    assert len(records) == COUNT * 4
    pd.testing.assert_frame_equal(records, right, check_exact=True)


if __name__ == "__main__":
    folder, size, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)  # a fork of a process that has computed in many threads hangs
    PIPE, TABLE = load_pipeline(), load_prompts("bundled", COUNT)
    metrics.load_judge(), metrics.load_clip(), metrics.reference_features()
    begun = time.perf_counter()
    assert end(start(folder / "whole", 1))
    took, runs, killed, rng = time.perf_counter() - begun, 0, 0, random.Random(size)
    while killed < kills:
        children = start(folder / str(runs), size)
        time.sleep(rng.uniform(0, 0.7 * took))
        for child in rng.sample(children, size):
            os.kill(child, signal.SIGKILL)
        if end(children):
            check(folder / str(runs), folder / "whole")
            runs += 1
        else:
            killed += 1
    assert end(start(folder / str(runs), size))
    check(folder / str(runs), folder / "whole")
    print(f"{killed} kills, {runs + 1} runs came to their end, {took:.1f} s one that is not killed")
