"""What evaluate, compare and mlperf share: options in, the summary of an experiment out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import typer

from asddim_lib.cli.options import load, numbers, words
from asddim_lib.cli.output import rows, say, text_of
from asddim_lib.errors import check


@dataclass(frozen=True)
class Experiment:
    """The options of an experiment, as they were typed: lists are comma-separated.

    `tuning` holds the fields of `Setting` that no option of evaluate sets.
    """

    out: Path
    model: str
    prompts: str
    count: int
    methods: str
    solvers: str
    steps: str
    guidance_scales: str
    batch_size: int
    device: str
    dtype: str
    as_json: bool
    reference_steps: int = 0
    p: float = 0.5
    lam: float = 1.0
    reading: str = "intent"
    prompt_seed: int = 0
    clip: str | None = None
    reference: str = ""
    dinov2: str = ""
    inception: str = ""
    prepare: str = "paper"
    negative_prompt: str = ""
    latents: str = ""
    tuning_prompts: str = "bundled-tune"
    save_memory: str = ""
    truncate: bool = False
    call: str = ""
    variant: str = ""
    pipeline_class: str = ""
    shard: str = ""
    plan: bool = False
    tuning: dict[str, Any] = field(default_factory=dict)

    def setting(self) -> Any:
        """The `Setting`. Raises WrongUse for a value that it refuses, or one given twice."""
        from experiments.setting import Setting

        lists: dict[str, Any] = {
            "methods": words("methods", self.methods),
            "solvers": words("solvers", self.solvers),
            "steps": numbers("steps", self.steps, int),
            "guidance_scales": numbers("guidance_scale", self.guidance_scales, float),
        }
        names = {f.name for f in fields(Setting)} & {f.name for f in fields(self)} - set(lists)
        return Setting(**lists, **{name: getattr(self, name) for name in names}, **self.tuning)

    def run(self) -> Any:
        """Draws and judges; the summary, a row per method, solver, step count and scale.

        Ends the process if there is none: with `plan`, or if another process judges.
        """
        from asddim_lib.models.prompts import load_prompts
        from experiments.evaluate import evaluate
        from experiments.setting import picture_evaluations
        from experiments.shards import joined

        self._check_reference()
        setting = self.setting()
        table = load_prompts(self.prompts, self.count, self.prompt_seed)
        with joined(self.shard) as shard:
            device, files = shard.device(self.device), (self.variant, self.pipeline_class)
            pipe = load(self.model, device, self.dtype, self.save_memory, *files)
            if self.plan:
                if shard.speaks:
                    show_plan(pipe, table, setting, self.as_json)
                raise typer.Exit
            summary = evaluate(
                pipe,
                table,
                setting,
                self.out,
                shard=shard,
                clip=self.clip,
                reference=self.reference,
                against=self._encoders(device),
                progress=lambda waiting: bar(
                    waiting, shard, lambda cell: picture_evaluations(pipe, setting, cell)
                ),
            )
        if shard.judges:
            return summary
        if shard.speaks:
            self._show_shard(summary)
        raise typer.Exit

    def _check_reference(self) -> None:
        """Refuses encoders without real pictures, and a folder without any."""
        from asddim_lib.metrics.encoders import PREPARATIONS
        from experiments.real import picture_files

        if self.reference:
            picture_files(self.reference)
        alone = bool(self.inception or self.dinov2) and not self.reference
        check(not alone, "reference", self.reference, "give a folder of real pictures, too")
        remedy = f"use one of {', '.join(PREPARATIONS)}"
        check(self.prepare in PREPARATIONS, "prepare", self.prepare, remedy)

    def _encoders(self, device: str) -> list[Any]:
        """The encoders that compare pictures with real ones; none without a `reference`."""
        from asddim_lib.metrics.encoders import load_inception
        from experiments.real import load_dinov2

        if not self.reference:
            return []
        found = [load_inception(self.inception, self.prepare, device)]
        return [*found, load_dinov2(self.dinov2, device)] if self.dinov2 else found

    def _show_shard(self, summary: Any) -> None:
        after = "when all are, run the same command without --shard to judge"
        say(rows(summary), f"shard {self.shard} is drawn; {after}", self.as_json)
        report_failures(summary)


def report_failures(summary: Any) -> None:
    """Exits with 1, after one line on stderr, if some pictures failed."""
    failed = int(summary["failed"].sum()) + summary.attrs.get("failed_references", 0)
    if failed:
        reason = "the network returned numbers that are not finite"
        rest = "the figures leave them out; the next run draws them again"
        typer.echo(f"experiments: {failed} pictures failed: {reason}; {rest}", err=True)
        raise typer.Exit(1)


def bar(waiting: list, shard: Any, evaluations: Callable[[Any], int]) -> Iterator:
    """Yields batches under a progress bar.

    It counts network evaluations, so that the time left holds for any mixture of step counts:
    `evaluations` says how many a picture of a cell has.
    """
    from tqdm import tqdm

    total, done, start = sum(batch.pictures for batch in waiting), 0, time.perf_counter()
    with tqdm(
        total=sum(batch.pictures * evaluations(batch.cell) for batch in waiting),
        desc=f"shard {shard.number}/{shard.count} " if shard.count > 1 else "",
        bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}",
        disable=not shard.speaks,
    ) as progress:
        for batch in waiting:
            yield batch
            done += batch.pictures
            rate = done / (time.perf_counter() - start)
            text = f"{done}/{total} images, {rate:.3g} images/s"
            progress.set_postfix_str(text, refresh=False)
            progress.update(batch.pictures * evaluations(batch.cell))


def show_plan(pipe: Any, table: Any, setting: Any, as_json: bool) -> None:
    """Measures a few network evaluations; prints what the whole experiment will cost."""
    from asddim_lib.models.load import device_of
    from experiments.cost import calibration, measure, plan

    cost = measure(pipe, table, setting)
    costs, profiles = plan(pipe, setting, len(table), cost), calibration(pipe, setting)
    device = device_of(pipe)
    value = {"rows": rows(costs), "profile_evaluations": profiles, "device": str(device)}
    names = ("pictures", "evaluations", "hours", "gigabytes")
    pictures, evaluations, hours, size = (costs[name].sum() for name in names)
    memory = "" if cost.memory is None else f", {cost.memory:.0f} MB of memory at its peak"
    lines = [
        text_of(costs, 3),
        f"{pictures} pictures, {evaluations} network evaluations, {hours:.3g} hours on one such "
        f"device, {size:.3g} GB",
        f"besides: profiles, {profiles} evaluations, {profiles * cost.seconds / 3600:.3g} hours; "
        "judging; grids that are found by trials",
        f"measured on {device}, {min(setting.batch_size, len(table))} pictures at once: "
        f"{cost.seconds:.3g} s per evaluation, {cost.rest:.3g} s per picture for text, decoding "
        f"and copying{memory}",
    ]
    say({**value, **cost._asdict()}, "\n".join(lines), as_json)
