"""Methods × solvers × steps × prompts: pictures drawn once, kept, judged, and summed up in records (Tables 1–6)."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from filelock import FileLock
from torch import Tensor

from asddim_lib import metrics
from asddim_lib.calibration import calibrate, record
from asddim_lib.direct import choose, direct_search, solution
from asddim_lib.errors import check
from asddim_lib.files import short_hash, sweep, write_whole
from asddim_lib.grids import ALLOCATIONS, CALIBRATED, sigmas, timesteps
from asddim_lib.inception import Inception
from asddim_lib.models import Pipeline, data_folder, network, weights_hash
from asddim_lib.noise import is_flow
from asddim_lib.path import Trajectory
from asddim_lib.pictures import draw, load, load_latents, save, whole
from asddim_lib.prompts import check_prompts, load_prompts
from asddim_lib.scheduler import ASDDIMScheduler
from asddim_lib.search import SEARCHED
from asddim_lib.sensitivity import SensitivityProfile
from asddim_lib.shards import ALONE, Shard
from asddim_lib.unipc import UniPCGridScheduler

log = logging.getLogger(__name__)

#: The paper's methods, by their grids. `ddim` is Stable Diffusion's own; the trailing one tells a better start from a better grid. Any other
#: allocation of `grids` is a method of its own name.
METHODS: dict[str, str] = {"ddim": "leading", "ddim-trailing": "trailing", "noise": "noise", "gradient": "gradient", "combined": "combined"}
#: Methods whose grids are found by trying them on tuning prompts.
TRIED = ("chosen", "direct")
#: Points of the path that grids are searched on, as GITS' authors have it.
RECORDED_STEPS = 60
#: Steps of the solution that grids are tried against.
FINE_STEPS = 200
#: Each solver's scheduler, and the order of its error. Euler's method is DDIM's in other variables, and the one that flow matching has.
SOLVERS: dict[str, tuple[Any, int]] = {
    "ddim": (ASDDIMScheduler, 1), "dpm++": (DPMSolverMultistepScheduler, 2), "unipc": (UniPCGridScheduler, 2), "euler": (EulerDiscreteScheduler, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What an experiment runs. Two runs with the same setting and model give the same pictures.

    With `reference_steps`, trailing DDIM with as many is drawn too, and every picture's distance from its own. A profile is made on
    `calibrate_on` prompts that are not reported on, over `calibrate_steps`, with `adjoint_probes`, from the seed `tuning_seed` on;
    what is found by trying is tried on `try_on` of them. With `latents`, a file for `load_latents`, every picture starts from the same.
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
    negative_prompt: str = ""
    latents: str = ""

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
        alone = not (self.profiled and self.negative_prompt)
        check(alone, "negative_prompt", self.negative_prompt, "profiles are measured without one: leave it out, or the methods that need a profile")

    @property
    def profiled(self) -> bool:
        """Whether a method needs a profile."""
        return bool({*CALIBRATED, *TRIED} & {METHODS.get(method, method) for method in self.methods})


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

    @property
    def evaluations(self) -> int:
        """Network evaluations a picture: two a step with guidance."""
        return self.steps * (2 if self.guidance_scale > 1 else 1)


class Batch(NamedTuple):
    """The pictures of a cell for the prompts `start` … `stop` − 1: drawn together, kept in one file, whoever draws them."""

    cell: Cell
    start: int
    stop: int

    @property
    def pictures(self) -> int:
        return self.stop - self.start

    @property
    def evaluations(self) -> int:
        return self.pictures * self.cell.evaluations

    def file(self, out: Path) -> Path:
        return out / "images" / f"{self.cell.name}-{self.start:06d}.safetensors"


def batches(cell: Cell, count: int, setting: Setting) -> list[Batch]:
    """A cell's pictures for `count` prompts; cut the same way whatever draws them."""
    return [Batch(cell, start, min(start + setting.batch_size, count)) for start in range(0, count, setting.batch_size)]


def cells(setting: Setting) -> list[Cell]:
    """Every cell of the experiment, methods innermost."""
    return [Cell(m, k, g, s) for g in setting.guidance_scales for k in setting.steps for s in setting.solvers for m in setting.methods]


def references(setting: Setting) -> list[Cell]:
    """The cells that distances are measured from, one a guidance scale; none unless the setting asks."""
    solver = "euler" if setting.solvers == ("euler",) else "ddim"
    return [Cell("ddim-trailing", setting.reference_steps, g, solver) for g in setting.guidance_scales] if setting.reference_steps else []


def grid_for(
    scheduler: Any, cell: Cell, setting: Setting, profile: SensitivityProfile | None = None, path: Trajectory | None = None, temper: float = 1.0
) -> list[int] | list[float]:  # fmt: skip
    """The timesteps of a cell on the noise schedule of a scheduler or its config; of a flow-matching one, its sigmas."""
    how: dict[str, Any] = {"p": setting.p, "lam": setting.lam, "reading": setting.reading, "profile": profile, "path": path, "temper": temper}
    how |= {"order": SOLVERS[cell.solver][1], "allocation": METHODS.get(cell.method, cell.method)}
    return sigmas(scheduler, cell.steps, **how) if is_flow(scheduler) else timesteps(scheduler, cell.steps, **how)


def generate(
    pipe: Pipeline,
    table: pd.DataFrame,
    setting: Setting,
    grids: dict[Cell, Any],
    out: Path,
    progress: Callable[[list[Batch]], Iterable[Batch]] = iter,
    shard: Shard = ALONE,
) -> int:
    """Draws a shard's pictures of the experiment into `out`/images; image i starts from the noise of seed i, whatever the method.

    A batch is written, whole, as soon as it is drawn: a run that was stopped goes on where it stopped, a damaged file is named and drawn
    again, and a folder that holds other pictures under the same names is refused. Methods take turns batch by batch, in the same process, so
    that a drift in the machine's speed touches all alike. A picture that is not finite is named, and drawn again by the next run.
    Returns how many are not finite. Raises ValueError for wrong prompts or a missing grid.
    """
    prompts = list(table["prompt"])
    check_prompts(pipe, prompts)
    latents = load_latents(setting.latents)
    wanted = list(dict.fromkeys((*cells(setting), *references(setting))))
    for cell in wanted:
        check(cell in grids, "grids", f"without {cell.name}", "give the timesteps of every cell")
    with _locked(out):
        _claim(out, pipe, prompts, setting, {cell.name: grids[cell] for cell in wanted})
    groups: dict[tuple[float, int], list[list[Batch]]] = {}
    for cell in wanted:
        groups.setdefault((cell.guidance_scale, cell.steps), []).append(batches(cell, len(prompts), setting))
    turns = list(enumerate(turn for group in groups.values() for turn in zip(*group, strict=True)))  # each has all methods' batches of the same prompts
    found = [(number, left) for number, turn in shard.share(turns) if (left := [batch for batch in turn if not whole(batch.file(out))])]
    original, failed, at_once, warm = pipe.scheduler, 0, setting.batch_size, False
    flow = is_flow(original)
    try:
        for batch in progress([batch for _, left in shard.deal(found) for batch in left]):
            pipe.scheduler = original if flow else SOLVERS[batch.cell.solver][0].from_config(original.config)
            pipe.scheduler.strict = False  # one picture's fault does not stop the batch: draw tells which are finite
            seeds = list(range(batch.start, batch.stop))
            what: dict[str, Any] = {"prompts": [prompts[seed] for seed in seeds], "seeds": seeds, "guidance_scale": batch.cell.guidance_scale}
            what |= {"latents": latents, "negative_prompt": setting.negative_prompt}
            if not warm:  # the first call of a process pays for lazy initialisation; it is not timed
                draw(pipe, **what, batch_size=at_once, num_inference_steps=1)
                warm = True
            drawn = draw(pipe, **what, batch_size=at_once, **{"sigmas" if flow else "timesteps": grids[batch.cell]})
            save(batch.file(out), drawn)
            at_once = min(at_once, drawn.at_once) if drawn.at_once < batch.pictures else at_once  # what the memory did not hold, it is not asked for again
            for seed in (seed for seed, sound in zip(seeds, drawn.finite.tolist(), strict=True) if not sound):
                log.warning("%s: not finite for prompt %r, seed %d; the picture counts as failed", batch.cell.name, prompts[seed], seed)
                failed += 1
    finally:
        pipe.scheduler = original
    return failed


def judge(table: pd.DataFrame, setting: Setting, out: Path, device: str = "cpu", clip: str | None = None) -> tuple[pd.DataFrame, dict[Cell, Tensor]]:
    """Reads the pictures back: one record a picture (CLIP cosine, attributes, seconds, threads, NFE, distance), and each cell's judge features.

    The distance is that of a picture's latents from the reference's for the same seed, over the reference's spread about its mean. Attributes
    and features are those of prompts with the bundled ones' columns, for which alone the bundled judge was made; `clip`, a folder or hub id,
    scores the pictures of others. A picture that is `failed` has no figures. Pictures are read a batch at a time.
    """
    records, features = [], {}
    goals = {cell.guidance_scale: torch.cat([load(b.file(out))["latents"] for b in batches(cell, len(table), setting)]).flatten(1) for cell in references(setting)}
    for cell in cells(setting):
        parts = [_judged(load(b.file(out)), b, table.iloc[b.start : b.stop], device, clip) for b in batches(cell, len(table), setting)]
        frame = pd.concat([part[0] for part in parts], ignore_index=True)
        if has_attributes(table):
            features[cell] = torch.cat([part[1] for part in parts])
        if cell.guidance_scale in goals:
            latents, goal = torch.cat([part[2] for part in parts]).flatten(1), goals[cell.guidance_scale]
            both = latents.isfinite().all(1) & goal.isfinite().all(1)
            frame.loc[both.numpy(), "distance"] = metrics.relative_distance(latents[both], goal[both]).numpy()
        records.append(frame)
    return pd.concat(records, ignore_index=True), features


def _judged(held: dict[str, Tensor], batch: Batch, table: pd.DataFrame, device: str, clip: str | None) -> tuple[pd.DataFrame, Tensor, Tensor]:
    """A batch's records, the judge's features of its sound pictures, and all its latents."""
    sound, features, measured = held["finite"].numpy(), torch.empty(0), {}
    images, asked = held["images"][held["finite"]], table[sound]
    if len(images) and (clip or has_attributes(table)):
        measured["clip"] = metrics.clip_cosine(images, list(asked["prompt"]), clip, device=device).numpy()
    if len(images) and has_attributes(table):
        features = metrics.judge_features(images, device=device)
        right = metrics.attributes_right(features, {name: list(asked[name]) for name in asked})
        measured |= {f"right_{k}": v.numpy() for k, v in right.items()}
    index = pd.RangeIndex(batch.start, batch.stop)
    frame = pd.DataFrame({
        **asdict(batch.cell), "index": index, **({"category": table["category"].to_numpy()} if "category" in table else {}),
        **{key: held[key].item() for key in ("seconds", "threads", "at_once")}, "nfe": batch.cell.evaluations, "failed": ~sound,
    }, index=index)  # fmt: skip
    return frame.join(pd.DataFrame(measured, index=index[sound])), features, held["latents"]


def has_attributes(table: pd.DataFrame) -> bool:
    """Whether these prompts are of the bundled kind, whose attributes the bundled judge reads."""
    return {"garment_a", "count", "relation"} <= set(table)


def summarize(records: pd.DataFrame, features: dict[Cell, Tensor]) -> pd.DataFrame:
    """One row a cell: each metric and the half-width of its 95 % interval, and the numbers of pictures judged and failed.

    No FID of too few pictures for one.
    """
    rows, keys = [], [field.name for field in fields(Cell)]
    for key, every in records.groupby(keys, sort=False):
        cell, part = Cell(**dict(zip(keys, key, strict=True))), every[~every["failed"].astype(bool)]
        row: dict[str, Any] = {**asdict(cell), "n": len(part), "failed": len(every) - len(part), "nfe": int(every["nfe"].iloc[0])}
        if cell in features and len(part) > 1:
            reference = metrics.reference_features()
            if len(part) > features[cell].shape[1]:
                row["fid"], row["fid_ci"] = metrics.fid_interval(features[cell], reference)
            if len(part) > 2 * features[cell].shape[1] + 1:
                row["fid_infinity"] = metrics.fid_infinity(features[cell], reference)
            row["kid"], row["kid_ci"] = metrics.kid(features[cell], reference)
        for name, column in (("clip", "clip"), ("right", "right_all"), ("distance", "distance")):
            if column in part and len(part):
                row[name], row[f"{name}_ci"] = metrics.mean_interval(part[column].dropna())
        seconds = every["seconds"].drop_duplicates()
        row["seconds"] = float(seconds.median())
        row["seconds_ci"] = metrics.mean_interval(seconds)[1]
        row["threads"] = " or ".join(str(n) for n in sorted(set(every["threads"])))
        rows.append(row)
    return pd.DataFrame(rows)


def inception_figures(summary: pd.DataFrame, count: int, setting: Setting, out: Path, inception: Inception, device: str = "cpu") -> dict[str, Any]:
    """Adds FID and KID by Inception's features to a summary of `count` prompts, and FID at infinity where there are enough pictures for one.

    Returns what they were measured against. FID is given of any two pictures or more, since the paper has it of fewer than features; KID is
    unbiased.
    """
    real, name = inception.real(device)
    for row, cell in enumerate(cells(setting)):
        held = [load(batch.file(out)) for batch in batches(cell, count, setting)]
        sound = [part["images"][part["finite"]] for part in held if part["finite"].any()]
        if sum(map(len, sound)) < 2:
            continue
        features = torch.cat([inception.features(images, device) for images in sound])
        found = dict(zip(("fid", "fid_ci"), metrics.fid_interval(features, real, resamples=10, rank_deficient=True), strict=True))
        if len(features) <= len(real):
            found |= dict(zip(("kid", "kid_ci"), metrics.kid(features, real), strict=True))
        if len(features) > 2 * features.shape[1] + 1:
            found["fid_infinity"] = metrics.fid_infinity(features, real)
        for key, value in found.items():
            summary.loc[row, f"inception_{key}"] = value
    return asdict(inception) | {"reference_sha256": name, "reference_n": len(real)}


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
            change = (wide[method] - wide[baseline]).dropna().to_numpy()  # without the pairs of which one failed
            mean, half = metrics.mean_interval(change)
            p_value = float(wilcoxon(change).pvalue) if change.any() else 1.0
            rows.append({"guidance_scale": scale, "steps": steps, "solver": solver, "method": method, "difference": mean, "half": half, "p_value": p_value})
    return pd.DataFrame(rows)


def evaluate(
    pipe: Pipeline,
    table: pd.DataFrame,
    setting: Setting,
    out: Path,
    progress: Callable[[list[Batch]], Iterable[Batch]] = iter,
    teach_on: int = 256,
    shard: Shard = ALONE,
    clip: str | None = None,
    inception: Inception | None = None,
) -> pd.DataFrame:
    """The whole experiment: grids, pictures, records, summary; all kept in `out`.

    What a grid needs is measured on prompts that are not reported on: profiles as the setting has it, the path of the oracle and of GITS on
    `teach_on` prompts over 60 steps, as GITS' authors do, and what is found by trying as the setting has it. One process measures, others
    wait for it. Each process draws its shard. One judges, when all pictures are there: it reads them from files, so that no figure is put
    together from several processes' parts, and none hangs on how many there were.
    Returns the summary, with the number of `failed_references` in its attrs; of a process that does not judge, a row that says how many of its
    pictures failed. Raises ValueError as `generate` does.
    """
    if clip:
        metrics.load_clip(clip, str(pipe.device))  # a wrong name is told now, not after the pictures
    if inception:
        inception.network(str(pipe.device))
    grids, profiles = find_grids(pipe, setting, out, teach_on)
    failed = generate(pipe, table, setting, grids, out, progress, shard)
    shard.part()
    if not shard.judges:
        return pd.DataFrame({"shard": [f"{shard.number}/{shard.count}"], "failed": [failed]})
    if (out / "records.parquet").exists():
        try:
            read_records(out)
        except ValueError as error:
            log.warning("%s", error)
    records, features = judge(table, setting, out, str(pipe.device), clip)
    summary = summarize(records, features)
    by: dict[str, Any] = {"inception": inception_figures(summary, len(table), setting, out, inception, str(pipe.device))} if inception else {}
    sound = [load(batch.file(out))["finite"] for cell in references(setting) for batch in batches(cell, len(table), setting)]
    summary.attrs["failed_references"] = sum(int((~finite).sum()) for finite in sound)
    for scale, profile in profiles.items():
        profile.save(out / f"profile-g{scale:g}.json")
    write_whole(out / "records.parquet", lambda part: records.to_parquet(part, index=False))
    write_whole(out / "summary.csv", lambda part: summary.to_csv(part, index=False))
    tried = {cell.name: json.loads(found_file(cell, out).read_text()) for cell in grids if cell.method in TRIED}
    by |= {"reference_sha256": _file_hash(data_folder() / "reference.safetensors"), "reference_n": len(metrics.reference_features())} if features else {}
    found = provenance(setting, pipe, table) | {
        **by,
        "clip": clip or ("bundled" if has_attributes(table) else None),
        "records_sha256": _file_hash(out / "records.parquet"),
        "grids": {cell.name: grid for cell, grid in grids.items()},
        "tried": tried,
    }
    write_whole(out / "provenance.json", lambda part: part.write_text(json.dumps(found) + "\n"))
    return summary


def find_grids(pipe: Pipeline, setting: Setting, out: Path, teach_on: int = 256) -> tuple[dict[Cell, Any], dict[float, SensitivityProfile]]:
    """Every cell's timesteps, and each guidance scale's profile where a method needs one: measured by the first process that comes here, kept,
    and read by the others. A flow-matching pipeline has sigmas for timesteps, Euler's solver alone, and no method that measures."""
    if is_flow(pipe.scheduler):
        for solver in setting.solvers:
            check(solver == "euler", "solver", solver, "a flow-matching model has euler alone")
        for method in setting.methods:
            measured = METHODS.get(method, method) in (*CALIBRATED, *TRIED, *SEARCHED)
            check(not measured, "method", method, "it is measured on a UNet, which a flow-matching model has not: use ddim-trailing, noise or a fixed grid")
    tune = list(load_prompts("bundled-tune")["prompt"])
    grids: dict[Cell, Any] = {}
    profiles: dict[float, SensitivityProfile] = {}
    with _locked(out):
        for scale in setting.guidance_scales:
            # Kept with the pictures: a record's profile, which may be another model's, is never taken for this run's.
            file = out / "images" / f"profile-g{scale:g}.json"
            if setting.profiled and not file.exists():
                how: dict[str, Any] = {"num_steps": setting.calibrate_steps, "adjoint_probes": setting.adjoint_probes, "seed": setting.tuning_seed}
                calibrate(pipe, tune[: setting.calibrate_on], guidance_scale=scale, cache=out / "images" / "parts", **how).save(file)
            profile = SensitivityProfile.load(file) if setting.profiled else None
            if profile:
                profiles[scale] = profile
            find = _Finder(pipe, setting, scale, profile, tune, teach_on, out)
            for cell in (*cells(setting), *references(setting)):
                if cell.guidance_scale == scale:
                    grids[cell] = find(cell) if cell.method in (*SEARCHED, *TRIED) else grid_for(pipe.scheduler, cell, setting, profile)
    return grids, profiles


def _locked(out: Path) -> FileLock:
    """Lets one process at a time find grids or claim the folder; a killed one's lock goes with it."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    sweep(out / "images")
    return FileLock(out / "images" / ".lock")


def read_records(out: Path) -> pd.DataFrame:
    """An experiment's records. Raises ValueError, which names the file, where it does not hold what was written."""
    file, said = out / "records.parquet", out / "provenance.json"
    try:
        wanted = json.loads(said.read_text()).get("records_sha256") if said.exists() else None
        check(wanted in (None, _file_hash(file)), "its checksum", "another", "provenance.json has the right one")
        return pd.read_parquet(file)
    except (ValueError, OSError) as error:  # Arrow's errors are of either kind
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is damaged ({reason}); run the same command again: it is made anew from the pictures") from error


def _file_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@dataclass
class _Finder:
    """Finds the grids that cost network evaluations, on tuning prompts at one guidance scale, and keeps them beside the pictures.

    `oracle` and `gits` are searched on a path of `teach_on` prompts, `dual-path` on one of `try_on` with its adjoints. `direct` searches on from
    the best of our own densities, whole and tempered, of three fixed grids, and for DDIM of `dual-path`, to the end; `chosen`, for no more
    evaluations than the fine solution takes. Paths and that solution are made when they are first needed.
    """

    pipe: Pipeline
    setting: Setting
    scale: float
    profile: SensitivityProfile | None
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
        return solution(self.pipe, self.prompts[: self.setting.try_on], guidance_scale=self.scale, reference_steps=FINE_STEPS, seed=self.setting.tuning_seed)

    def _record(self, count: int, **how: Any) -> Trajectory:
        return record(self.pipe, self.prompts[:count], guidance_scale=self.scale, batch_size=16, seed=self.setting.tuning_seed, num_steps=RECORDED_STEPS, **how)

    def _searched(self, cell: Cell) -> list[int]:
        return self._grid(cell, path=self.swept if cell.method == "dual-path" else self.path)

    def _grid(self, cell: Cell, **more: Any) -> Any:
        return grid_for(self.pipe.scheduler, cell, self.setting, self.profile, **more)

    def _try(self, cell: Cell) -> dict[str, Any]:
        ours = [("equidistributed", 1.0), *(("dual-weighted", temper) for temper in (1.0, 0.75, 0.5, 0.25))]
        starts = {f"{name} {temper}": self._grid(replace(cell, method=name), temper=temper) for name, temper in ours}
        if cell.solver == "ddim" and cell.steps <= RECORDED_STEPS:  # its arrivals are those of DDIM's steps
            starts["dual-path"] = self(replace(cell, method="dual-path"))
        fixed = ("trailing", "leading" if cell.solver == "ddim" else "karras", "beta")
        starts |= {name: self._grid(replace(cell, method=name)) for name in fixed}
        prompts, own = self.prompts[: self.setting.try_on], self.pipe.scheduler
        how: dict[str, Any] = {"guidance_scale": self.scale, "seed": self.setting.tuning_seed, "goal": self.goal}
        try:
            self.pipe.scheduler = SOLVERS[cell.solver][0].from_config(own.config)
            if cell.method == "direct":
                return direct_search(self.pipe, prompts, list(starts.values()), **how)._asdict()
            name, best = choose(self.pipe, prompts, starts, **how)
            found = direct_search(self.pipe, prompts, [best.timesteps], budget=FINE_STEPS, **how)
            return {"name": name, **found._asdict(), "evaluations": best.evaluations + found.evaluations}
        finally:
            self.pipe.scheduler = own


def found_file(cell: Cell, out: Path) -> Path:
    """Where a grid that was found on network evaluations is kept."""
    return out / "images" / f"grid-{cell.name}.json"


def provenance(setting: Setting, pipe: Pipeline, table: pd.DataFrame) -> dict[str, Any]:
    """What a record must say of where it came from: setting, weights, prompts, versions, machine."""
    import diffusers

    return {
        "setting": asdict(setting), "prompts": len(table), "prompts_sha256": short_hash(list(table["prompt"])), **table.attrs, "weights_sha256": weights_hash(pipe),
        "dtype": str(network(pipe).dtype), "torch": torch.__version__, "diffusers": diffusers.__version__,
        "python": platform.python_version(), "machine": platform.machine(), "device": str(pipe.device),
    }  # fmt: skip


def _claim(out: Path, pipe: Pipeline, prompts: list[str], setting: Setting, grids: dict[str, Any]) -> None:
    """Writes what the folder's pictures depend on, or refuses a folder whose pictures depend on something else. New cells may join."""
    wanted = {"batch_size": setting.batch_size, "prompts": short_hash(prompts), "weights": weights_hash(pipe), "dtype": str(network(pipe).dtype)}
    wanted |= {"negative_prompt": setting.negative_prompt} if setting.negative_prompt else {}
    wanted |= {"latents": _file_hash(Path(setting.latents))} if setting.latents else {}
    file = out / "images" / "claim.json"
    try:
        held: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {**wanted, "grids": {}}
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): it says what the pictures beside it depend on; remove its folder") from error
    other = [key for key in sorted({*wanted, *held} - {"grids"}) if held.get(key) != wanted.get(key)]
    other += [f"grid of {name}" for name, grid in grids.items() if held.get("grids", {}).get(name, grid) != grid]
    check(not other, "out", f"{out}, which holds pictures of another {', '.join(other)}", "name another folder or remove this one")
    write_whole(file, lambda part: part.write_text(json.dumps({**wanted, "grids": {**held.get("grids", {}), **grids}}) + "\n"))
