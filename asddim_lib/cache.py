"""Files that are written whole or not at all, and that reveal damage."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asddim_lib.errors import WrongUse

log = logging.getLogger(__name__)

#: The folder for what was measured or fetched once.
CACHE = Path.home() / ".cache" / "asddim"


class DamagedFile(WrongUse):
    """Raised for a file whose content is not what was written."""


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file beside `file`, then renames it to `file`.

    A kill or a full disk leaves no half-written file under that name. Raises OSError with one line
    that names the file, whatever library failed to write it.
    """
    # The name is unique to this call. Its ending stays: some writers choose their format by it.
    part = file.with_name(f".part-{uuid4().hex[:8]}-{file.name}")
    try:
        write(part)
        with part.open("rb+") as written:
            os.fsync(written.fileno())  # or a power cut may leave an empty file under the name
        part.replace(file)
    except Exception as error:  # safetensors, Arrow and Pillow have their own for a full disk
        raise OSError(
            f"{file} could not be written ({error}); make room or name another place"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def save_tensors(file: Path, tensors: dict[str, Tensor], metadata: str) -> None:
    """Writes tensors and a text to a safetensors file, whole.

    Its header holds a SHA-256 of both, by which `load_tensors` finds any damage. Raises OSError as
    `write_whole` does.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"made_from": metadata, "sha256": _checksum(tensors, metadata)}
    write_whole(file, partial(save_file, tensors, metadata=header))


def load_tensors(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the text that `save_tensors` wrote.

    Raises FileNotFoundError, and DamagedFile, which names the file, where any byte has changed or
    is missing.
    """
    remedy = "run the same command again: it is made again"
    try:
        with safe_open(file, "pt") as content:
            header = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in list(content.keys())}
    except SafetensorError as error:
        raise DamagedFile(f"{file} is damaged ({error}); {remedy}") from error
    metadata = header.get("made_from", "")
    if header.get("sha256") != _checksum(tensors, metadata) or not _plain_padding(file):
        raise DamagedFile(f"{file} is damaged (its checksum does not match); {remedy}")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, since NumPy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain_padding(file: Path) -> bool:
    """Whether spaces alone pad the header: other white space is valid JSON, but was not written."""
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        return content.read(size).rstrip(b" ").endswith(b"}")


def seal(file: Path, value: Any) -> None:
    """Writes a value that JSON can hold, with its hash."""
    content = json.dumps({"sha256": short_hash(value), "value": value}, sort_keys=True)
    write_whole(file, lambda part: part.write_text(content + "\n"))


def sealed(file: Path) -> Any:
    """The value that `seal` wrote. Raises FileNotFoundError, and DamagedFile, which names it."""
    try:
        content = json.loads(file.read_text())
        if content["sha256"] == short_hash(content["value"]):
            return content["value"]
    except (ValueError, KeyError, TypeError):  # no JSON, or JSON of another shape
        pass
    raise DamagedFile(f"{file} is damaged")


def unseal(file: Path) -> Any:
    """The value that `seal` wrote, or None where the file is missing or damaged.

    A damaged file is named in a warning: callers then compute its value again.
    """
    try:
        return sealed(file)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        log.warning("%s; it is made anew", error)
        return None


def locked(folder: Path) -> FileLock:
    """Makes a folder, and a lock that admits one process at a time.

    The lock of a killed process is released. Also sweeps up what killed processes left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    return FileLock(folder / ".lock")


def sweep(folder: Path, age: float = 3600) -> None:
    """Removes half-written files of killed processes: those not written to for `age` seconds."""
    for part in folder.glob(".part-*"):
        try:
            if time.time() - part.stat().st_mtime > age:
                part.unlink()
        except FileNotFoundError:  # another process has renamed or swept it meanwhile
            continue


def short_hash(value: Any) -> str:
    """A short hash of any value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]
