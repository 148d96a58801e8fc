"""The experiment's runner: many processes, and what they share."""

import json
import logging
import re
import subprocess
import sys

import pandas as pd
import pytest

from asddim_lib import load_pipeline
from asddim_lib.experiment import evaluate as experiment
from asddim_lib.experiment.shards import Shard, joined
from tests.runs import ONE_THREAD, ROOT, SETTING, TABLE, assert_same


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """A run without a fault, and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, experiment.evaluate(pipe, TABLE, SETTING, folder)


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING, "asddim_lib")


def test_two_processes_do_what_one_does(tmp_path):
    what = [
        "-m",
        "asddim_lib.cli",
        "evaluate",
        "--count",
        "200",
        "--steps",
        "1",
        "--methods",
        "ddim,combined",
        "--batch-size",
        "25",
        "--guidance-scale",
        "1",
    ]
    for out, start in (
        ("one", [sys.executable]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]),
    ):
        done = subprocess.run(
            [*start, *what, "--out", out],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=ONE_THREAD,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "two", tmp_path / "one")
    one, two = (pd.read_csv(tmp_path / name / "summary.csv") for name in ("one", "two"))
    assert {"fid", "kid", "clip"} <= set(one)
    pd.testing.assert_frame_equal(
        one.drop(columns=["seconds", "seconds_ci"]),
        two.drop(columns=["seconds", "seconds_ci"]),
        rtol=1e-6,
    )
    assert "400/400 images" not in done.stderr  # each process draws a part
    assert "200/200 images" in done.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, processes):
    done = subprocess.run(
        [sys.executable, "-m", "tests.kills", str(tmp_path), processes, "15"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ONE_THREAD,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("15 kills")


def test_provenance_says_what_the_figures_were_measured_against(whole):
    said = json.loads((whole[0] / "provenance.json").read_text())
    assert (said["reference_n"], said["dtype"], said["prompts_from"], said["clip"]) == (
        10_000,
        "torch.float32",
        "bundled",
        "bundled",
    )
    assert re.fullmatch("[0-9a-f]{16}", said["reference_sha256"])


def test_shards_of_machines_that_share_a_folder_add_up(pipe, whole, tmp_path):
    drawn = [
        experiment.evaluate(pipe, TABLE, SETTING, tmp_path, shard=Shard(number, 3))
        for number in (2, 0)
    ]
    assert [list(part["shard"]) for part in drawn] == [["2/3"], ["0/3"]]
    files = len(list((tmp_path / "images").glob("[!.]*.safetensors")))
    assert files == 8  # of 6 turns of two methods each, shard 0 and shard 2 have two turns
    assert not (tmp_path / "records.parquet").exists()
    experiment.evaluate(pipe, TABLE, SETTING, tmp_path)  # draws what is left, and judges
    assert_same(tmp_path, whole[0])


def test_shares_are_all_the_work_and_nothing_twice():
    shares = [list(Shard(number, 4).share(range(10))) for number in range(4)]
    assert sorted(number for share in shares for number in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) == 1


@pytest.mark.parametrize("text", ["4/4", "1", "-1/2", "a/b", "1/0"])
def test_what_names_no_shard_is_refused(text):
    with pytest.raises(ValueError, match=f"shard is {text}; give NUMBER/COUNT"), joined(text):
        pass


def test_a_shard_in_a_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="in a group of 2 processes"), joined("0/2"):
        pass
