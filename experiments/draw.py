"""The pictures of an experiment, drawn; and what a folder of them is for."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from asddim_lib.cache import (
    DamagedFile,
    locked,
    report_versions,
    seal,
    short_hash,
    unseal,
    versions,
)
from asddim_lib.errors import check
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.models.load import Pipeline, network
from asddim_lib.models.prompts import check_prompts
from asddim_lib.pipeline.manifest import manifest
from asddim_lib.pipeline.run import Drawn, Run
from asddim_lib.schedulers.place import drawing
from asddim_lib.schedulers.solvers import solver_of
from experiments.setting import Batch, Cell, Setting, batches, cells, references
from experiments.shards import ALONE, Shard
from experiments.store import load_latents, made_from, save, whole

log = logging.getLogger(__name__)


def generate(
    pipe: Pipeline,
    prompts: list[str],
    setting: Setting,
    grids: dict[Cell, Any],
    out: Path,
    progress: Callable[[list[Batch]], Iterable[Batch]] = iter,
    shard: Shard = ALONE,
    plans: Mapping[Cell, GuidancePlan] = MappingProxyType({}),
) -> int:
    """Draws a shard's pictures of the experiment into `out`/images, by the `plans` measured.

    Image i starts from the noise of seed i, whatever the method. A batch is written, whole, as soon
    as it is drawn: a stopped run goes on where it stopped, a damaged file is named and drawn again,
    and a folder that holds other pictures under the same names is refused. A picture that is not
    finite is named, and drawn again by the next run.
    Returns how many are not finite. Raises WrongUse for wrong prompts or a missing grid.
    """
    check_prompts(pipe, prompts, truncate=setting.truncate)
    latents = load_latents(setting.latents)
    wanted = list(dict.fromkeys((*cells(setting), *references(setting, pipe.scheduler))))
    for cell in wanted:
        check(cell in grids, "grids", f"without {cell.name}", "give the timesteps of every cell")
    origin = _origin(pipe, prompts, setting)
    with locked(out / "images"):
        named = {cell.name: _identity(grids[cell], plans.get(cell, cell.plan)) for cell in wanted}
        claim(out / "images" / "claim.json", origin, "pictures", _claimed(out), named)
    waiting = _waiting(wanted, len(prompts), setting, out, shard)
    own, failed, painter = pipe.scheduler, 0, _Painter(pipe, prompts, setting, latents)
    try:
        for batch in progress(waiting):
            grid, plan = grids[batch.cell], plans.get(batch.cell, batch.cell.plan)
            drawn, identity = painter(batch, grid, plan), _identity(grid, plan)
            save(batch.file(out), drawn, {**origin, "grid": identity})
            failed += _name_failures(batch, drawn, prompts)
    finally:
        pipe.scheduler = own
    return failed


def _waiting(
    wanted: list[Cell], count: int, setting: Setting, out: Path, shard: Shard
) -> list[Batch]:
    """The shard's batches that are not drawn yet.

    Methods take turns batch by batch, in the same process, so that a drift in the machine's speed
    touches all alike.
    """
    groups: dict[tuple[float, int], list[list[Batch]]] = {}
    for cell in wanted:
        group = groups.setdefault((cell.guidance_scale, cell.steps), [])
        group.append(batches(cell, count, setting))
    # Each turn has all methods' batches of the same prompts.
    turns = [turn for group in groups.values() for turn in zip(*group, strict=True)]
    missing = []
    for number, turn in shard.share(list(enumerate(turns))):
        left = [batch for batch in turn if not whole(batch.file(out))]
        if left:
            missing.append((number, left))
    return [batch for _, left in shard.deal(missing) for batch in left]


class _Painter:
    """Draws batches; remembers how many pictures the memory holds at once."""

    def __init__(
        self, pipe: Pipeline, prompts: list[str], setting: Setting, latents: Tensor | None
    ) -> None:
        self.pipe, self.prompts, self.setting = pipe, prompts, setting
        self.source = pipe.scheduler
        self.options = {**setting.options, **({} if latents is None else {"latents": latents})}
        self.at_once, self.warm = setting.batch_size, False

    def __call__(self, batch: Batch, grid: Any, plan: GuidancePlan | None) -> Drawn:
        seeds = range(batch.start, batch.stop)
        run = Run(
            self.pipe,
            [self.prompts[seed] for seed in seeds],
            seeds,
            batch.cell.guidance_scale,
            self.at_once,
            self.options,
            self.setting.truncate,
            self._scheduler(batch.cell),
            guidance_plan=plan,
        )
        if not self.warm:  # a process's first call pays for lazy initialisation; it is not timed
            run.pictures(num_inference_steps=1)
            self.warm = True
        drawn = run.pictures(grid)
        if drawn.at_once < batch.pictures:
            self.at_once = min(self.at_once, drawn.at_once)
        return drawn

    def _scheduler(self, cell: Cell) -> Any:
        kind = solver_of(cell.solver, self.source)[0]
        scheduler = drawing(kind, self.source, self.setting.end)
        scheduler.strict = False  # one picture's fault does not stop the batch: see `Drawn.finite`
        return scheduler


def _name_failures(batch: Batch, drawn: Drawn, prompts: list[str]) -> int:
    seeds = range(batch.start, batch.stop)
    failed = [s for s, sound in zip(seeds, drawn.finite.tolist(), strict=True) if not sound]
    text = "%s: not finite for prompt %r, seed %d; the picture counts as failed"
    for seed in failed:
        log.warning(text, batch.cell.name, prompts[seed], seed)
    return len(failed)


def file_hash(file: Path) -> str:
    """A short name of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def weights_hash(pipe: Pipeline) -> str:
    """A short hash of all the pipeline's weights.

    Equal values have equal hashes, whatever their dtype or device.
    """
    digest = hashlib.sha256()
    for name in sorted(pipe.components):
        module = pipe.components[name]
        if isinstance(module, nn.Module):
            for key, value in sorted(module.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _identity(grid: Any, plan: GuidancePlan | None) -> Any:
    """What a cell's pictures depend on beside the folder's origin."""
    return grid if plan is None else {"grid": grid, "guidance_plan": plan.to_dict()}


def _origin(pipe: Pipeline, prompts: list[str], setting: Setting) -> dict[str, Any]:
    """What all pictures of a folder depend on, beside their grids."""
    origin = {
        "batch_size": setting.batch_size,
        "prompts": short_hash(prompts),
        "weights": weights_hash(pipe),
        "dtype": str(network(pipe).dtype),
        "pipeline": manifest(pipe),
        "versions": versions(),
    }
    optional = {
        "negative_prompt": setting.negative_prompt,
        "save_memory": pipe.config.get("_save_memory"),
        "latents": file_hash(Path(setting.latents)) if setting.latents else "",
        "truncate": setting.truncate,
        "end": setting.end,
        "call": setting.call,
    }
    return origin | {name: value for name, value in optional.items() if value}


def claim(
    file: Path,
    origin: dict[str, Any],
    content: str,
    made_from: dict[str, Any] | None = None,
    grids: dict[str, Any] | None = None,
) -> None:
    """Writes what a folder's pictures or profiles depend on. New cells' grids may join.

    `made_from` is the claim where the file is missing. Other versions of libraries are reported.
    Raises WrongUse for a folder whose content depends on something else.
    """
    known = unseal(file) or made_from or origin
    folder = file.parents[1]
    report_versions(str(folder), json.dumps(known.get("versions", {})))
    before = {name: value for name, value in known.items() if name not in ("grids", "versions")}
    if isinstance(before.get("pipeline"), str):
        text = "%s was begun by version 0.2: of its model only the weights are compared"
        log.warning(text, folder)
        before = {n: v for n, v in before.items() if n != "scheduler"}
        before["pipeline"] = origin["pipeline"]
    now = {name: value for name, value in origin.items() if name != "versions"}
    other = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if "pipeline" in other:
        old, new = before["pipeline"], now["pipeline"]
        parts = [part for part in sorted({*old, *new}) if old.get(part) != new.get(part)]
        other[other.index("pipeline")] = f"pipeline ({', '.join(parts)})"
    earlier = known.get("grids", {})
    other += [f"grid of {n}" for n, g in (grids or {}).items() if earlier.get(n, g) != g]
    what = f"{folder}, which has {content} of another {', '.join(other)}"
    check(not other, "out", what, "name another folder or remove this one")
    first = {**origin, "versions": known.get("versions", origin["versions"])}
    seal(file, first if grids is None else {**first, "grids": {**earlier, **grids}})


def _claimed(out: Path) -> dict[str, Any]:
    """What the claim said, as the pictures say it, each for its cell; empty without pictures."""
    found: dict[str, Any] = {}
    for file in sorted((out / "images").glob("*.safetensors")):
        try:
            origin = made_from(file) or {}
        except DamagedFile:  # it is named and drawn again in its turn
            continue
        cell, grid = file.stem.rpartition("-")[0], origin.pop("grid", None)
        found = {**origin, **found, "grids": {**found.get("grids", {}), cell: grid}}
    return found
