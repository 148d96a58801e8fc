"""`python -m experiments evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asddim_lib.cli.options import (
    Batch,
    Call,
    Count,
    Device,
    Dtype,
    Json,
    Model,
    PipelineClass,
    Savers,
    Truncate,
    Variant,
)
from asddim_lib.cli.output import rows, say, text_of
from experiments.cli.experiment import Experiment, report_failures
from experiments.cli.options import (
    Clip,
    Exponent,
    Folder,
    Lambda,
    Prompts,
    Reading,
    Reference,
    Scales,
    Solvers,
    Steps,
    Tuning,
)

Methods = Annotated[
    str,
    typer.Option(help="Comma-separated: ddim, ddim-trailing, names of `asddim export --list`."),
]
PromptSeed = Annotated[
    int, typer.Option(help="Seed that picks MS-COCO's images, one caption each.")
]
Real = Annotated[
    str, typer.Option(help="Folder of real pictures, for FID and KID with Inception's features.")
]
Dino = Annotated[
    str, typer.Option(help="Also with DINOv2's features: facebook/dinov2-large, or a folder.")
]
Checkpoint = Annotated[
    str,
    typer.Option(help="Inception's checkpoint; torch-fidelity fetches it if no file is given."),
]
Prepare = Annotated[
    str,
    typer.Option(
        help="What Inception sees: paper (side 256, centre crop) or plain (torchmetrics' default)."
    ),
]
Negative = Annotated[str, typer.Option(help="Negative prompt of every picture.")]
Latents = Annotated[
    str, typer.Option(help="File of a tensor (1 × c × h × w) that every picture starts from.")
]
Part = Annotated[
    str,
    typer.Option(
        help="Draw only this part, such as 0/4, and judge nothing; a later run without it judges."
    ),
]
Plan = Annotated[
    bool, typer.Option("--plan", help="Measure a few network evaluations; print the run's cost.")
]


def evaluate(
    out: Folder = Path("results/ablation"),
    model: Model = "bundled",
    prompts: Prompts = "bundled",
    count: Count = 1000,
    methods: Methods = "ddim,ddim-trailing,noise,gradient,combined",
    solvers: Solvers = "ddim",
    reference_steps: Reference = 0,
    steps: Steps = "20,50,100",
    guidance_scales: Scales = "7.5",
    p: Exponent = 0.5,
    lam: Lambda = 1.0,
    reading: Reading = "intent",
    batch_size: Batch = 50,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    prompt_seed: PromptSeed = 0,
    clip: Clip = None,
    reference: Real = "",
    dinov2: Dino = "",
    inception: Checkpoint = "",
    prepare: Prepare = "paper",
    negative_prompt: Negative = "",
    latents: Latents = "",
    tuning_prompts: Tuning = "bundled-tune",
    save_memory: Savers = "",
    truncate: Truncate = False,
    call: Call = "",
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    shard: Part = "",
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Draws and judges pictures of several methods, and writes records.

    The same command resumes a stopped run, and draws damaged files again.

    Example: python -m experiments evaluate --count 200 --steps 20 --out results/small

    On many GPUs: torchrun --nproc_per_node 4 -m experiments evaluate …

    On machines that share only a folder: python -m experiments evaluate --shard 0/4 … to
    3/4 in parallel, then the same without --shard on one of them.
    """
    summary = Experiment(**locals()).run()  # its fields are these options
    files = {"records": str(out / "records.parquet"), "summary": str(out / "summary.csv")}
    text = f"{text_of(summary, 4)}\n{', '.join(files.values())}"
    say(files | {"rows": rows(summary)}, text, as_json)
    report_failures(summary)
