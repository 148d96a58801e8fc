"""Files are written whole or not at all, and named by what is in them."""

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

log = logging.getLogger(__name__)

#: What was measured or fetched once.
CACHE = Path.home() / ".cache" / "asddim"


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file beside `file`, then renames it: a kill or a full disk leaves nothing half-written under its name.

    Raises OSError with one line that names the file, whatever library failed to write it.
    """
    part = file.with_name(
        f".part-{uuid4().hex[:8]}-{file.name}"
    )  # each process has its own; the ending stays: some writers go by it
    try:
        write(part)
        with part.open("rb+") as written:
            os.fsync(written.fileno())  # or a power cut may leave an empty file under the name
        part.replace(file)
    except (
        Exception
    ) as error:  # safetensors, Arrow and Pillow each have their own errors for a full disk
        raise OSError(
            f"{file} could not be written ({error}); make room or name another place"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def seal(file: Path, value: Any) -> None:
    """Keeps a value that JSON can hold, with its hash."""
    write_whole(
        file,
        lambda part: part.write_text(
            json.dumps({"sha256": short_hash(value), "value": value}, sort_keys=True) + "\n"
        ),
    )


def unseal(file: Path) -> Any:
    """What `seal` kept; None where there is no file, or a damaged one, which is named: who asks then makes it anew."""
    try:
        held = json.loads(file.read_text())
        if held["sha256"] == short_hash(held["value"]):
            return held["value"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # no JSON, or another one
        pass
    log.warning("%s is damaged; it is made anew", file)
    return None


class DamagedFile(ValueError):
    """Raised for a file that does not hold what was written: it has to be made again."""


def save_tensors(file: Path, tensors: dict[str, torch.Tensor], text: str) -> None:
    """Keeps tensors and a text in a safetensors file, with a checksum of both."""
    header = {"made_from": text, "sha256": _checksum(tensors, text)}
    write_whole(file, partial(save_file, tensors, metadata=header))


def load_tensors(file: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors and the text that `save_tensors` kept.

    Raises FileNotFoundError, and DamagedFile, which names the file, after any change to it.
    """
    remedy = "run the same command again: it is made again"
    try:
        with safe_open(file, "pt") as content:
            names, header = list(content.keys()), content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise DamagedFile(f"{file} is damaged ({error}); {remedy}") from error
    text = header.get("made_from", "")
    if header.get("sha256") != _checksum(tensors, text):
        raise DamagedFile(f"{file} is damaged (its checksum does not match); {remedy}")
    return tensors, text


def _checksum(tensors: dict[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def locked(folder: Path) -> FileLock:
    """Makes a folder, and lets one process at a time into it; a killed one's lock goes with it. Sweeps up what killed ones left."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    return FileLock(folder / ".lock")


def sweep(folder: Path, age: float = 3600) -> None:
    """Removes what killed processes left half-written: what nobody has written to for `age` seconds."""
    for part in folder.glob(".part-*"):
        try:
            if time.time() - part.stat().st_mtime > age:
                part.unlink()
        except FileNotFoundError:  # renamed or swept meanwhile by another process
            continue


def short_hash(value: Any) -> str:
    """A short name for any value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]
