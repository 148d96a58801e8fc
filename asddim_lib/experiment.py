"""Methods × steps × prompts: pictures drawn once, kept, judged, and summed up in records (Tables 1–6)."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asddim_lib import metrics
from asddim_lib.calibration import calibrate
from asddim_lib.errors import check
from asddim_lib.files import write_whole
from asddim_lib.models import Pipeline
from asddim_lib.prompts import check_prompts, load_prompts
from asddim_lib.scheduler import ASDDIMScheduler
from asddim_lib.sensitivity import SensitivityProfile

#: What each method asks of the scheduler. `ddim` is Stable Diffusion's own grid; the trailing one tells a better start from a better grid.
METHODS: dict[str, dict[str, Any]] = {
    "ddim": {"allocation": "uniform", "timestep_spacing": "leading"},
    "ddim-trailing": {"allocation": "uniform", "timestep_spacing": "trailing"},
    "noise": {"allocation": "noise"},
    "gradient": {"allocation": "gradient"},
    "combined": {"allocation": "combined"},
}


@dataclass(frozen=True)
class Setting:
    """What an experiment runs. Two runs with the same setting and model give the same pictures."""

    methods: tuple[str, ...] = tuple(METHODS)
    steps: tuple[int, ...] = (20, 50, 100)
    guidance_scales: tuple[float, ...] = (7.5,)
    batch_size: int = 50
    p: float = 0.5
    lam: float = 1.0
    reading: str = "intent"

    def __post_init__(self) -> None:
        for method in self.methods:
            check(method in METHODS, "method", method, f"use some of {', '.join(METHODS)}")
        for steps in self.steps:
            check(1 <= steps <= 1000, "steps", steps, "give whole numbers, 1 to 1000")
        for scale in self.guidance_scales:
            check(scale >= 1, "guidance_scale", scale, "give a number of at least 1 (1 is no guidance)")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "give at least 1")


@torch.no_grad()
def draw(pipe: Pipeline, prompts: list[str], seeds: list[int], *, num_inference_steps: int, guidance_scale: float, batch_size: int = 50) -> tuple[Tensor, float]:
    """Pictures (n × 3 × h × w, uint8) for prompts, each from the noise of its own seed, and the seconds that one took."""
    parts, begun = [], time.perf_counter()
    for start in range(0, len(prompts), batch_size):
        chosen = slice(start, start + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        made = pipe(prompts[chosen], num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, generator=generators, output_type="np")
        parts.append(metrics.images_to_uint8(made.images))
    return torch.cat(parts), (time.perf_counter() - begun) / len(prompts)


def scheduler_for(pipe: Pipeline, method: str, setting: Setting, profile: SensitivityProfile) -> ASDDIMScheduler:
    """The scheduler of a method, made from the pipeline's own."""
    how = {"p": setting.p, "lam": setting.lam, "reading": setting.reading, **METHODS[method]}
    return ASDDIMScheduler.from_config(pipe.scheduler.config, profile=profile.to_dict(), **how)


@dataclass(frozen=True)
class Cell:
    """One method at one step count and guidance scale."""

    method: str
    steps: int
    guidance_scale: float

    def file(self, out: Path, start: int) -> Path:
        return out / "images" / f"{self.method}-g{self.guidance_scale:g}-k{self.steps}-{start:06d}.safetensors"


def cells(setting: Setting) -> list[Cell]:
    """Every cell of the experiment, methods innermost."""
    return [Cell(m, k, g) for g in setting.guidance_scales for k in setting.steps for m in setting.methods]


def generate(
    pipe: Pipeline,
    table: pd.DataFrame,
    setting: Setting,
    profiles: dict[float, SensitivityProfile],
    out: Path,
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Draws every picture of the experiment into `out`/images; image i starts from the noise of seed i, whatever the method.

    A batch is written, whole, as soon as it is drawn: a run that was stopped goes on where it stopped, and a folder that holds another
    setting's pictures is refused. Methods take turns batch by batch, so that a drift in the machine's speed touches all alike.
    Raises ValueError for wrong prompts or a missing profile.
    """
    prompts = list(table["prompt"])
    check_prompts(pipe, prompts)
    for scale in setting.guidance_scales:
        check(scale in profiles, "profiles", f"for guidance scales {sorted(profiles)}", f"calibrate at guidance_scale {scale} too")
    _claim(out, pipe, prompts, setting, profiles)
    original = pipe.scheduler
    starts = range(0, len(prompts), setting.batch_size)
    groups: dict[tuple[float, int], list[Cell]] = {(c.guidance_scale, c.steps): [] for c in cells(setting)}
    for cell in cells(setting):
        groups[cell.guidance_scale, cell.steps].append(cell)
    waiting = [(cell, start) for group in groups.values() for start in starts for cell in group if not _whole(cell.file(out, start))]
    try:
        for number, (cell, start) in enumerate(progress(waiting)):
            pipe.scheduler = scheduler_for(pipe, cell.method, setting, profiles[cell.guidance_scale])
            stop = min(start + setting.batch_size, len(prompts))
            what = {"prompts": prompts[start:stop], "seeds": list(range(start, stop)), "guidance_scale": cell.guidance_scale}
            if number == 0:  # the first call of a process pays for lazy initialisation; it is not timed
                draw(pipe, **what, num_inference_steps=1, batch_size=setting.batch_size)
            images, seconds = draw(pipe, **what, num_inference_steps=cell.steps, batch_size=setting.batch_size)
            drawn = {"images": images, "seconds": torch.tensor(seconds, dtype=torch.float64), "threads": torch.tensor(torch.get_num_threads())}
            write_whole(cell.file(out, start), partial(save_file, drawn))
    finally:
        pipe.scheduler = original


def judge(table: pd.DataFrame, setting: Setting, out: Path) -> tuple[pd.DataFrame, dict[Cell, Tensor]]:
    """Reads the pictures back: one record a picture (CLIP cosine, attributes, seconds, threads, NFE), and each cell's judge features."""
    records, features = [], {}
    for cell in cells(setting):
        files = [load_file(cell.file(out, start)) for start in range(0, len(table), setting.batch_size)]
        images = torch.cat([f["images"] for f in files])
        features[cell] = metrics.judge_features(images)
        right = metrics.attributes_right(features[cell], {name: list(table[name]) for name in table})
        frame = pd.DataFrame({
            **asdict(cell), "index": np.arange(len(table)), "category": table["category"].to_numpy(),
            "clip": metrics.clip_cosine(images, list(table["prompt"])).numpy(),
            **{key: np.concatenate([np.full(len(f["images"]), f[key].item()) for f in files]) for key in ("seconds", "threads")},
            "nfe": cell.steps * (2 if cell.guidance_scale > 1 else 1), **{f"right_{k}": v.numpy() for k, v in right.items()},
        })  # fmt: skip
        records.append(frame)
    return pd.concat(records, ignore_index=True), features


def summarize(records: pd.DataFrame, features: dict[Cell, Tensor]) -> pd.DataFrame:
    """One row a cell: each metric and the half-width of its 95 % interval, and the number of pictures."""
    reference, rows = metrics.reference_features(), []
    for cell, found in features.items():
        mine = (records["method"] == cell.method) & (records["steps"] == cell.steps) & (records["guidance_scale"] == cell.guidance_scale)
        part = records[mine]
        row: dict[str, Any] = {**asdict(cell), "n": len(part), "nfe": int(part["nfe"].iloc[0])}
        row["fid"], row["fid_ci"] = metrics.fid_interval(found, reference)
        row["kid"], row["kid_ci"] = metrics.kid(found, reference)
        row["clip"], row["clip_ci"] = metrics.mean_interval(part["clip"])
        row["right"], row["right_ci"] = metrics.mean_interval(part["right_all"])
        batches = part["seconds"].drop_duplicates()
        row["seconds"] = float(batches.median())
        row["seconds_ci"] = metrics.mean_interval(batches)[1]
        row["threads"] = " or ".join(str(n) for n in sorted(set(part["threads"])))
        rows.append(row)
    return pd.DataFrame(rows)


def evaluate(pipe: Pipeline, table: pd.DataFrame, setting: Setting, out: Path, progress: Callable[[list], Iterable] = iter, calibrate_on: int = 8) -> pd.DataFrame:
    """The whole experiment: profiles (on prompts that are not reported on), pictures, records, summary; all kept in `out`.

    Returns the summary. Raises ValueError as `generate` does, and for prompts without the bundled ones' attributes, which the judge reads.
    """
    missing = {"category", "garment_a", "count", "relation"} - set(table)
    check(not missing, "prompts", f"without the columns {', '.join(sorted(missing))}", "use bundled or bundled-tune")
    profiles = {}
    for scale in setting.guidance_scales:
        # Kept with the pictures: a record's profile, which may be another model's, is never taken for this run's.
        file = out / "images" / f"profile-g{scale:g}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            calibrate(pipe, list(load_prompts("bundled-tune", calibrate_on)["prompt"]), guidance_scale=scale).save(file)
        profiles[scale] = SensitivityProfile.load(file)
    generate(pipe, table, setting, profiles, out, progress)
    records, features = judge(table, setting, out)
    summary = summarize(records, features)
    for scale, profile in profiles.items():
        profile.save(out / f"profile-g{scale:g}.json")
    write_whole(out / "records.parquet", lambda part: records.to_parquet(part, index=False))
    write_whole(out / "summary.csv", lambda part: summary.to_csv(part, index=False))
    write_whole(out / "provenance.json", lambda part: part.write_text(json.dumps(provenance(setting, pipe, table), indent=1) + "\n"))
    return summary


def provenance(setting: Setting, pipe: Pipeline, table: pd.DataFrame) -> dict[str, Any]:
    """What a record must say of where it came from: setting, weights, prompts, versions, machine."""
    import diffusers

    return {
        "setting": asdict(setting), "prompts": len(table), "prompts_sha256": _hash(list(table["prompt"])), "weights_sha256": _weights(pipe),
        "dtype": str(pipe.unet.dtype), "torch": torch.__version__, "diffusers": diffusers.__version__,
        "python": platform.python_version(), "machine": platform.machine(), "device": str(pipe.device),
    }  # fmt: skip


def _claim(out: Path, pipe: Pipeline, prompts: list[str], setting: Setting, profiles: dict[float, SensitivityProfile]) -> None:
    """Writes what the folder's pictures depend on, or refuses a folder whose pictures depend on something else."""
    wanted = {
        "batch_size": setting.batch_size, "p": setting.p, "lam": setting.lam, "reading": setting.reading, "prompts": _hash(prompts),
        "profiles": {f"{s:g}": _hash(p.to_dict()) for s, p in profiles.items()}, "weights": _weights(pipe), "dtype": str(pipe.unet.dtype),
    }  # fmt: skip
    file = out / "images" / "claim.json"
    if file.exists():
        held = json.loads(file.read_text())
        other = [key for key in wanted if held.get(key) != wanted[key]]
        check(not other, "out", f"{out}, which holds pictures of another {', '.join(other)}", "name another folder or remove this one")
    else:
        (out / "images").mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda part: part.write_text(json.dumps(wanted, indent=1) + "\n"))


def _whole(file: Path) -> bool:
    try:
        load_file(file)
    except (FileNotFoundError, SafetensorError):  # missing or cut short: drawn again
        return False
    return True


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _weights(pipe: Pipeline) -> str:
    digest = hashlib.sha256()
    for name in sorted(pipe.components):
        module = pipe.components[name]
        if isinstance(module, torch.nn.Module):
            for key, value in sorted(module.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]
