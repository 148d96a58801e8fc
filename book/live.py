"""The page with the models in it: what the page shows at once, and what a click fetches.

What a click fetches is made here, and lies under _build/live. The networks need onnx, the runtime
needs npm. Without them the page shows the recorded frames and says why, and the build prints the
same line.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import json
import shutil
import string
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import live_export
import live_models
import live_record
from chapter import BOOK, BUILD, ROOT, digest

from asddim_lib.cache import locked

SCRIPTS, CACHE = BOOK / "js" / "live", BUILD / "live"
WEIGHTS = tuple(ROOT / "data" / name for name in ("model", "flow", "judge"))
PACKAGES = ("onnx",)
WASM = "ort-wasm-simd-threaded.wasm"
#: onnxruntime-web's files, and their names on the page: not every host knows the ending .mjs.
RUNTIME = {"ort.wasm.bundle.min.mjs": "ort.js", WASM: WASM}
#: What the page loads by address; the other scripts stand in the page itself.
MODULES = (
    "controls.js",
    "ddim.js",
    "flow.js",
    "grid.js",
    "judge.js",
    "main.js",
    "model.js",
    "plan.js",
    "prompt.js",
    "race.js",
    "sample.js",
    "studio.js",
    "worker.js",
)


def page() -> str:
    """The page `live`: its text, with the recorded frames and the first script in it."""
    values = {
        **live_record.shown(recorded()),
        "style": (SCRIPTS / "live.css").read_text(),
        "script": (SCRIPTS / "recorded.js").read_text(),
        "missing": html.escape(missing()),
        "models": html.escape(json.dumps(sizes())) if not missing() else "",
    }
    shell = string.Template((SCRIPTS / "page.html").read_text()).substitute(values)
    text = (BOOK / "chapters" / "live.md").read_text()
    return text.replace("{live}", f"```{{raw}} html\n{shell}\n```")


def install(pages: Path) -> None:
    """Puts what the page fetches into the folder `live` of the built pages."""
    target = pages / "live"
    if missing():
        print(f"live: {missing()} The page shows recorded frames only.")
        shutil.rmtree(target, ignore_errors=True)
        return
    files = {name: SCRIPTS / name for name in MODULES}
    files |= {name: networks() / name for name in live_export.NETWORKS}
    files |= {f"ort/{name}": runtime() / name for name in RUNTIME.values()}
    files["noise.bin"] = recorded() / "noise.bin"
    for name, source in files.items():
        goal = target / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        if not goal.exists() or _hash(goal) != _hash(source):
            shutil.copyfile(source, goal)
    (target / "manifest.json").write_text(json.dumps(manifest()))


def manifest() -> dict[str, Any]:
    """What the page's scripts know of the models: their levels, grids, words and files."""
    sources = [networks() / name for name in live_export.NETWORKS]
    files = {file.name: {"bytes": file.stat().st_size, "hash": _hash(file)} for file in sources}
    wasm = runtime() / WASM
    files[f"ort/{WASM}"] = {"bytes": wasm.stat().st_size, "hash": _hash(wasm)}
    known = json.loads((recorded() / "known.json").read_text())
    return {"files": files, "wasm": f"ort/{WASM}", **known}


def sizes() -> list[dict[str, Any]]:
    """The models, and the megabytes that a click fetches: for the first one, and for a second.

    With the first one comes what they share.
    """
    files = {name: file["bytes"] for name, file in manifest()["files"].items()}
    own = {
        name: sum(files.pop(file) for file in networks)
        for name, networks in live_export.OWN.items()
    }
    shared = sum(files.values())
    return [
        {
            "name": name,
            "label": model.label,
            "whole": round((own[name] + shared) / 1e6),
            "rest": round(own[name] / 1e6),
        }
        for name, model in live_models.MODELS.items()
    ]


@cache
def missing() -> str:
    """Why no model can be in the page of this build, in one sentence; empty where it can."""
    for name in PACKAGES:
        if not importlib.util.find_spec(name):
            return f"The Python package {name} was missing when this page was built."
    try:
        runtime()
    except (OSError, subprocess.CalledProcessError):
        return "npm could not fetch onnxruntime-web when this page was built."
    return ""


@cache
def networks() -> Path:
    """The folder of the exported networks."""
    own = digest(*WEIGHTS, BOOK / "live_export.py", ROOT / "requirements.lock")
    return _made("networks", own, live_export.export_models)


@cache
def recorded() -> Path:
    """The folder of the recorded frames, the starting noise, and what the scripts know."""
    own = digest(
        *WEIGHTS,
        ROOT / "data" / "reference.safetensors",
        ROOT / "asddim_lib",
        BOOK / "live_record.py",
        BOOK / "live_models.py",
        *[file for model in live_models.MODELS.values() for file in (model.profile, model.recipe)],
    )
    return _made("recorded", own, live_record.record)


@cache
def runtime() -> Path:
    """The folder of onnxruntime-web's files, at the version that package-lock.json pins.

    Raises OSError without npm, and CalledProcessError where npm fails.
    """
    own = digest(SCRIPTS / "package.json", SCRIPTS / "package-lock.json", BOOK / "live.py")
    return _made("runtime", own, _fetch_runtime)


def _fetch_runtime(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(SCRIPTS / name, folder / name)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    subprocess.run(["npm", "ci", *options], cwd=folder, check=True, capture_output=True)
    modules = folder / "node_modules"
    for name, own in RUNTIME.items():
        (modules / "onnxruntime-web" / "dist" / name).rename(folder / own)
    shutil.rmtree(modules)  # a hundred megabytes that no page asks for


def _made(name: str, own: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, made again when the hash of its sources has changed."""
    folder = CACHE / f"{name}-{own}"
    with locked(CACHE):  # a build and a test may come here at the same time
        if folder.exists():
            return folder
        part = CACHE / f"part-{name}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        make(part)
        for old in CACHE.glob(f"{name}-*"):
            shutil.rmtree(old)
        part.rename(folder)  # last, so that a folder that exists is complete
    return folder


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
