"""`python -m experiments compare`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import rows, say
from experiments.cli.experiment import report_failures, run
from experiments.cli.options import CPU, FOLDER, PLAN, PictureOptions, RealOptions, text_of

#: Every method that is compared unless the user names others.
GRIDS = (
    "leading,trailing,noise,gradient,combined,fitted,equidistributed,dual-weighted,chosen,"
    "quadratic,karras,logsnr,beta,arctan,dmn,ays-sd15,gits,oracle,dual-path"
)
KEYS = ["guidance_scale", "steps", "solver", "method"]
FIGURES = ("distance", "distance_ci", "fid", "fid_ci", "clip", "right")

#: FID needs more pictures than the judge's 192 features.
PICTURES = PictureOptions(
    count=256, steps="5,8,10,20,50", guidance_scales="1,3,7.5", reference_steps=1000
)


@opt.command
def compare(
    pictures: PictureOptions = PICTURES,
    model: opt.ModelOptions = CPU,
    out: Path = typer.Option(Path("results/compare"), help=FOLDER),
    grids: str = typer.Option(GRIDS, help="Comma-separated: names of `asddim export --list`."),
    guidance_plans: str = typer.Option(
        "constant",
        help="Comma-separated: constant, which is always drawn, and plans that change the scale "
        "from step to step: capped-1.5 (or another c), capped-measured, interval-sdxl, linear, "
        "zero-start …",
    ),
    calibrate_on: int = typer.Option(
        16, help="Number of tuning prompts that profiles are measured on."
    ),
    calibrate_steps: int = typer.Option(
        64, help="Number of timesteps along the path that profiles are measured on."
    ),
    tune_on: int = typer.Option(
        128, help="Number of tuning prompts that the method tuned is given."
    ),
    encoder: str = opt.ENCODER,
    check_encoder: str = opt.CHECK_ENCODER,
    plan: bool = PLAN,
    as_json: bool = opt.JSON,
) -> None:
    """Compares grids, and guidance plans, with the trailing grid under constant guidance.

    Picture by picture: by distance from the reference; without one, by the attributes that
    the pictures show.

    Example: python -m experiments compare --count 200 --steps 10 --reference-steps 200
    """
    names = dict.fromkeys(("trailing", *opt.words("grids", grids)))
    plans = dict.fromkeys(("constant", *opt.words("guidance_plans", guidance_plans)))
    setting = replace(
        pictures.setting(",".join(names)),
        guidance_plans=tuple(plans),
        calibrate_on=calibrate_on,
        calibrate_steps=calibrate_steps,
        adjoint_probes=2,
        feature_probes=1 if "feature-weighted" in names else 0,
        tuning_seed=1_000_000,
        tune_on=tune_on,
        encoder=encoder,
        check_encoder=check_encoder,
    )
    from experiments.records import by_plan

    summary = run(model, pictures, RealOptions(), setting, out, as_json, only_plan=plan)
    summary = by_plan(summary)
    against = _paired(out, bool(setting.reference_steps))
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
    from experiments.records import by_plan, read_records

    records, key = by_plan(read_records(out)), "distance" if by_distance else "right_all"
    remedy = "give some: these prompts have no attributes to compare by"
    check(key in records, "reference_steps", 0, remedy)
    table = paired(records, "trailing", key)
    write_whole(out / "paired.csv", lambda part: table.to_csv(part, index=False))
    return table
