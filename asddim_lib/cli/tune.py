"""`asddim tune`, and what it shares with `asddim compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_folder, rows, say
from asddim_lib.errors import check, check_whole
from asddim_lib.progress import progress_line

#: No picture that is reported on starts from this seed.
SEED = 1_000_000
#: As many prompts as --quick needs for a verdict.
QUICK_PROMPTS = 9

#: What --out is.
OUT = "Folder for the scheduler, the report and the pictures."


@opt.options
class ContestOptions:
    """Comparison"""

    solver: str = typer.Option(
        "",
        help="ddim, dpm++ (2M), unipc or euler.",
        show_default="the model's, or DDIM (Euler) where that takes no grid",
    )
    goal: str = typer.Option(
        "embedding",
        help="Pictures are compared by their embedding (an image encoder's) or latents.",
    )
    encoder: str = opt.ENCODER
    check_encoder: str = opt.CHECK_ENCODER
    batch_size: int = opt.BATCH_SIZE

    def run(
        self,
        model: opt.ModelOptions,
        pictures: opt.CallOptions,
        texts: list[str],
        steps: int,
        plan: Any,
        out: str,
        as_json: bool,
        budget: int | None = None,
    ) -> None:
        """Tunes or compares, as the plan says; saves and prints the result.

        Raises WrongUse, before the model is loaded, for a value that is wrong whatever the model.
        """
        from asddim_lib.schedulers.solvers import FLOW_SOLVERS, SOLVERS
        from asddim_lib.tuning.goals import GOALS
        from asddim_lib.tuning.tune import tune

        folder, options, known = check_folder(out), pictures.options(), {**SOLVERS, **FLOW_SOLVERS}
        check_whole("steps", steps, 1, 1000)
        if budget is not None:
            check_whole("budget", budget, 1)
        check_whole("batch_size", self.batch_size, 1)
        remedy = f"use one of {', '.join(known)}"
        check(self.solver in ("", *known), "solver", self.solver, remedy)
        check(self.goal in GOALS, "goal", self.goal, f"use one of {', '.join(GOALS)}")
        pipe = model.load()
        with progress_line() as progress:
            tuned = tune(
                pipe,
                texts,
                steps=steps,
                guidance_scale=pictures.guidance_scale,
                solver=self.solver or None,
                goal=self.goal,
                encoder=self.encoder or None,
                check_encoder=self.check_encoder or None,
                budget=budget,
                plan=plan,
                batch_size=self.batch_size,
                seed=SEED,
                truncate=pictures.truncate,
                folder=folder,
                progress=progress,
                options=options,
            )
        tuned.save(folder)
        show(tuned, folder, as_json)


def show(tuned: Any, folder: Path, as_json: bool) -> None:
    """Prints the verdict, the cost, and where the report and the scheduler are."""
    value = {
        "out": str(folder),
        "changed": tuned.changed,
        "name": tuned.name,
        "timesteps": tuned.grid,
        "skipped": tuned.skipped,
        "evaluations": tuned.evaluations,
        "rows": rows(tuned.table()),
    }
    cost = f"as much as {tuned.cost_in_pictures:.0f} pictures of {tuned.setting.current}"
    text = (
        f"{tuned.summary()}\nIt cost {cost}; {folder / 'report.md'} has every comparison. "
        f"Draw: asddim generate PROMPT --model {folder}"
    )
    say(value, text, as_json)


@opt.command
def tune(
    model: opt.ModelOptions,
    pictures: opt.CallOptions,
    contest: ContestOptions,
    steps: int = opt.STEPS,
    out: str = typer.Option("tuned", help=OUT),
    prompts: str = opt.PROMPTS,
    count: int | None = typer.Option(
        None, help="Number of prompts.", show_default=f"48, or {QUICK_PROMPTS} with --quick"
    ),
    budget: int | None = typer.Option(None, help="Largest number of network evaluations."),
    quick: bool = typer.Option(
        False,
        "--quick",
        help=f"{QUICK_PROMPTS} prompts and no search; it costs about ten guided pictures of "
        "50 steps.",
    ),
    as_json: bool = opt.JSON,
) -> None:
    """Searches for a grid, and replaces the model's scheduler only if its pictures win.

    A grid has to win over the model's scheduler and over every other grid, on
    prompts that served no choice. If you stop it, the same command continues.

    Example: asddim tune --steps 8 --out tuned
    """
    count = (QUICK_PROMPTS if quick else 48) if count is None else count
    texts = model.texts(prompts, count)

    from asddim_lib.tuning.draw import split
    from asddim_lib.tuning.proposals import QUICK, Plan

    plan = QUICK if quick else Plan()
    split(texts, plan.for_choice(len(set(texts))))  # are there enough for a verdict?
    contest.run(model, pictures, texts, steps, plan, out, as_json, budget)
