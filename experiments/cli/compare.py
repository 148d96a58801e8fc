"""`python -m experiments compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import (
    Batch,
    Call,
    CheckEncoder,
    Device,
    Dtype,
    EncoderName,
    Json,
    Model,
    PipelineClass,
    Savers,
    Truncate,
    Variant,
    words,
)
from asddim_lib.cli.output import rows, say, text_of
from experiments.cli.evaluate import Plan
from experiments.cli.experiment import Experiment, report_failures
from experiments.cli.options import (
    Clip,
    Folder,
    Prompts,
    Reference,
    Scales,
    Solvers,
    Steps,
    Tuning,
)

#: Every method that is compared unless the user names others.
GRIDS = (
    "leading,trailing,noise,gradient,combined,fitted,equidistributed,dual-weighted,chosen,"
    "quadratic,karras,logsnr,beta,arctan,dmn,ays-sd15,gits,oracle,dual-path"
)
KEYS = ["guidance_scale", "steps", "solver", "method"]
FIGURES = ("distance", "distance_ci", "fid", "fid_ci", "clip", "right")

Pictures = Annotated[
    int, typer.Option(help="Number of prompts; FID needs more than 192, the judge's features.")
]
Grids = Annotated[str, typer.Option(help="Comma-separated: names of `asddim export --list`.")]
CalibrateOn = Annotated[
    int, typer.Option(help="Number of tuning prompts that profiles are measured on.")
]
CalibrateSteps = Annotated[
    int, typer.Option(help="Number of timesteps along the path that profiles are measured on.")
]
TuneOn = Annotated[
    int, typer.Option(help="Number of tuning prompts that the method tuned is given.")
]


def compare(
    out: Folder = Path("results/compare"),
    model: Model = "bundled",
    prompts: Prompts = "bundled",
    count: Pictures = 256,
    grids: Grids = GRIDS,
    solvers: Solvers = "ddim",
    steps: Steps = "5,8,10,20,50",
    guidance_scales: Scales = "1,3,7.5",
    reference_steps: Reference = 1000,
    calibrate_on: CalibrateOn = 16,
    calibrate_steps: CalibrateSteps = 64,
    tune_on: TuneOn = 128,
    tuning_prompts: Tuning = "bundled-tune",
    encoder: EncoderName = "",
    check_encoder: CheckEncoder = "",
    clip: Clip = None,
    batch_size: Batch = 50,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    save_memory: Savers = "",
    truncate: Truncate = False,
    call: Call = "",
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    plan: Plan = False,
    as_json: Json = False,
) -> None:
    """Compares grids with the trailing one, picture by picture.

    By distance from the reference; without one, by the attributes that the pictures show.

    Example: python -m experiments compare --count 200 --steps 10 --reference-steps 200
    """
    options = dict(locals())
    names = dict.fromkeys(("trailing", *words("grids", options.pop("grids"))))
    tuning = {name: options.pop(name) for name in ("calibrate_on", "calibrate_steps")}
    tuning |= {"adjoint_probes": 2, "tuning_seed": 1_000_000, "tune_on": options.pop("tune_on")}
    tuning |= {name: options.pop(name) for name in ("encoder", "check_encoder")}
    tuning |= {"feature_probes": 1 if "feature-weighted" in names else 0}
    summary = Experiment(**options, methods=",".join(names), tuning=tuning).run()
    against = _paired(out, bool(reference_steps))
    shown = summary[[*KEYS, *(name for name in FIGURES if name in summary)]]
    shown = shown.merge(against, on=KEYS, how="left")
    value = {"paired": str(out / "paired.csv"), "rows": rows(shown)}
    say(value, text_of(shown, 3), as_json)
    report_failures(summary)


def _paired(out: Path, by_distance: bool) -> Any:
    """Each grid's paired difference from the trailing one, also written to paired.csv."""
    from asddim_lib.cache import write_whole
    from asddim_lib.errors import check
    from experiments.contest import paired
    from experiments.records import read_records

    records, key = read_records(out), "distance" if by_distance else "right_all"
    remedy = "give some: these prompts have no attributes to compare by"
    check(key in records, "reference_steps", 0, remedy)
    table = paired(records, "trailing", key)
    write_whole(out / "paired.csv", lambda part: table.to_csv(part, index=False))
    return table
