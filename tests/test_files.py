"""Files reveal any damage, and are written whole or not at all."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asddim_lib.cache import DamagedFile, load_tensors, save_tensors, seal, sweep, unseal
from asddim_lib.errors import WrongUse

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
def test_any_changed_byte_is_found(tmp_path, flip):
    file = tmp_path / "a.safetensors"
    save_tensors(file, TENSORS, json.dumps({"steps": 4}))
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(bytes(b ^ flip * (i == place) for i, b in enumerate(content)))
        with pytest.raises(DamagedFile, match=r"a\.safetensors is damaged"):
            load_tensors(file)
    file.write_bytes(content)
    load_tensors(file)


def test_any_missing_or_added_byte_is_found(tmp_path):
    file = tmp_path / "a.safetensors"
    save_tensors(file, TENSORS, "text")
    content = file.read_bytes()
    for damaged in [content[:length] for length in range(len(content))] + [content + b"\0"]:
        file.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=r"a\.safetensors is damaged .*; run the same"):
            load_tensors(file)


def test_a_file_without_a_checksum_and_a_missing_one_are_named(tmp_path):
    file = tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError):
        load_tensors(file)
    save_file({"images": TENSORS["images"]}, file)
    with pytest.raises(WrongUse, match=r"a\.safetensors is damaged \(its checksum does not match"):
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
    with pytest.raises(OSError, match=r"a\.safetensors could not be written"):
        save_tensors(file, {"first": shared[:2], "second": shared[1:]}, "new")
    assert load_tensors(file)[1] == "old"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


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
