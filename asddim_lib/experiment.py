"""Methods × solvers × steps × prompts: pictures drawn once, kept, judged, and summed up in records (Tables 1–6)."""

from __future__ import annotations

import inspect
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from asddim_lib import metrics
from asddim_lib.calibration import calibrate, record
from asddim_lib.direct import choose, direct_search, solution
from asddim_lib.errors import check
from asddim_lib.files import short_hash, write_whole
from asddim_lib.grids import ALLOCATIONS, timesteps
from asddim_lib.models import Pipeline, weights_hash
from asddim_lib.path import Trajectory
from asddim_lib.prompts import check_prompts, load_prompts
from asddim_lib.scheduler import ASDDIMScheduler
from asddim_lib.search import SEARCHED
from asddim_lib.sensitivity import SensitivityProfile
from asddim_lib.unipc import UniPCGridScheduler

#: The paper's methods, by their grids. `ddim` is Stable Diffusion's own; the trailing one tells a better start from a better grid. Any other
#: allocation of `grids` is a method of its own name.
METHODS: dict[str, str] = {"ddim": "leading", "ddim-trailing": "trailing", "noise": "noise", "gradient": "gradient", "combined": "combined"}
#: Methods whose grids are found by trying them on tuning prompts.
TRIED = ("chosen", "direct")
#: Points of the path that grids are searched on, as GITS' authors have it.
RECORDED_STEPS = 60
#: Each solver's scheduler, and the order of its error.
SOLVERS: dict[str, tuple[Any, int]] = {"ddim": (ASDDIMScheduler, 1), "dpm++": (DPMSolverMultistepScheduler, 2), "unipc": (UniPCGridScheduler, 2)}


@dataclass(frozen=True)
class Setting:
    """What an experiment runs. Two runs with the same setting and model give the same pictures.

    With `reference_steps`, trailing DDIM with as many is drawn too, and every picture's distance from its own. A profile is made on
    `calibrate_on` prompts that are not reported on, over `calibrate_steps`, with `adjoint_probes`, from the seed `tuning_seed` on;
    what is found by trying is tried on `try_on` of them.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    steps: tuple[int, ...] = (20, 50, 100)
    guidance_scales: tuple[float, ...] = (7.5,)
    solvers: tuple[str, ...] = ("ddim",)
    reference_steps: int = 0
    batch_size: int = 50
    p: float = 0.5
    lam: float = 1.0
    reading: str = "intent"
    calibrate_on: int = 8
    calibrate_steps: int = 20
    adjoint_probes: int = 0
    tuning_seed: int = 0
    try_on: int = 32

    def __post_init__(self) -> None:
        known = tuple(dict.fromkeys((*METHODS, *ALLOCATIONS, *SEARCHED, *TRIED)))
        for method in self.methods:
            check(method in known, "method", method, f"use some of {', '.join(known)}")
        for solver in self.solvers:
            check(solver in SOLVERS, "solver", solver, f"use some of {', '.join(SOLVERS)}")
        for steps in self.steps:
            check(1 <= steps <= 1000, "steps", steps, "give whole numbers, 1 to 1000")
        for scale in self.guidance_scales:
            check(scale >= 1, "guidance_scale", scale, "give a number of at least 1 (1 is no guidance)")
        check(0 <= self.reference_steps <= 1000, "reference_steps", self.reference_steps, "give 1 to 1000, or 0 for none")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "give at least 1")


class Drawn(NamedTuple):
    """Pictures (n × 3 × h × w, uint8), the latents that they were decoded from (n × c × h × w), and the seconds that one took."""

    images: Tensor
    latents: Tensor
    seconds: float


@torch.no_grad()
def draw(pipe: Pipeline, prompts: list[str], seeds: list[int], *, guidance_scale: float, batch_size: int = 50, **grid: Any) -> Drawn:
    """Pictures for prompts, each from the noise of its own seed. `grid` is what the pipeline takes: num_inference_steps, or timesteps.

    A pipeline without `callback_on_step_end` shows no latents: they come out empty.
    """
    images, latents, begun = [], [], time.perf_counter()
    last = torch.empty(0)

    def keep(pipe: Pipeline, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal last
        last = values["latents"]
        return values

    watch = {"callback_on_step_end": keep} if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters else {}
    for start in range(0, len(prompts), batch_size):
        chosen = slice(start, start + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        made = pipe(prompts[chosen], guidance_scale=guidance_scale, generator=generators, output_type="np", **grid, **watch)
        images.append(metrics.images_to_uint8(made.images))
        latents.append(last.float().cpu())
    return Drawn(torch.cat(images), torch.cat(latents), (time.perf_counter() - begun) / len(prompts))


@dataclass(frozen=True)
class Cell:
    """One method with one solver at one step count and guidance scale."""

    method: str
    steps: int
    guidance_scale: float
    solver: str = "ddim"

    @property
    def name(self) -> str:
        return f"{self.method}-{self.solver}-g{self.guidance_scale:g}-k{self.steps}"

    def file(self, out: Path, start: int) -> Path:
        return out / "images" / f"{self.name}-{start:06d}.safetensors"


def cells(setting: Setting) -> list[Cell]:
    """Every cell of the experiment, methods innermost."""
    return [Cell(m, k, g, s) for g in setting.guidance_scales for k in setting.steps for s in setting.solvers for m in setting.methods]


def references(setting: Setting) -> list[Cell]:
    """The cells that distances are measured from, one a guidance scale; none unless the setting asks."""
    return [Cell("ddim-trailing", setting.reference_steps, g) for g in setting.guidance_scales] if setting.reference_steps else []


def grid_for(
    scheduler: Any, cell: Cell, setting: Setting, profile: SensitivityProfile | None = None, path: Trajectory | None = None, temper: float = 1.0
) -> list[int]:  # fmt: skip
    """The timesteps of a cell on the noise schedule of a scheduler or its config."""
    how: dict[str, Any] = {"p": setting.p, "lam": setting.lam, "reading": setting.reading, "profile": profile, "path": path, "temper": temper}
    how["order"] = SOLVERS[cell.solver][1]
    return timesteps(scheduler, cell.steps, allocation=METHODS.get(cell.method, cell.method), **how)


def generate(
    pipe: Pipeline,
    table: pd.DataFrame,
    setting: Setting,
    grids: dict[Cell, list[int]],
    out: Path,
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Draws every picture of the experiment into `out`/images; image i starts from the noise of seed i, whatever the method.

    A batch is written, whole, as soon as it is drawn: a run that was stopped goes on where it stopped, and a folder that holds other pictures
    under the same names is refused. Methods take turns batch by batch, so that a drift in the machine's speed touches all alike.
    Raises ValueError for wrong prompts or a missing grid.
    """
    prompts = list(table["prompt"])
    check_prompts(pipe, prompts)
    wanted = [*cells(setting), *references(setting)]
    for cell in wanted:
        check(cell in grids, "grids", f"without {cell.name}", "give the timesteps of every cell")
    _claim(out, pipe, prompts, setting, {cell.name: grids[cell] for cell in wanted})
    original = pipe.scheduler
    starts = range(0, len(prompts), setting.batch_size)
    groups: dict[tuple[float, int], list[Cell]] = {(c.guidance_scale, c.steps): [] for c in wanted}
    for cell in wanted:
        groups[cell.guidance_scale, cell.steps].append(cell)
    waiting = [(cell, start) for group in groups.values() for start in starts for cell in group if not _whole(cell.file(out, start))]
    try:
        for number, (cell, start) in enumerate(progress(waiting)):
            pipe.scheduler = SOLVERS[cell.solver][0].from_config(original.config)
            stop = min(start + setting.batch_size, len(prompts))
            what = {"prompts": prompts[start:stop], "seeds": list(range(start, stop)), "guidance_scale": cell.guidance_scale, "batch_size": setting.batch_size}
            if number == 0:  # the first call of a process pays for lazy initialisation; it is not timed
                draw(pipe, **what, num_inference_steps=1)
            drawn = draw(pipe, **what, timesteps=grids[cell])
            kept = {"images": drawn.images, "latents": drawn.latents, "seconds": torch.tensor(drawn.seconds, dtype=torch.float64)}
            write_whole(cell.file(out, start), partial(save_file, {**kept, "threads": torch.tensor(torch.get_num_threads())}))
    finally:
        pipe.scheduler = original


def judge(table: pd.DataFrame, setting: Setting, out: Path, device: str = "cpu") -> tuple[pd.DataFrame, dict[Cell, Tensor]]:
    """Reads the pictures back: one record a picture (CLIP cosine, attributes, seconds, threads, NFE, distance), and each cell's judge features.

    The distance is that of a picture's latents from the reference's for the same seed, over the reference's spread about its mean.
    """
    records, features = [], {}
    exact = {cell.guidance_scale: _load(cell, table, setting, out)["latents"].flatten(1) for cell in references(setting)}
    for cell in cells(setting):
        held = _load(cell, table, setting, out)
        features[cell] = metrics.judge_features(held["images"], device=device)
        right = metrics.attributes_right(features[cell], {name: list(table[name]) for name in table})
        frame = pd.DataFrame({
            **asdict(cell), "index": np.arange(len(table)), "category": table["category"].to_numpy(),
            "clip": metrics.clip_cosine(held["images"], list(table["prompt"]), device=device).numpy(),
            "seconds": held["seconds"].numpy(), "threads": held["threads"].numpy(),
            "nfe": cell.steps * (2 if cell.guidance_scale > 1 else 1), **{f"right_{k}": v.numpy() for k, v in right.items()},
        })  # fmt: skip
        if cell.guidance_scale in exact:
            frame["distance"] = metrics.relative_distance(held["latents"].flatten(1), exact[cell.guidance_scale]).numpy()
        records.append(frame)
    return pd.concat(records, ignore_index=True), features


def _load(cell: Cell, table: pd.DataFrame, setting: Setting, out: Path) -> dict[str, Tensor]:
    """A cell's pictures and latents, and each picture's seconds and threads."""
    parts = [load_file(cell.file(out, start)) for start in range(0, len(table), setting.batch_size)]
    each = {key: torch.cat([part[key].expand(len(part["images"])) for part in parts]) for key in ("seconds", "threads")}
    return {**{key: torch.cat([part[key] for part in parts]) for key in ("images", "latents") if key in parts[0]}, **each}


def summarize(records: pd.DataFrame, features: dict[Cell, Tensor]) -> pd.DataFrame:
    """One row a cell: each metric and the half-width of its 95 % interval, and the number of pictures. No FID of too few pictures for one."""
    reference, rows = metrics.reference_features(), []
    keys = list(asdict(next(iter(features))))
    for cell, found in features.items():
        part = records[(records[keys] == pd.Series(asdict(cell))).all(axis=1)]
        row: dict[str, Any] = {**asdict(cell), "n": len(part), "nfe": int(part["nfe"].iloc[0])}
        if len(found) > found.shape[1]:
            row["fid"], row["fid_ci"] = metrics.fid_interval(found, reference)
        row["kid"], row["kid_ci"] = metrics.kid(found, reference)
        row["clip"], row["clip_ci"] = metrics.mean_interval(part["clip"])
        row["right"], row["right_ci"] = metrics.mean_interval(part["right_all"])
        if "distance" in part:
            row["distance"], row["distance_ci"] = metrics.mean_interval(part["distance"])
        batches = part["seconds"].drop_duplicates()
        row["seconds"] = float(batches.median())
        row["seconds_ci"] = metrics.mean_interval(batches)[1]
        row["threads"] = " or ".join(str(n) for n in sorted(set(part["threads"])))
        rows.append(row)
    return pd.DataFrame(rows)


def paired(records: pd.DataFrame, baseline: str, key: str) -> pd.DataFrame:
    """How each method differs from the baseline in `key`, picture by picture of the same prompt and noise: one row a cell.

    `difference` is the mean, `half` the half-width of its 95 % interval, `p_value` Wilcoxon's signed-rank test's.
    """
    from scipy.stats import wilcoxon

    rows = []
    for (scale, steps, solver), part in records.groupby(["guidance_scale", "steps", "solver"], sort=False):
        wide = part.pivot(index="index", columns="method", values=key).astype(float)
        check(baseline in wide, "baseline", baseline, f"use one of {', '.join(wide)}")
        for method in (name for name in part["method"].unique() if name != baseline):
            change = (wide[method] - wide[baseline]).to_numpy()
            mean, half = metrics.mean_interval(change)
            p_value = float(wilcoxon(change).pvalue) if change.any() else 1.0
            rows.append({"guidance_scale": scale, "steps": steps, "solver": solver, "method": method, "difference": mean, "half": half, "p_value": p_value})
    return pd.DataFrame(rows)


def evaluate(pipe: Pipeline, table: pd.DataFrame, setting: Setting, out: Path, progress: Callable[[list], Iterable] = iter, teach_on: int = 256) -> pd.DataFrame:
    """The whole experiment: grids, pictures, records, summary; all kept in `out`.

    What a grid needs is measured on prompts that are not reported on: profiles as the setting has it, the path of the oracle and of GITS on
    `teach_on` prompts over 60 steps, as GITS' authors do, and what is found by trying as the setting has it.
    Returns the summary. Raises ValueError as `generate` does, and for prompts without the bundled ones' attributes, which the judge reads.
    """
    missing = {"category", "garment_a", "count", "relation"} - set(table)
    check(not missing, "prompts", f"without the columns {', '.join(sorted(missing))}", "use bundled or bundled-tune")
    tune, profiles = list(load_prompts("bundled-tune")["prompt"]), {}
    grids: dict[Cell, list[int]] = {}
    (out / "images").mkdir(parents=True, exist_ok=True)
    for scale in setting.guidance_scales:
        # Kept with the pictures: a record's profile, which may be another model's, is never taken for this run's.
        file = out / "images" / f"profile-g{scale:g}.json"
        if not file.exists():
            how: dict[str, Any] = {"num_steps": setting.calibrate_steps, "adjoint_probes": setting.adjoint_probes, "seed": setting.tuning_seed}
            calibrate(pipe, tune[: setting.calibrate_on], guidance_scale=scale, cache=out / "images" / "parts", **how).save(file)
        profiles[scale] = SensitivityProfile.load(file)
        find = _Finder(pipe, setting, scale, profiles[scale], tune, teach_on, out)
        for cell in (*cells(setting), *references(setting)):
            if cell.guidance_scale == scale:
                grids[cell] = find(cell) if cell.method in (*SEARCHED, *TRIED) else grid_for(pipe.scheduler, cell, setting, profiles[scale])
    generate(pipe, table, setting, grids, out, progress)
    records, features = judge(table, setting, out, str(pipe.device))
    summary = summarize(records, features)
    for scale, profile in profiles.items():
        profile.save(out / f"profile-g{scale:g}.json")
    write_whole(out / "records.parquet", lambda part: records.to_parquet(part, index=False))
    write_whole(out / "summary.csv", lambda part: summary.to_csv(part, index=False))
    tried = {cell.name: json.loads(found_file(cell, out).read_text()) for cell in grids if cell.method in TRIED}
    found = provenance(setting, pipe, table) | {"grids": {cell.name: grid for cell, grid in grids.items()}, "tried": tried}
    write_whole(out / "provenance.json", lambda part: part.write_text(json.dumps(found) + "\n"))
    return summary


@dataclass
class _Finder:
    """Finds the grids that cost network evaluations, on tuning prompts at one guidance scale, and keeps them beside the pictures.

    `oracle` and `gits` are searched on a path of `teach_on` prompts, `dual-path` on one of `try_on` with its adjoints; `chosen` is
    the best of our own densities, whole and tempered, and for DDIM of `dual-path`; `direct` searches on from the best of these and of three fixed grids. Paths
    and the fine solution are made when they are first needed.
    """

    pipe: Pipeline
    setting: Setting
    scale: float
    profile: SensitivityProfile
    prompts: list[str]
    teach_on: int
    out: Path

    def __call__(self, cell: Cell) -> list[int]:
        file = found_file(cell, self.out)
        if not file.exists():
            found = {"timesteps": self._searched(cell)} if cell.method in SEARCHED else self._try(cell)
            write_whole(file, lambda part: part.write_text(json.dumps(found) + "\n"))
        return json.loads(file.read_text())["timesteps"]

    @cached_property
    def path(self) -> Trajectory:
        return self._record(self.teach_on)

    @cached_property
    def swept(self) -> Trajectory:
        return self._record(self.setting.try_on, adjoint_probes=2)

    @cached_property
    def goal(self) -> Tensor:
        return solution(self.pipe, self.prompts[: self.setting.try_on], guidance_scale=self.scale, seed=self.setting.tuning_seed)

    def _record(self, count: int, **how: Any) -> Trajectory:
        return record(self.pipe, self.prompts[:count], guidance_scale=self.scale, batch_size=16, seed=self.setting.tuning_seed, num_steps=RECORDED_STEPS, **how)

    def _searched(self, cell: Cell) -> list[int]:
        return self._grid(cell, path=self.swept if cell.method == "dual-path" else self.path)

    def _grid(self, cell: Cell, **more: Any) -> list[int]:
        return grid_for(self.pipe.scheduler, cell, self.setting, self.profile, **more)

    def _try(self, cell: Cell) -> dict[str, Any]:
        ours = [("equidistributed", 1.0), *(("dual-weighted", temper) for temper in (1.0, 0.75, 0.5, 0.25))]
        grids = {f"{name} {temper}": self._grid(replace(cell, method=name), temper=temper) for name, temper in ours}
        if cell.solver == "ddim" and cell.steps <= RECORDED_STEPS:  # its arrivals are those of DDIM's steps
            grids["dual-path"] = self(replace(cell, method="dual-path"))
        how: dict[str, Any] = {"guidance_scale": self.scale, "seed": self.setting.tuning_seed, "goal": self.goal}
        own = self.pipe.scheduler
        try:
            self.pipe.scheduler = SOLVERS[cell.solver][0].from_config(own.config)
            if cell.method == "chosen":
                name, found = choose(self.pipe, self.prompts[: self.setting.try_on], grids, **how)
                return {"name": name, **found._asdict()}
            starts = [*grids.values(), *(grid_for(own, replace(cell, method=name), self.setting) for name in ("trailing", "leading", "beta"))]
            return direct_search(self.pipe, self.prompts[: self.setting.try_on], starts, **how)._asdict()
        finally:
            self.pipe.scheduler = own


def found_file(cell: Cell, out: Path) -> Path:
    """Where a grid that was found on network evaluations is kept."""
    return out / "images" / f"grid-{cell.name}.json"


def provenance(setting: Setting, pipe: Pipeline, table: pd.DataFrame) -> dict[str, Any]:
    """What a record must say of where it came from: setting, weights, prompts, versions, machine."""
    import diffusers

    return {
        "setting": asdict(setting), "prompts": len(table), "prompts_sha256": short_hash(list(table["prompt"])), "weights_sha256": weights_hash(pipe),
        "dtype": str(pipe.unet.dtype), "torch": torch.__version__, "diffusers": diffusers.__version__,
        "python": platform.python_version(), "machine": platform.machine(), "device": str(pipe.device),
    }  # fmt: skip


def _claim(out: Path, pipe: Pipeline, prompts: list[str], setting: Setting, grids: dict[str, list[int]]) -> None:
    """Writes what the folder's pictures depend on, or refuses a folder whose pictures depend on something else. New cells may join."""
    wanted = {"batch_size": setting.batch_size, "prompts": short_hash(prompts), "weights": weights_hash(pipe), "dtype": str(pipe.unet.dtype)}
    file = out / "images" / "claim.json"
    held: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {**wanted, "grids": {}}
    other = [key for key in wanted if held.get(key) != wanted[key]]
    other += [f"grid of {name}" for name, grid in grids.items() if held.get("grids", {}).get(name, grid) != grid]
    check(not other, "out", f"{out}, which holds pictures of another {', '.join(other)}", "name another folder or remove this one")
    (out / "images").mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda part: part.write_text(json.dumps({**wanted, "grids": {**held.get("grids", {}), **grids}}) + "\n"))


def _whole(file: Path) -> bool:
    try:
        load_file(file)
    except (FileNotFoundError, SafetensorError):  # missing or cut short: drawn again
        return False
    return True
