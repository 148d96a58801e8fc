"""The cache: files written whole or not at all, which reveal damage and are then made again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from safetensors import SafetensorError, safe_open

from asddim_lib.errors import WrongUse

if TYPE_CHECKING:  # the command line needs this module at once, and torch only later
    from torch import Tensor

log = logging.getLogger(__name__)

#: Libraries whose versions are recorded beside results.
LIBRARIES = ("asddim-lib", "diffusers", "torch", "transformers")
#: Tensors by name, or a value that JSON can store.
Value = TypeVar("Value", bound=Any)


def cache_folder() -> Path:
    """The folder for what was measured or fetched once: asddim in XDG_CACHE_HOME or ~/.cache.

    Raises WrongUse where there is no home.
    """
    home = os.path.expanduser("~")
    place = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    if place.startswith("~"):
        raise WrongUse("HOME is not set; set it, or XDG_CACHE_HOME, to a folder for the cache")
    return Path(place) / "asddim"


class DamagedFile(WrongUse):
    """Raised for a file whose content is not what was written."""


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file, then renames it to `file`.

    A kill or a full disk leaves no half-written file under that name. Raises OSError with one line:
    the file, the cause, and a remedy if there is a plain one.
    """
    # The name is unique to this call. Its ending stays: some writers choose their format by it.
    part = file.with_name(f".part-{uuid4().hex[:8]}-{file.name}")
    try:
        part.touch()
        mode = part.stat().st_mode  # safetensors leaves files that nobody else may read
        write(part)
        part.chmod(mode)
        with part.open("rb+") as written:
            os.fsync(written.fileno())  # or a power cut may leave an empty file under the name
        part.replace(file)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{file} could not be written {_cause(error)}") from error
    finally:
        with suppress(OSError):  # its folder may be the file that could not be written
            part.unlink()


def check_writable(argument: str, folder: Path) -> None:
    """Raises WrongUse, before any work, for a folder that cannot be made or written."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        TemporaryFile(dir=there).close()
    except OSError as error:
        raise WrongUse(
            f"{argument} is {str(folder)!r}, which cannot be written {_cause(error)}"
        ) from error


def _cause(error: Exception) -> str:
    """An error's cause in brackets, and what helps where the system named one."""
    said = re.search(r"os error (\d+)", str(error))  # safetensors has the number in its text alone
    number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
    if not number:
        return f"({error})"
    return f"({os.strerror(number)}); mend that, or name another place"


def kept(file: Path | None, make: Callable[[], Value]) -> Value:
    """The content of a file; of a missing or damaged one, what `make` returns, which is saved.

    `.json` files contain a value; `.safetensors` files contain tensors by name, and the versions of
    the libraries that made them: other versions are reported and change nothing. Without a file the
    value is made and not saved.
    """
    if file is None:
        return make()
    try:
        if file.suffix == ".json":
            return sealed(file)
        value, text = load_tensors(file)
        report_versions(str(file.parent), text)
        return value  # type: ignore[return-value]
    except FileNotFoundError:
        pass
    except DamagedFile as error:
        log.warning("%s", error)
    made = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        seal(file, made)
    else:
        save_tensors(file, made, json.dumps(versions()))
    return made


def versions() -> dict[str, str]:
    """The versions of the libraries that results depend on."""
    return {name: version(name) for name in LIBRARIES}


def report_versions(place: str, text: str) -> None:
    """Warns, once, where the versions (JSON) recorded at a place differ from today's."""
    recorded, now = json.loads(text or "{}"), versions()
    changed = [f"{n} {was}, now {now.get(n)}" for n, was in recorded.items() if was != now.get(n)]
    if changed:
        _warn_once(f"{place} was begun with {'; '.join(changed)}; it is continued")


_warn_once = cache(log.warning)


def save_tensors(file: Path, tensors: dict[str, Tensor], metadata: str) -> None:
    """Writes tensors and a text to a safetensors file, whole.

    Its header contains a SHA-256 of both, by which `load_tensors` detects damage. Raises
    OSError as `write_whole` does.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"made_from": metadata, "sha256": _checksum(tensors, metadata)}
    write_whole(file, partial(save_file, tensors, metadata=header))


def load_tensors(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the text that `save_tensors` wrote.

    Raises FileNotFoundError, and DamagedFile, which names the file, where they differ.
    """
    remedy = "run the same command again: it is made again"
    try:
        with safe_open(file, "pt") as content:
            header = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in list(content.keys())}
    except SafetensorError as error:
        raise DamagedFile(f"{file} is damaged ({error}); {remedy}") from error
    metadata = header.get("made_from", "")
    if header.get("sha256") != _checksum(tensors, metadata):
        raise DamagedFile(f"{file} is damaged (its checksum does not match); {remedy}")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor], metadata: str) -> str:
    import torch

    digest = hashlib.sha256(metadata.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, since NumPy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def seal(file: Path, value: Any) -> None:
    """Writes a value that JSON can hold, with its hash."""
    content = json.dumps({"sha256": short_hash(value), "value": value}, sort_keys=True)
    write_whole(file, lambda part: part.write_text(content + "\n", encoding="utf-8"))


def sealed(file: Path) -> Any:
    """The value that `seal` wrote. Raises FileNotFoundError, and DamagedFile, which names it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
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
        log.warning("%s; it is made again", error)
        return None


def locked(folder: Path) -> Any:
    """Makes a folder, and a lock that admits one process at a time.

    The lock of a killed process is released. Also sweeps up what killed processes left.
    """
    from filelock import FileLock

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
