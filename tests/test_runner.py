"""The experiment's runner: many processes, kills and faults, and what a run will cost."""

import json
import logging
import mmap
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from asddim_lib import calibrate, load_pipeline
from asddim_lib.cli import app as cli
from asddim_lib.experiment import evaluate as experiment
from asddim_lib.experiment import grids as finder
from asddim_lib.experiment import memory
from asddim_lib.experiment import score as scoring
from asddim_lib.experiment import setting as design
from asddim_lib.experiment import store as pictures
from asddim_lib.experiment.cost import Cost, calibration, measure, plan
from asddim_lib.experiment.shards import Shard, joined
from asddim_lib.files import sweep
from asddim_lib.measure.run import Drawn, draw
from asddim_lib.models import load as models
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


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """A run without a fault, and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, experiment.evaluate(pipe, TABLE, SETTING, folder)


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


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_any_flipped_byte_is_found(tmp_path):
    file, generator = tmp_path / "a.safetensors", torch.Generator().manual_seed(0)
    drawn = Drawn(
        torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=generator),
        torch.randn(2, 4, 2, 2, generator=generator),
        0.5,
        torch.ones(2, dtype=torch.bool),
        2,
    )
    pictures.save(file, drawn)
    assert pictures.whole(file)
    content = file.read_bytes()
    for place in range(len(content)):
        flip(file, place)
        assert not pictures.whole(file), place
        file.write_bytes(content)
    for length in (0, 7, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert not pictures.whole(file), length
    save_file({"images": drawn.images}, file)
    with pytest.raises(
        ValueError,
        match=r"a\.safetensors is damaged \(its checksum does not match\); run the same command",
    ):
        pictures.load(file)


def test_damage_is_named_and_mended_by_the_next_run(pipe, whole, tmp_path, caplog):
    experiment.evaluate(pipe, TABLE, SETTING, tmp_path)
    first, second = sorted((tmp_path / "images").glob("[!.]*.safetensors"))[:2]
    records = tmp_path / "records.parquet"
    flip(first, -1)
    second.write_bytes(second.read_bytes()[:100])
    for hurt in (
        lambda: flip(records, 10),
        lambda: flip(records, -20),
        lambda: records.write_bytes(records.read_bytes()[:-9]),
        lambda: records.write_bytes(b""),
    ):
        hurt()
        with pytest.raises(ValueError, match=r"records\.parquet is damaged"):
            experiment.read_records(tmp_path)
        caplog.clear()
        experiment.evaluate(pipe, TABLE, SETTING, tmp_path)
        assert "records.parquet is damaged" in caplog.text
        assert_same(tmp_path, whole[0])
        assert (
            (first.name in caplog.text)
            == (second.name in caplog.text)
            == ("safetensors" in caplog.text)
        )


def test_what_a_folder_is_for_is_mended_from_its_pictures(pipe, whole, tmp_path, caplog):
    """Claim, profile and grid.

    Damaged or gone, they come back as they were; and another experiment is still refused.
    """
    setting = replace(SETTING, methods=(*SETTING.methods, "gradient", "oracle"))
    experiment.evaluate(pipe, TABLE, setting, tmp_path, teach_on=2)
    kept = {file.name: file.read_bytes() for file in (tmp_path / "images").glob("*.json")}
    assert {"claim.json", "tuning.json", "profile-g2.json"} < set(kept)
    assert any(name.startswith("grid-oracle") for name in kept)
    for hurt in (
        lambda file: flip(file, 20),
        lambda file: flip(file, -10),
        lambda file: file.write_bytes(file.read_bytes()[:-9]),
        lambda file: file.unlink(),
    ):
        for name in kept:
            hurt(tmp_path / "images" / name)
        caplog.clear()
        with pytest.raises(ValueError, match="pictures of another prompts"):
            experiment.evaluate(pipe, TABLE.iloc[::-1], setting, tmp_path, teach_on=2)
        assert ("claim.json is damaged; it is made anew" in caplog.text) == (
            tmp_path / "images" / "claim.json"
        ).exists()
        experiment.evaluate(pipe, TABLE, setting, tmp_path, teach_on=2)
        assert {name: (tmp_path / "images" / name).read_bytes() for name in kept} == kept
    with pytest.raises(
        ValueError,
        match=r"holds profiles of another tuning_prompts, calibrate_on; name another folder",
    ):
        experiment.evaluate(
            pipe,
            TABLE,
            replace(setting, calibrate_on=2, tuning_prompts=str(words(tmp_path, "a blue shirt"))),
            tmp_path,
            teach_on=2,
        )
    with pytest.raises(
        ValueError, match=r"tuning_prompts is .*, all of which are reported on, too"
    ):
        experiment.evaluate(
            pipe,
            TABLE,
            replace(setting, tuning_prompts=str(words(tmp_path, TABLE["prompt"][0]))),
            tmp_path,
            teach_on=2,
        )


def words(folder, prompt):
    """A file of one prompt."""
    (folder / "prompts.txt").write_text(prompt + "\n")
    return folder / "prompts.txt"


def test_a_disk_that_was_full_is_gone_on_with(pipe, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "none", str(disk)],
        capture_output=True,
        check=False,
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(OSError, match=r"images/.* could not be written \(.*No space left"):
            experiment.evaluate(pipe, TABLE, SETTING, disk)
        assert 0 < len(list((disk / "images").glob("[!.]*.safetensors"))) < 12
        assert not list((disk / "images").glob(".part-*"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        experiment.evaluate(pipe, TABLE, SETTING, disk)
        assert_same(disk, whole[0])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_picture_that_is_not_finite_fails_alone(pipe, whole, tmp_path, monkeypatch, caplog):
    bad = TABLE["prompt"][1]
    asked = pipe.tokenizer(
        bad, padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
    ).input_ids[0]

    def spoil(encoder, args, out):
        out[0][(args[0].cpu() == asked).all(1)] = torch.nan

    monkeypatch.setattr(models, "load_pipeline", lambda *args, **kwargs: pipe)
    arguments = [
        "evaluate",
        "--out",
        str(tmp_path),
        "--count",
        "5",
        "--steps",
        "1,2",
        "--methods",
        "ddim,noise",
        "--guidance-scale",
        "2",
        "--batch-size",
        "2",
    ]
    handle = pipe.text_encoder.register_forward_hook(spoil)
    try:
        done = CliRunner().invoke(cli.app, arguments)
    finally:
        handle.remove()
    assert done.exit_code == 1
    assert "4 pictures failed" in done.output
    assert f"not finite for prompt {bad!r}, seed 1" in caplog.text
    summary, records = pd.read_csv(tmp_path / "summary.csv"), experiment.read_records(tmp_path)
    assert set(summary["failed"]) == {1}
    assert set(summary["n"]) == {4}
    assert summary["clip"].notna().all()
    assert set(records[records["failed"]]["index"]) == {1}
    assert records[records["failed"]][["clip", "right_all"]].isna().all(axis=None)
    (files, _), (wanted, right), good = held(tmp_path), held(whole[0]), ~records["failed"]
    for name, parts in wanted.items():
        assert torch.equal(
            files[name]["images"][files[name]["finite"]], parts["images"][files[name]["finite"]]
        )  # the other picture of the batch is what it was
    assert list(records["clip"][good]) == pytest.approx(list(right["clip"][good]), rel=1e-5)
    against = scoring.paired(records, "ddim", "clip")
    assert against["difference"].notna().all()
    done = CliRunner().invoke(cli.app, arguments)  # the network is mended
    assert done.exit_code == 0, done.output
    pd.testing.assert_frame_equal(held(tmp_path)[1], right, check_exact=True)


def test_a_reference_that_is_not_finite_fails_the_run(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_pipeline", lambda *args, **kwargs: pipe)
    network = pipe.unet.forward

    def spoil(sample, timestep, *rest, **more):
        out = network(sample, timestep, *rest, **more)
        return (
            (out[0] * torch.nan,) if int(timestep) == 749 else out
        )  # of four trailing steps, and of none of two

    monkeypatch.setattr(pipe.unet, "forward", spoil)
    arguments = [
        "evaluate",
        "--out",
        str(tmp_path),
        "--count",
        "2",
        "--steps",
        "2",
        "--methods",
        "ddim-trailing",
        "--reference-steps",
        "4",
        "--guidance-scale",
        "2",
    ]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 1
    assert "2 pictures failed" in done.output


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_where_memory_runs_out_fewer_are_drawn_at_once(
    pipe, tmp_path, message, caplog, monkeypatch
):
    refused, limit = [], 4

    def full(network, args):
        if len(args[0]) > limit:
            refused.append(len(args[0]))
            raise (torch.OutOfMemoryError if "CUDA" in message else RuntimeError)(message)

    setting = design.Setting(
        methods=("ddim", "noise"), steps=(2,), guidance_scales=(2.0,), batch_size=5
    )
    grids = {cell: finder.grid_for(pipe.scheduler, cell, setting) for cell in design.cells(setting)}
    experiment.generate(pipe, list(TABLE["prompt"]), setting, grids, tmp_path / "free")
    handle = pipe.unet.register_forward_pre_hook(full)
    try:
        experiment.generate(pipe, list(TABLE["prompt"]), setting, grids, tmp_path / "full")
        assert refused == [
            10,
            10,
        ]  # the first call, and the first that counts; the second method keeps what was learnt
        assert "drawing 2 at once" in caplog.text
        limit = 1
        with pytest.raises(
            ValueError, match="batch_size is 1; the device has no memory for one picture"
        ):
            draw(pipe, ["a red boot"], [0], guidance_scale=2.0, num_inference_steps=1)
    finally:
        handle.remove()
    for cell in design.cells(setting):
        free, full_up = (
            pictures.load(design.batches(cell, 5, setting)[0].file(tmp_path / name))
            for name in ("free", "full")
        )
        assert (int(free["at_once"]), int(full_up["at_once"])) == (5, 2)
        torch.testing.assert_close(free["latents"], full_up["latents"], rtol=1e-3, atol=1e-3)
        assert (free["images"].int() - full_up["images"].int()).abs().max() <= 1
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **kwargs: 1 / torch.zeros(0)[0])
    with pytest.raises(IndexError):  # other faults are not taken for this one
        draw(pipe, ["a red boot"], [0], guidance_scale=2.0, num_inference_steps=1)


def test_a_plan_counts_what_a_run_evaluates(pipe):
    setting = design.Setting(
        methods=("ddim", "noise"),
        steps=(4, 10),
        guidance_scales=(1.0, 5.0),
        reference_steps=50,
        adjoint_probes=2,
        calibrate_on=2,
        calibrate_steps=6,
    )
    found = plan(setting, 100, Cost(seconds=0.5, rest=2.0, kilobytes=10.0, memory=None)).set_index(
        ["guidance_scale", "steps"]
    )
    assert found["pictures"].to_dict() == {
        (g, k): 200 if k < 50 else 100 for g in (1.0, 5.0) for k in (4, 10, 50)
    }
    assert found["evaluations"][5.0, 10] == 200 * 10 * 2
    assert found["evaluations"][1.0, 50] == 100 * 50
    assert found["hours"][5.0, 4] * 3600 == pytest.approx(200 * (8 * 0.5 + 2))
    assert found["hours_a_row"][5.0, 4] * 2 == pytest.approx(found["hours"][5.0, 4])
    assert found["gigabytes"].sum() == pytest.approx(1000 * 10 / 1e6)
    assert calibration(setting) == 0, "no method needs a profile"
    setting, how = (
        replace(setting, methods=("noise", "combined")),
        {"num_steps": 6, "adjoint_probes": 2},
    )
    assert calibration(setting) == sum(
        calibrate(pipe, list(TABLE["prompt"][:2]), guidance_scale=scale, **how).evaluations
        for scale in (1.0, 5.0)
    )


def test_a_plan_measures_this_device_and_touches_nothing_else(pipe, whole, tmp_path, monkeypatch):
    cost = measure(pipe, TABLE, SETTING)
    begun = time.perf_counter()
    draw(pipe, list(TABLE["prompt"][:2]), [0, 1], guidance_scale=2.0, num_inference_steps=20)
    took = (time.perf_counter() - begun) / 2
    assert 0.2 < (cost.seconds * 40 + cost.rest) / took < 5  # a shared machine's speed changes
    batch = pictures.load(next((whole[0] / "images").glob("[!.]*000000.safetensors")))
    assert cost.kilobytes == pytest.approx(
        sum(batch[key].nbytes for key in ("images", "latents")) / 2e3
    )
    assert 100 < cost.memory < 64_000
    monkeypatch.setattr(models, "load_pipeline", lambda *args, **kwargs: pipe)
    done = CliRunner().invoke(
        cli.app,
        ["evaluate", "--out", str(tmp_path / "o"), "--count", "4", "--steps", "1,2", "--plan"],
    )
    assert done.exit_code == 0, done.output
    assert "40 pictures, 120 network evaluations" in done.output
    assert re.search(r"measured on cpu, 4 pictures at once: [\d.e-]+ s an evaluation", done.output)
    assert not list(tmp_path.iterdir())


def test_prompts_of_one_s_own_are_scored_by_the_clip_that_is_named(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_pipeline", lambda *args, **kwargs: pipe)
    (tmp_path / "own.csv").write_text(
        "Prompts,Category\n"
        + "".join(f"{text},{kind}\n" for text, kind in zip(TABLE["prompt"], "aabbb", strict=True))
    )
    arguments = [
        "evaluate",
        "--prompts",
        str(tmp_path / "own.csv"),
        "--count",
        "5",
        "--steps",
        "2",
        "--methods",
        "ddim",
        "--guidance-scale",
        "2",
        "--reference-steps",
        "4",
    ]
    for clip in ([], ["--clip", "bundled"]):
        done = CliRunner().invoke(cli.app, [*arguments, "--out", str(tmp_path / "o"), *clip])
        assert done.exit_code == 0, done.output
    summary, records = (
        pd.read_csv(tmp_path / "o" / "summary.csv"),
        experiment.read_records(tmp_path / "o"),
    )
    assert {"clip", "distance"} <= set(summary)
    assert not {"fid", "kid", "right"} & set(summary)
    assert list(records["category"]) == list("aabbb")
    said = json.loads((tmp_path / "o" / "provenance.json").read_text())
    assert (said["clip"], said["prompts_from"]) == ("bundled", "own.csv")
    done = CliRunner().invoke(
        cli.app, [*arguments, "--out", str(tmp_path / "o"), "--clip", "/nowhere"]
    )
    assert "clip is '/nowhere', which could not be loaded" in str(done.exception)


def test_the_same_latents_and_a_negative_prompt_are_for_all_pictures(pipe, tmp_path):
    same = TABLE.iloc[[0, 0, 0]].reset_index(drop=True)
    setting = replace(SETTING, methods=("noise",), steps=(2,))
    torch.save(
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)),
        tmp_path / "latents.pt",
    )
    drawn = {}
    for name, how in {
        "own": {},
        "same": {"latents": str(tmp_path / "latents.pt")},
        "both": {"latents": str(tmp_path / "latents.pt"), "negative_prompt": "blue"},
    }.items():
        experiment.evaluate(pipe, same, replace(setting, **how), tmp_path / name)
        drawn[name] = torch.cat([parts["latents"] for parts in held(tmp_path / name)[0].values()])
    spread = {name: (latents - latents[0]).abs().max() for name, latents in drawn.items()}
    assert spread["own"] > 1
    assert max(spread["same"], spread["both"]) < 1e-4
    assert (drawn["same"] - drawn["both"]).abs().max() > 0.1
    with pytest.raises(
        ValueError, match="pictures of another latents, negative_prompt; name another folder"
    ):
        experiment.evaluate(pipe, same, setting, tmp_path / "both")


def test_latents_that_are_none_are_named(tmp_path):
    torch.save({"latents": 1}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_text("no")
    for name, message in {
        "a.pt": "give a tensor of 1 × c × h × w",
        "b.pt": "could not be read",
        "c.pt": "No such file",
    }.items():
        with pytest.raises(ValueError, match=message):
            pictures.load_latents(str(tmp_path / name))
    with pytest.raises(
        ValueError, match="negative_prompt is blue; profiles are measured without one"
    ):
        replace(SETTING, methods=("combined",), negative_prompt="blue")


def test_the_bar_goes_by_evaluations_and_counts_images(capsys):
    cells = [design.Cell("ddim", steps, 2.0) for steps in (1, 9)]
    waiting = [batch for cell in cells for batch in design.batches(cell, 4, SETTING)]
    assert list(cli._bar(waiting, Shard())) == waiting
    shown = capsys.readouterr().err
    assert "8/8 images" in shown
    assert "images/s" in shown
    assert "100%" in shown


def test_only_what_was_left_long_ago_is_swept(tmp_path):
    for name in (".part-old", ".part-new", "whole"):
        (tmp_path / name).write_text("x")
    os.utime(tmp_path / ".part-old", (time.time() - 7200,) * 2)
    sweep(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == [".part-new", "whole"]


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.WARNING, "asddim_lib")


def test_memory_is_saved_by_diffusers_switches(pipe, tmp_path, monkeypatch):
    sliced = load_pipeline(save_memory=("vae-slicing", "vae-tiling"))
    assert sliced.vae.use_slicing
    assert sliced.vae.use_tiling
    plain, less = (
        draw(
            one, list(TABLE["prompt"][:3]), [0, 1, 2], num_inference_steps=2, guidance_scale=2.0
        ).images.short()
        for one in (pipe, sliced)
    )
    assert (plain - less).abs().max() <= 1, (
        "pictures of 64 pixels are one tile; decoded one by one, they round otherwise"
    )
    experiment.evaluate(sliced, TABLE, SETTING, tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text())["save_memory"] == [
        "vae-slicing",
        "vae-tiling",
    ]
    with pytest.raises(ValueError, match="pictures of another save_memory"):
        experiment.evaluate(pipe, TABLE, SETTING, tmp_path)
    for switches, message in (
        (("fewer",), "save_memory is fewer; use some of vae-slicing"),
        (("offload",), "save_memory is offload on a CPU; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pipeline(save_memory=switches)
    told = []
    monkeypatch.setattr(
        type(pipe),
        "enable_model_cpu_offload",
        lambda self, device: told.append((device, self.device.type)),
    )
    load_pipeline(device="cuda:1", save_memory=("offload",))
    assert told == [("cuda:1", "cpu")], "nothing was moved there beforehand"


def test_a_commit_is_named(tmp_path, monkeypatch):
    found = experiment.commit()
    assert found is None or re.fullmatch(r"[0-9a-f]{7,40}\+?", found)
    monkeypatch.setattr(experiment, "__file__", str(tmp_path / "lib" / "experiment.py"))
    assert re.fullmatch(r"\d+\.\d+\S*", experiment.commit()), "an installed library has a version"


def test_where_the_system_does_not_say_memory_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nowhere")
    assert memory.Peak(torch.device("cpu")).megabytes() is None
    monkeypatch.undo()
    before = memory.Peak(torch.device("cpu"))
    held = mmap.mmap(
        -1, 256_000_000
    )  # unlike a tensor's, its memory goes back to the system for certain
    np.frombuffer(held, np.uint8)[::1024] = 1  # and is taken only when it is written to
    assert before.megabytes() > 256
    now = memory.Peak(torch.device("cpu")).megabytes()
    held.close()
    assert memory.Peak(torch.device("cpu")).megabytes() < now - 200, (
        "what was held before it was made does not count"
    )
