"""Files are written whole or not at all, and named by what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

#: What was measured or fetched once.
CACHE = Path.home() / ".cache" / "asddim"


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a file beside `file`, then renames it: a kill or a full disk leaves nothing half-written under its name.

    Raises OSError with one line that names the file, whatever library failed to write it.
    """
    part = file.with_name(f".part-{uuid4().hex[:8]}-{file.name}")  # each process has its own; the ending stays: some writers go by it
    try:
        write(part)
        with part.open("rb+") as written:
            os.fsync(written.fileno())  # or a power cut may leave an empty file under the name
        part.replace(file)
    except Exception as error:  # safetensors, Arrow and Pillow each have their own errors for a full disk
        raise OSError(f"{file} could not be written ({error}); make room or name another place") from error
    finally:
        part.unlink(missing_ok=True)


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
