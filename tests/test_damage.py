"""A run that meets damage, a full disk or a failing network ends as if it had not."""

import logging
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from asddim_lib import cli, load_pipeline
from asddim_lib.experiment import evaluate as experiment
from asddim_lib.experiment import grids as finder
from asddim_lib.experiment import score as scoring
from asddim_lib.experiment import setting as design
from asddim_lib.experiment import store as pictures
from asddim_lib.measure.run import Drawn, draw
from asddim_lib.models import load as models
from tests.runs import SETTING, TABLE, assert_same, flip, held


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
