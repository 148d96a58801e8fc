"""What evaluate, compare and mlperf share: options in, the summary of an experiment out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from asddim_lib.cli.options import ModelOptions
from asddim_lib.cli.output import rows, say
from asddim_lib.progress import progress_line
from experiments.cli.options import PictureOptions, RealOptions, text_of


def run(
    model: ModelOptions,
    pictures: PictureOptions,
    real: RealOptions,
    setting: Any,
    out: Path,
    as_json: bool,
    prompt_seed: int = 0,
    part: str = "",
    only_plan: bool = False,
) -> Any:
    """Draws and judges; the summary, a row per method, solver, step count and scale.

    Ends the process if there is none: with `only_plan`, or if another process judges.
    """
    from asddim_lib.models.prompts import load_prompts
    from experiments.evaluate import evaluate
    from experiments.setting import picture_evaluations
    from experiments.shards import joined

    table = load_prompts(pictures.prompts, pictures.count, prompt_seed)
    with joined(part) as shard:
        device = shard.device(model.device)
        encoders = [] if only_plan else real.encoders(device)
        pipe = replace(model, device=device).load()
        if only_plan:
            if shard.speaks:
                show_plan(pipe, table, setting, as_json)
            raise typer.Exit
        summary = evaluate(
            pipe,
            table,
            setting,
            out,
            shard=shard,
            clip=pictures.clip,
            reference=real.reference,
            against=encoders,
            progress=lambda waiting: bar(
                waiting, shard, lambda cell: picture_evaluations(pipe, setting, cell)
            ),
        )
    if shard.judges:
        return summary
    if shard.speaks:
        after = "when all are, run the same command without --shard to judge"
        say(rows(summary), f"shard {part} is drawn; {after}", as_json)
        report_failures(summary)
    raise typer.Exit


def report_failures(summary: Any) -> None:
    """Exits with 1, after one line on stderr, if some pictures failed."""
    failed = int(summary["failed"].sum()) + summary.attrs.get("failed_references", 0)
    if failed:
        reason = "the network returned numbers that are not finite"
        rest = "the figures leave them out; the next run draws them again"
        typer.echo(f"experiments: {failed} pictures failed: {reason}; {rest}", err=True)
        raise typer.Exit(1)


def bar(waiting: list, shard: Any, evaluations: Callable[[Any], int]) -> Iterator:
    """Yields batches under a progress line of network evaluations, in a process that speaks.

    The time left then holds for any mixture of step counts. `evaluations` are a picture's of a
    cell.
    """
    if not shard.speaks:
        yield from waiting
        return
    pictures = sum(batch.pictures for batch in waiting)
    total = sum(batch.pictures * evaluations(batch.cell) for batch in waiting)
    part = f"shard {shard.number}/{shard.count} " if shard.count > 1 else ""
    done = spent = 0
    with progress_line() as tell:
        for batch in waiting:
            tell(f"{part}{done}/{pictures} images", spent, total)
            yield batch
            done += batch.pictures
            spent += batch.pictures * evaluations(batch.cell)
        tell(f"{part}{done}/{pictures} images", spent, total)


def show_plan(pipe: Any, table: Any, setting: Any, as_json: bool) -> None:
    """Measures a few network evaluations; prints what the whole experiment will cost."""
    from asddim_lib.models.load import device_of
    from experiments.cost import calibration, measure, plan
    from experiments.setting import check_plans

    check_plans(pipe, setting)
    cost = measure(pipe, table, setting)
    costs, profiles = plan(pipe, setting, len(table), cost), calibration(pipe, setting)
    device = device_of(pipe)
    value = {"rows": rows(costs), "profile_evaluations": profiles, "device": str(device)}
    names = ("pictures", "evaluations", "hours", "gigabytes")
    pictures, evaluations, hours, size = (costs[name].sum() for name in names)
    memory = "" if cost.memory is None else f", {cost.memory:.0f} MB of memory at its peak"
    most = "at most " if setting.planned else ""  # where plans leave evaluations out
    lines = [
        text_of(costs, 3),
        f"{pictures} pictures, {most}{evaluations} network evaluations, {hours:.3g} hours on one "
        f"such device, {size:.3g} GB",
        f"besides: profiles, {profiles} evaluations, {profiles * cost.seconds / 3600:.3g} hours; "
        "judging; grids that are found by trials",
        f"measured on {device}, {min(setting.batch_size, len(table))} pictures at once: "
        f"{cost.seconds:.3g} s per evaluation, {cost.rest:.3g} s per picture for text, decoding "
        f"and copying{memory}",
    ]
    say({**value, **cost._asdict()}, "\n".join(lines), as_json)
