"""`python -m experiments evaluate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import rows, say
from experiments.cli.experiment import report_failures, run
from experiments.cli.options import CPU, FOLDER, PLAN, PictureOptions, RealOptions, text_of


@opt.command
def evaluate(
    pictures: PictureOptions,
    real: RealOptions,
    model: opt.ModelOptions = CPU,
    out: Path = typer.Option(Path("results/ablation"), help=FOLDER),
    methods: str = typer.Option(
        "ddim,ddim-trailing,noise,gradient,combined",
        help="Comma-separated: ddim, ddim-trailing, names of `asddim export --list`.",
    ),
    p: float = typer.Option(0.5, "--p", help="Exponent p of Eq 5."),
    lam: float = typer.Option(1.0, "--lam", help="λ of Eq 9."),
    reading: str = typer.Option(
        "intent", help="How Eqs 10-12 are understood: intent, density or literal."
    ),
    prompt_seed: int = typer.Option(0, help="Seed that picks MS-COCO's images, one caption each."),
    negative_prompt: str = typer.Option("", help="Negative prompt of every picture."),
    latents: str = typer.Option(
        "", help="File of a tensor (1 × c × h × w) that every picture starts from."
    ),
    shard: str = typer.Option(
        "",
        help="Draw only this part, such as 0/4, and judge nothing; a later run without it judges.",
    ),
    plan: bool = PLAN,
    as_json: bool = opt.JSON,
) -> None:
    """Draws and judges pictures of several methods, and writes records.

    The same command resumes a stopped run, and draws damaged files again.

    Example: python -m experiments evaluate --count 200 --steps 20 --out results/small

    On many GPUs: torchrun --nproc_per_node 4 -m experiments evaluate …

    On machines that share only a folder: python -m experiments evaluate --shard 0/4 … to
    3/4 in parallel, then the same without --shard on one of them.
    """
    setting = replace(
        pictures.setting(methods),
        p=p,
        lam=lam,
        reading=reading,
        negative_prompt=negative_prompt,
        latents=latents,
    )
    summary = run(model, pictures, real, setting, out, as_json, prompt_seed, shard, plan)
    files = {"records": str(out / "records.parquet"), "summary": str(out / "summary.csv")}
    text = f"{text_of(summary, 4)}\n{', '.join(files.values())}"
    say(files | {"rows": rows(summary)}, text, as_json)
    report_failures(summary)
