"""Files reveal any damage, and are written whole or not at all."""

import errno
import itertools
import json
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from asddim_lib import cache
from asddim_lib.cache import (
    DamagedFile,
    check_writable,
    kept,
    load_tensors,
    save_tensors,
    seal,
    sweep,
    unseal,
    write_whole,
)
from tests.refusals import refuses

TENSORS = {
    "images": torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4),
    "latents": torch.linspace(-1, 1, 6, dtype=torch.bfloat16).reshape(2, 3),
    "transposed": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
    "finite": torch.tensor([True, False]),
    "seconds": torch.tensor(0.5),
    "empty": torch.empty(0, 4, dtype=torch.float16),
}


@pytest.mark.parametrize("metadata", ["", "a text", json.dumps({"σ": [1, None]}), "σ\n\t\x01"])
def test_tensors_and_metadata_come_back(tmp_path, metadata):
    file = tmp_path / "a.safetensors"
    save_tensors(file, TENSORS, metadata)
    tensors, text = load_tensors(file)
    assert text == metadata
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("flip", [0x01, 0x29, 0xFF])  # 0x29 turns a space into a tab
def test_a_changed_byte_is_found_or_changes_nothing(tmp_path, flip):
    """White space pads the header: another kind of it means the same."""
    file = tmp_path / "a.safetensors"
    save_tensors(file, TENSORS, json.dumps({"steps": 4}))
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(bytes(b ^ flip * (i == place) for i, b in enumerate(content)))
        if content[place] != ord(" "):
            with refuses(str(file)):
                load_tensors(file)
            continue
        with suppress(DamagedFile):
            tensors, text = load_tensors(file)
            assert json.loads(text) == {"steps": 4}
            assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    file.write_bytes(content)
    load_tensors(file)


def test_any_missing_or_added_byte_is_found(tmp_path):
    file = tmp_path / "a.safetensors"
    save_tensors(file, TENSORS, "text")
    content = file.read_bytes()
    for damaged in [content[:length] for length in range(len(content))] + [content + b"\0"]:
        file.write_bytes(damaged)
        with refuses(str(file)):
            load_tensors(file)


def test_a_file_without_a_checksum_and_a_missing_one_are_named(tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError):
        load_tensors(file)
    save_file({"images": TENSORS["images"]}, file)
    with refuses(str(file)):
        load_tensors(file)


def test_a_value_comes_back_and_damage_is_named(tmp_path, caplog):
    file, value = tmp_path / "a.json", {"grid": [3, 2, 1], "σ": None}
    assert unseal(file) is None
    assert not caplog.text
    seal(file, value)
    assert unseal(file) == value
    content = file.read_text()
    damaged = ["", "[1]", content[:-4], content.replace("3", "4")]
    for text, count in zip(damaged, itertools.count(1)):
        file.write_text(text)
        assert unseal(file) is None
        assert caplog.text.count("a.json is damaged") == count


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.safetensors"
    save_tensors(file, TENSORS, "old")
    shared = torch.zeros(4)  # safetensors refuses two views of one storage
    with pytest.raises(RuntimeError, match="share memory"):  # a fault of ours keeps its traceback
        save_tensors(file, {"first": shared[:2], "second": shared[1:]}, "new")
    assert load_tensors(file)[1] == "old"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT, None])
@pytest.mark.parametrize("raised", [OSError, SafetensorError])
def test_a_failed_write_is_one_line_with_its_cause_and_what_helps(tmp_path, number, raised):
    """safetensors says a system's error in the words of its own language."""
    cause = "cannot write mode P" if number is None else os.strerror(number)
    error = OSError(*filter(None, (number, cause)))
    if raised is SafetensorError:
        error = raised(f"I/O error: {cause}" + (f" (os error {number})" if number else ""))

    def write(part):
        part.write_text("half")
        raise error

    with pytest.raises(OSError, match=r"a\.csv could not be written") as told:
        write_whole(tmp_path / "a.csv", write)
    line = str(told.value)
    assert cause in line
    assert "\n" not in line
    assert (";" in line) == (number is not None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/a.csv", "file/a.csv"])
def test_a_file_without_a_folder_says_so(tmp_path, place):
    (tmp_path / "file").touch()
    for write in (lambda part: part.write_text(""), lambda part: save_file(TENSORS, part)):
        with pytest.raises(OSError, match=r"a\.csv could not be written .*name another place"):
            write_whole(tmp_path / place, write)


def test_others_may_read_what_is_written(tmp_path):
    before = os.umask(0o022)
    try:
        save_tensors(tmp_path / "a.safetensors", TENSORS, "")
        seal(tmp_path / "a.json", "σ")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize(("name", "value"), [("a.json", [1, "σ"]), ("a.safetensors", TENSORS)])
def test_a_cache_makes_a_value_once_and_again_after_damage(tmp_path, caplog, name, value):
    file, calls = tmp_path / "deep" / name, []

    def make():
        calls.append(1)
        return value

    for count, damage in enumerate((bytes, lambda: None, lambda: file.write_bytes(b"{")), 1):
        damage()
        found = kept(file, make)
        assert found.keys() == value.keys() if isinstance(value, dict) else found == value
        assert len(calls) == (1, 1, 2)[count - 1]
    assert f"{file} is damaged" in caplog.text
    kept(None, make)
    assert len(calls) == 3


def test_other_versions_are_reported_once_and_change_nothing(tmp_path, caplog, monkeypatch):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for file in (first, second):
        kept(file, lambda: TENSORS)
    assert not caplog.text
    monkeypatch.setattr(cache, "version", lambda name: {"torch": "99.1"}.get(name, version(name)))
    for file in (first, second):
        assert torch.equal(kept(file, dict)["images"], TENSORS["images"])
    assert caplog.text.count(f"torch {version('torch')}, now 99.1") == 1
    assert "diffusers" not in caplog.text


@pytest.mark.parametrize("place", ["file/deep", "/proc/deep"])
def test_a_folder_that_cannot_be_written_is_named_before_any_work(tmp_path, place):
    (tmp_path / "file").touch()
    with refuses("cache"):
        check_writable("cache", tmp_path / place)
    check_writable("cache", tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_old_parts_are_swept(tmp_path):
    part, file = tmp_path / ".part-0-a.json", tmp_path / "a.json"
    part.touch(), file.touch()
    sweep(tmp_path)
    assert part.exists()
    sweep(tmp_path, age=-1)
    assert not part.exists()
    assert file.exists()


def test_files_of_older_versions_load():
    folder = Path(__file__).parent / "before" / "experiment" / "images"
    tensors, metadata = load_tensors(folder / "ddim-ddim-g2-k2-000000.safetensors")
    assert {"images", "latents"} <= set(tensors)
    assert json.loads(metadata)
