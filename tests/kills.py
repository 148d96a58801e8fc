"""Kills an experiment at random moments: python -m tests.kills FOLDER PROCESSES KILLS.

PROCESSES may be several numbers, as 1,2. Prints how many killed runs of each were completed by the
next one. The processes are forks of one that has all libraries and the model in memory, so that
most of a run is work. The moments differ from run to run, since they are in seconds.
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

from asddim_lib.models.prompts import load_prompts
from experiments import evaluate as experiment
from experiments import setting as design
from experiments.records import read_records
from experiments.shards import joined
from tests.tiny import coarse

SETTING = design.Setting(
    methods=("ddim", "combined"),
    steps=(1, 2),
    guidance_scales=(3.0,),
    reference_steps=3,
    calibrate_on=1,
    calibrate_steps=3,
    batch_size=2,
)
COUNT = 4


def start(out: Path, size: int) -> list[int]:
    """Forks the processes of one run, as torchrun does, and returns their ids."""
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
    """Whether all finished by themselves. A process that fails is an error."""
    statuses = [os.waitpid(child, 0)[1] for child in children]
    good = [os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0 for status in statuses]
    assert all(good), statuses
    return not any(os.WIFSIGNALED(status) for status in statuses)


def pictures(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The files of a run, without the seconds."""
    files = (folder / "images").glob("[!.]*.safetensors")
    parts = {file.name: load_file(file) for file in files}
    return {
        name: {key: tensor for key, tensor in part.items() if key != "seconds"}
        for name, part in parts.items()
    }


def check(out: Path, whole: Path) -> None:
    """Nothing is lost or repeated, and every byte is the same."""
    drawn, expected = pictures(out), pictures(whole)
    assert set(drawn) == set(expected)
    for name, part in expected.items():
        assert all(torch.equal(drawn[name][key], tensor) for key, tensor in part.items()), name
    records, right = (read_records(folder).drop(columns="seconds") for folder in (out, whole))
    assert not records.duplicated(["method", "steps", "index"]).any()
    assert len(records) == COUNT * 4
    pd.testing.assert_frame_equal(records, right, check_exact=True)


def kill_again_and_again(folder: Path, size: int, kills: int, whole: Path) -> None:
    """Kills runs of `size` processes until that many were killed, and compares all with `whole`."""
    begin = time.perf_counter()
    assert end(start(folder / "fork", 1))
    seconds = time.perf_counter() - begin
    check(folder / "fork", whole)
    runs, killed, rng = 0, 0, random.Random(size)
    while killed < kills:
        children = start(folder / str(runs), size)
        time.sleep(rng.uniform(0, 0.7 * seconds))
        for child in rng.sample(children, size):
            os.kill(child, signal.SIGKILL)
        if end(children):
            check(folder / str(runs), whole)
            runs += 1
        else:
            killed += 1
    assert end(start(folder / str(runs), size))
    check(folder / str(runs), whole)
    print(f"{size} processes: {killed} kills, {runs + 1} completed runs, {seconds:.1f} s for one")


if __name__ == "__main__":
    place, sizes, number = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3])
    torch.set_num_threads(1)  # a fork of a process that has computed in many threads hangs
    PIPE, TABLE = coarse(), load_prompts("bundled", COUNT)
    PIPE.set_progress_bar_config(disable=True)
    # The first run imports what is imported late, so that no fork has to.
    experiment.evaluate(PIPE, TABLE, SETTING, place / "whole")
    for processes in map(int, sizes):
        kill_again_and_again(place / str(processes), processes, number, place / "whole")
