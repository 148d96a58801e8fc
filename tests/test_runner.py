"""The experiment in many processes: shards, torchrun, and kills."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from experiments.cli import app
from experiments.evaluate import evaluate
from experiments.shards import Shard, joined
from tests.refusals import refuses
from tests.runs import ONE_THREAD, ROOT, SETTING, TABLE, assert_same, files
from tests.tiny import coarse

COMMAND = "evaluate --count 12 --batch-size 3 --steps 1 --methods ddim,combined --guidance-scale 1"


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_processes_do_what_one_does(one_thread, tmp_path):
    coarse().save_pretrained(tmp_path / "model")
    words = [*COMMAND.split(), "--model", str(tmp_path / "model")]
    alone = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.exception
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launch, "-m", "experiments", *words, "--out", "two"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "two", tmp_path / "one")
    one, two = (
        pd.read_csv(tmp_path / name / "summary.csv").drop(columns=["seconds", "seconds_ci"])
        for name in ("one", "two")
    )
    assert {"kid", "clip", "right"} <= set(one)
    pd.testing.assert_frame_equal(one, two, rtol=1e-6)
    assert "24/24 images" not in done.stderr  # each process draws a part
    assert "12/12 images" in done.stderr


def test_runs_that_are_killed_again_and_again_end_as_one_that_is_not(tmp_path):
    command = [sys.executable, "-m", "tests.kills", str(tmp_path), "1,2", "5"]
    how = {"capture_output": True, "text": True, "cwd": ROOT, "env": ONE_THREAD, "timeout": 1800}
    done = subprocess.run(command, **how)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\d) processes: 5 kills", done.stdout, re.MULTILINE) == ["1", "2"]


def test_provenance_says_what_the_figures_were_measured_against(whole):
    provenance = json.loads((whole / "provenance.json").read_text())
    expected = {
        "reference_n": 10_000,
        "dtype": "torch.float32",
        "prompts_from": "bundled",
        "clip": "bundled",
    }
    assert {key: provenance[key] for key in expected} == expected
    assert re.fullmatch("[0-9a-f]{16}", provenance["reference_sha256"])


def test_shards_of_machines_that_share_a_folder_add_up(small, whole, tmp_path):
    """Six turns have two methods each: shards 0 and 2 of 3 have two turns each."""
    for number in (2, 0):
        rows = evaluate(small, TABLE, SETTING, tmp_path, shard=Shard(number, 3))
        assert list(rows["shard"]) == [f"{number}/3"]
    assert len(files(tmp_path)) == 8
    assert not (tmp_path / "records.parquet").exists()
    evaluate(small, TABLE, SETTING, tmp_path)  # draws the rest, and judges
    assert_same(tmp_path, whole)


def test_shares_are_all_the_work_and_nothing_twice():
    shares = [list(Shard(number, 4).share(range(10))) for number in range(4)]
    assert sorted(number for share in shares for number in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) == 1


@pytest.mark.parametrize("text", ["4/4", "1", "-1/2", "a/b", "1/0"])
def test_what_names_no_shard_is_refused(text):
    with refuses("shard"), joined(text):
        pass


def test_a_shard_in_a_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with refuses("shard"), joined("0/2"):
        pass
