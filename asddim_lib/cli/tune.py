"""`asddim tune`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.choose import SEED
from asddim_lib.cli.options import (
    Batch,
    Call,
    CheckEncoder,
    Count,
    Device,
    Dtype,
    EncoderName,
    Json,
    Model,
    PipelineClass,
    Prompts,
    Scale,
    StepCount,
    Truncate,
    Variant,
    called,
    loading,
    refuse_given,
    torch_dtype,
)
from asddim_lib.cli.output import rows, say

Out = Annotated[
    Path, typer.Option(help="Folder for the scheduler, the report and all that was drawn.")
]
Solver = Annotated[
    str,
    typer.Option(
        help="ddim, dpm++ (2M), unipc or euler.",
        show_default="the model's own, or DDIM (Euler) where that takes no grid",
    ),
]
GoalName = Annotated[
    str,
    typer.Option(
        "--goal",
        help="What pictures are compared by: embedding (an image encoder's), "
        "embedding+distribution, latents, or score (CLIP's, with the prompt).",
    ),
]
Budget = Annotated[int | None, typer.Option(help="Network evaluations to spend at most.")]
Minutes = Annotated[
    float | None,
    typer.Option(help="Time to spend, instead of a budget: one step is timed, once for a folder."),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="9 prompts and no search: about the cost of ten guided pictures of 50 steps.",
    ),
]
Ahead = Annotated[
    bool,
    typer.Option("--look-ahead", help="Also try to tell the network other times than the steps'."),
]


def tune(
    context: typer.Context,
    steps: StepCount = 8,
    out: Out = Path("tuned"),
    model: Model = "bundled",
    solver: Solver = "",
    guidance_scale: Scale = 7.5,
    goal: GoalName = "embedding",
    encoder: EncoderName = "",
    check_encoder: CheckEncoder = "",
    prompts: Prompts = "bundled-tune",
    count: Count = 48,
    budget: Budget = None,
    minutes: Minutes = None,
    quick: Quick = False,
    look_ahead: Ahead = False,
    batch_size: Batch = 8,
    call: Call = "",
    truncate: Truncate = False,
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Finds the grid whose pictures are best, and saves a scheduler that holds it.

    Unless it wins over every peer's grid on prompts kept for that, the best peer is handed out.
    Stopped, the same command goes on.

    Example: asddim tune --steps 8 --guidance-scale 3 --out tuned
    """
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.models.prompts import load_prompts
    from asddim_lib.tuning.tune import tune as find

    _check(solver, goal, budget, minutes)
    if quick:
        refuse_given(context, ("count",), "--quick has 9 prompts: leave one out")
    kind, texts = torch_dtype(dtype), list(load_prompts(prompts, 9 if quick else count)["prompt"])
    how: dict[str, Any] = {"options": called(call), "truncate": truncate, "folder": out / "drawn"}
    pipe = load_pipeline(model, device=device, dtype=kind, **loading(variant, pipeline_class))
    how |= {"solver": solver or None, "guidance_scale": guidance_scale, "goal": goal}
    how |= {"encoder": encoder or None, "check_encoder": check_encoder or None}
    how |= {"budget": budget, "minutes": minutes, "quick": quick, "look_ahead": look_ahead}
    how |= {"batch_size": batch_size}
    with _line() as progress:
        found = find(pipe, texts, steps=steps, seed=SEED, progress=progress, **how)
    found.save(out)
    _say(found, out, as_json)


def _say(found: Any, out: Path, as_json: bool) -> None:
    """Prints what is handed out, and where it is."""
    value = {"out": str(out), "accepted": found.accepted, "name": found.name}
    value |= {"timesteps": found.grid, "look_ahead": found.look_ahead}
    value |= {"best_peer": found.acceptance.best, "left_out": found.left_out}
    value |= {"evaluations": found.evaluations}
    text = f"{found.summary()}\n{out}: timesteps {found.grid}, {found.evaluations} evaluations"
    text += f" ({found.pictures:.0f} pictures of 50 steps); {out / 'report.md'} has the verdicts"
    say(value | {"rows": rows(found.table())}, text, as_json)


def _check(solver: str, goal: str, budget: int | None, minutes: float | None) -> None:
    """Refuses, before the model is loaded, what needs no model to be refused."""
    from asddim_lib.errors import check
    from asddim_lib.schedulers.solvers import FLOW_SOLVERS, SOLVERS
    from asddim_lib.tuning.goals import GOALS
    from asddim_lib.tuning.plan import Limits

    known = {**SOLVERS, **FLOW_SOLVERS}
    check(solver in ("", *known), "solver", solver, f"use one of {', '.join(known)}")
    check(goal in GOALS, "goal", goal, f"use one of {', '.join(GOALS)}")
    Limits(budget, minutes)


@contextmanager
def _line() -> Iterator[Callable[[str, int, int], None]]:
    """A progress line: what is being done, the evaluations of the plan's, and the time left.

    It begins when the first evaluations are spent: weights are loaded before, under lines of their
    own.
    """
    from tqdm import tqdm

    shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left"
    lines: list[Any] = []

    def tell(doing: str, spent: int, total: int) -> None:
        if not lines:
            lines.append(tqdm(total=total, bar_format=shape, desc=doing))
        line = lines[0]
        line.total, new = total, doing != line.desc.rstrip(": ")
        line.set_description_str(doing, refresh=False)
        line.update(spent - line.n)
        if new:  # a fast machine would show no other line than the last
            line.refresh()

    try:
        yield tell
    finally:
        for line in lines:
            line.close()
