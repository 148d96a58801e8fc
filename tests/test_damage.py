"""A run that meets damaged files or a full disk ends as if it had not."""

import copy
import os
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import save_file

from asddim_lib import cache
from asddim_lib.pipeline.run import Drawn
from experiments import grids
from experiments import store as pictures
from experiments.evaluate import evaluate
from experiments.records import read_records
from experiments.setting import Setting
from tests.refusals import refuses
from tests.runs import SETTING, TABLE, assert_same, files, flip

pytestmark = pytest.mark.xdist_group("damage")  # its runs are shared by its tests


def test_any_flipped_byte_of_pictures_is_found(tmp_path):
    file, generator = tmp_path / "a.safetensors", torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=generator)
    latents = torch.randn(2, 4, 2, 2, generator=generator)
    pictures.save(file, Drawn(images, latents, 0.5, torch.ones(2, dtype=torch.bool), 2))
    assert pictures.whole(file)
    content = file.read_bytes()
    for place in range(len(content)):
        flip(file, place)
        assert not pictures.whole(file), place
        file.write_bytes(content)
    for length in (0, 7, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        assert not pictures.whole(file), length
    save_file({"images": images}, file)
    message = r"a\.safetensors is damaged \(its checksum does not match\); run the same command"
    with pytest.raises(ValueError, match=message):
        pictures.load(file)


def cut(file):
    file.write_bytes(file.read_bytes()[:-9])


@pytest.fixture(scope="module")
def damaged(shared_small, tmp_path_factory):
    """A run of which one test damages files, and the next run mends them."""
    folder = tmp_path_factory.mktemp("damaged")
    evaluate(shared_small, TABLE, SETTING, folder)
    return folder


def test_damaged_pictures_are_named_and_drawn_again(small, whole, damaged, warnings_of_the_library):
    first, second, *rest = files(damaged)
    flip(first, -1)
    second.write_bytes(second.read_bytes()[:100])
    evaluate(small, TABLE, SETTING, damaged)
    assert_same(damaged, whole)
    text = warnings_of_the_library.text
    assert first.name in text
    assert second.name in text
    assert not any(file.name in text for file in rest)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, 10),
        lambda file: flip(file, -20),
        cut,
        lambda file: file.write_bytes(b""),
    ],
)
def test_damaged_records_are_named_and_made_again(
    small, whole, damaged, damage, warnings_of_the_library
):
    damage(damaged / "records.parquet")
    with refuses(str(damaged / "records.parquet")):
        read_records(damaged)
    evaluate(small, TABLE, SETTING, damaged)
    assert "records.parquet is damaged" in warnings_of_the_library.text
    assert "safetensors" not in warnings_of_the_library.text
    assert_same(damaged, whole)


MEASURED = replace(SETTING, methods=("ddim", "gradient", "oracle"), steps=(2,))


@pytest.fixture(scope="module")
def measured(shared_small, tmp_path_factory):
    """The folder of a run that measures a profile and searches a grid, and its JSON files."""
    folder = tmp_path_factory.mktemp("measured")
    evaluate(shared_small, TABLE, MEASURED, folder, teach_on=2)
    texts = {file: file.read_text() for file in (folder / "images").glob("*.json")}
    names = {file.name for file in texts}
    assert names == {"claim.json", "tuning.json", "profile-g2.json", "grid-oracle-ddim-g2-k2.json"}
    return folder, texts


@pytest.fixture(scope="module", autouse=True)
def _short_paths():
    """Nothing here depends on how finely a path is recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "RECORDED_STEPS", 8)
        yield


@pytest.mark.parametrize(
    "damage",
    [lambda file: flip(file, 20), lambda file: flip(file, -10), cut, lambda file: file.unlink()],
)
def test_claim_profile_and_grid_come_back_as_they_were(
    small, measured, damage, warnings_of_the_library
):
    """They are made from the pictures and the model; another experiment is still refused."""
    folder, texts = measured
    for file in texts:
        damage(file)
    named = (folder / "images" / "claim.json").exists()
    with refuses("out"):
        evaluate(small, TABLE.iloc[::-1], MEASURED, folder, teach_on=2)
    assert ("claim.json is damaged" in warnings_of_the_library.text) == named
    evaluate(small, TABLE, MEASURED, folder, teach_on=2)
    assert {file: file.read_text() for file in texts} == texts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a blue shirt", r"profiles of another calibrate_on, tuning_prompts; name another folder"),
        (TABLE["prompt"][0], r"tuning_prompts is .*, all of which are reported on, too"),
    ],
)
def test_a_folder_measured_on_other_prompts_is_refused(small, measured, prompt, message, tmp_path):
    (tmp_path / "prompts.txt").write_text(prompt + "\n")
    other = replace(MEASURED, calibrate_on=2, tuning_prompts=str(tmp_path / "prompts.txt"))
    with pytest.raises(ValueError, match=message):
        evaluate(small, TABLE, other, measured[0], teach_on=2)


def begun(small, folder, monkeypatch):
    """A run that is stopped after three batches, and whose libraries are upgraded then."""

    def stop(batches):
        yield from batches[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(small, TABLE, MEASURED, folder, teach_on=2, progress=stop)
    assert len(files(folder)) == 3
    upgraded = {"torch": "99.1", "asddim-lib": "99.2"}
    monkeypatch.setattr(cache, "version", lambda name: upgraded.get(name, version(name)))


def test_a_run_goes_on_after_an_upgrade(small, measured, tmp_path, monkeypatch, caplog):
    """The versions are named, and recorded with each picture; the pictures are the same."""
    begun(small, tmp_path, monkeypatch)
    evaluate(small, TABLE, MEASURED, tmp_path, teach_on=2)
    assert_same(tmp_path, measured[0])
    assert f"torch {version('torch')}, now 99.1" in caplog.text
    drawn_with = {pictures.made_from(file)["versions"]["torch"] for file in files(tmp_path)}
    assert drawn_with == {version("torch"), "99.1"}
    claim = cache.unseal(tmp_path / "images" / "claim.json")
    assert claim["versions"]["torch"] == version("torch"), "as it was begun"


def test_a_folder_that_version_0_2_began_goes_on(small, measured, tmp_path, monkeypatch, caplog):
    """Its claims have a hash of pipeline and versions in one, which no later version gives."""
    begun(small, tmp_path, monkeypatch)
    for name in ("claim", "tuning"):
        file = tmp_path / "images" / f"{name}.json"
        claim = {**cache.unseal(file), "pipeline": "0123456789abcdef", "scheduler": "0123456789"}
        del claim["versions"]
        cache.seal(file, claim)
    evaluate(small, TABLE, MEASURED, tmp_path, teach_on=2)
    assert_same(tmp_path, measured[0])
    assert caplog.text.count("was begun by version 0.2") == 2
    monkeypatch.setattr(small, "unet", copy.deepcopy(small.unet))
    with torch.no_grad():
        small.unet.conv_in.weight[0, 0, 0, 0] += 1
    claim = cache.unseal(file)
    for old in ({}, {"pipeline": "0123456789abcdef"}):
        cache.seal(file, {**claim, **old})
        with refuses("out"):
            evaluate(small, TABLE, MEASURED, tmp_path, teach_on=2)


@pytest.mark.parametrize(("first", "then"), [(64, Setting.tune_on), (Setting.tune_on, 64)])
def test_a_folder_measured_by_another_setting_is_refused(small, first, then, tmp_path):
    """Also where either is the default, which a claim does not name."""
    setting = replace(MEASURED, methods=("gradient",), tune_on=first)
    evaluate(small, TABLE, setting, tmp_path)
    claim = (tmp_path / "images" / "tuning.json").read_text()
    with refuses("out"):
        evaluate(small, TABLE, replace(setting, tune_on=then), tmp_path)
    assert (tmp_path / "images" / "tuning.json").read_text() == claim
    evaluate(small, TABLE, setting, tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A disk that holds some of the pictures."""
    disk = tmp_path / "disk"
    disk.mkdir()
    root = ["sudo", "-n"] if os.geteuid() and shutil.which("sudo") else []
    command = [*root, "mount", "-t", "tmpfs", "-o", "size=160k,mode=777", "none", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("there is no small disk, as mounting one needs root")
    yield disk
    subprocess.run([*root, "umount", "-l", str(disk)], check=True)


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(small, whole, small_disk):
    with pytest.raises(OSError, match=r"images/.* could not be written \(.*No space left"):
        evaluate(small, TABLE, SETTING, small_disk)
    assert 0 < len(files(small_disk)) < 12
    assert not list((small_disk / "images").glob(".part-*"))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    evaluate(small, TABLE, SETTING, small_disk)
    assert_same(small_disk, whole)
