"""The command line: asddim calibrate | generate | export | evaluate | compare | report | choose | clock | mlperf."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.files import CACHE

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__
)
Model = Annotated[str, typer.Option(help="bundled, sd15, sdxl, a folder or a hub id.")]
ALLOCATION = (
    "uniform, noise, gradient, combined, fitted, equidistributed, dual-weighted, leading, trailing, linspace, quadratic, karras, exponential, logsnr, beta, "
    "beta-sigmas, arctan, dmn, ays-sd15, ays-sdxl or ays-deepfloyd."
)
Override = Annotated[
    str,
    typer.Option(
        help="What a profile may have been made for otherwise: model, schedule, guidance_scale; comma-separated."
    ),
]
Scale = Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")]
Scales = Annotated[
    str,
    typer.Option("--guidance-scale", help="Classifier-free guidance, comma-separated; 1 is none."),
]
PROMPTS = "bundled, bundled-tune, coco, drawbench, or a file: MS-COCO's captions (.json), .csv, .tsv, .jsonl, .parquet, or text, a prompt a line."
Prompts = Annotated[str, typer.Option(help=PROMPTS)]
Count = Annotated[int, typer.Option(help="How many prompts.")]
Steps = Annotated[str, typer.Option(help="Sampling steps, comma-separated.")]
Solvers = Annotated[
    str,
    typer.Option(help="Comma-separated: ddim, dpm++ (2M), unipc, euler (for flow matching, too)."),
]
Reference = Annotated[
    int,
    typer.Option(
        help="Also measure each picture's distance from DDIM's with as many steps; 0 for none."
    ),
]
Tuning = Annotated[
    str,
    typer.Option(
        help="What grids are measured on, a set like `prompts`, which is not reported on."
    ),
]
Batch = Annotated[int, typer.Option(help="Pictures drawn at once.")]
KINDS = ("float32", "float16", "bfloat16")
Dtype = Annotated[str, typer.Option(help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …")]
Clip = Annotated[
    str | None,
    typer.Option(
        help="The CLIP that scores pictures of prompts that are not bundled: a folder or a hub id."
    ),
]
Savers = Annotated[str, typer.Option(help="Comma-separated: vae-slicing, vae-tiling, offload.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


@app.command()
def calibrate(
    out: Annotated[Path, typer.Argument(help="Where the profile (JSON) goes.")],
    model: Model = "bundled",
    prompts: Annotated[str, typer.Option(help=PROMPTS)] = "bundled-tune",
    count: Annotated[int, typer.Option(help="How many prompts.")] = 8,
    guidance_scale: Scale = 7.5,
    num_steps: Annotated[int, typer.Option(help="Timesteps of the path that is measured.")] = 32,
    estimator: Annotated[
        str, typer.Option(help="vjp, jvp, difference, path (free), or power (the spectral norm).")
    ] = "vjp",
    adjoint_probes: Annotated[
        int,
        typer.Option(
            help="Sweeps back along the path, for dual-weighted grids; each costs three evaluations a timestep."
        ),
    ] = 0,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="One prompt over 32 steps, path alone: costs less than two images of 20 steps.",
        ),
    ] = False,
    cache: Annotated[
        Path,
        typer.Option(
            help="Folder of batches that were measured: the same ones are not measured again."
        ),
    ] = CACHE,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Measures g(t) and the error of a step along the model's own path. Example: asddim calibrate profile.json --guidance-scale 7.5"""
    from tqdm import tqdm

    from asddim_lib.core.noise import NoiseSchedule
    from asddim_lib.measure.calibrate import calibrate as measure
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.models.prompts import load_prompts

    if quick:
        count, num_steps, estimator, adjoint_probes = 1, 32, "path", 0
    texts, norm = (
        list(load_prompts(prompts, count)["prompt"]),
        "spectral" if estimator == "power" else "frobenius",
    )
    how: dict[str, Any] = {
        "guidance_scale": guidance_scale,
        "num_steps": num_steps,
        "norm": norm,
        "estimator": estimator,
        "adjoint_probes": adjoint_probes,
        "seed": seed,
    }
    pipe = load_pipeline(model, device=device, dtype=_dtype(dtype))
    profile = measure(
        pipe, texts, **how, cache=cache, progress=lambda batches: tqdm(batches, unit="batch")
    )
    profile.save(out)
    best, schedule = (
        "dual-weighted" if adjoint_probes else "equidistributed",
        NoiseSchedule.from_config(pipe.scheduler),
    )
    p, lam, excess = profile.fit(schedule, carried=bool(adjoint_probes))
    found = {
        "profile": str(out),
        "evaluations": profile.evaluations,
        "prompts": count,
        "timesteps": len(profile.timesteps),
    }
    _say(
        found | {"allocation": best, "p": p, "lam": lam, "excess": excess},
        f"{out}: {profile.evaluations} network evaluations, {count} prompts, {len(profile.timesteps)} timesteps\n"
        f"nearest to many steps: allocation {best}; the paper's combined at its best, p {p:.2f} and lambda {lam:.2f}, is expected to err {excess:.2f} times as much",
        as_json,
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    out: Annotated[Path, typer.Argument(help="The picture's file.")] = Path("image.png"),
    model: Model = "bundled",
    steps: Annotated[int, typer.Option(help="Sampling steps, 1 to 1000.")] = 20,
    guidance_scale: Scale = 3.0,
    allocation: Annotated[str, typer.Option(help=ALLOCATION)] = "noise",
    profile: Annotated[Path | None, typer.Option(help="A profile made by calibrate.")] = None,
    override: Override = "",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Draws one picture. Example: asddim generate "a red boot on a white ground" boot.png --steps 20"""
    import torch

    from asddim_lib.core.noise import NoiseSchedule
    from asddim_lib.evidence.profile import SensitivityProfile
    from asddim_lib.files import write_whole
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.models.prompts import check_prompts
    from asddim_lib.schedulers.asddim import ASDDIMScheduler

    pipe = load_pipeline(model, device=device, dtype=_dtype(dtype))
    check_prompts(pipe, [prompt])
    schedule, may_differ = (
        NoiseSchedule.from_config(pipe.scheduler),
        tuple(filter(None, override.split(","))),
    )
    made_for: dict[str, Any] = {
        "model": model,
        "schedule": schedule,
        "guidance_scale": guidance_scale,
        "override": may_differ,
    }
    held = SensitivityProfile.load(profile, **made_for).to_dict() if profile else None
    pipe.scheduler = ASDDIMScheduler.from_config(
        pipe.scheduler.config, allocation=allocation, profile=held
    )
    generator = torch.Generator().manual_seed(seed)
    picture = pipe(
        prompt, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generator
    ).images[0]
    write_whole(out, picture.save)
    grid = pipe.scheduler.timesteps.tolist()
    found = {
        "image": str(out),
        "width": picture.width,
        "height": picture.height,
        "timesteps": grid,
        "seed": seed,
    }
    _say(found, f"{out}: {picture.width}×{picture.height}, timesteps {grid}", as_json)


@app.command()
def export(
    steps: Annotated[int, typer.Option(help="Sampling steps, 1 to 1000.")] = 10,
    model: Annotated[
        str,
        typer.Option(
            help="bundled, sd15, sdxl, a folder or a hub id; only its scheduler config is read."
        ),
    ] = "bundled",
    allocation: Annotated[str, typer.Option(help=ALLOCATION)] = "noise",
    p: Annotated[float, typer.Option(help="Eq 5's exponent.")] = 0.5,
    lam: Annotated[float, typer.Option(help="Eq 9's λ.")] = 1.0,
    order: Annotated[
        int,
        typer.Option(
            help="The order of the solver that an equidistributed or dual-weighted grid is for: 1, 2 or 3."
        ),
    ] = 1,
    profile: Annotated[Path | None, typer.Option(help="A profile made by calibrate.")] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers (JSON), comfyui (for ManualSigmas) or a1111 (for Extra Schedulers' custom list).",
        ),
    ] = "diffusers",
) -> None:
    """Prints a grid for another program. Example: asddim export --steps 10 --format comfyui"""
    from asddim_lib.core.noise import NoiseSchedule, is_flow
    from asddim_lib.errors import check
    from asddim_lib.evidence.profile import SensitivityProfile
    from asddim_lib.grids.methods import sigmas, timesteps
    from asddim_lib.models.load import load_scheduler_config

    check(
        form in ("diffusers", "comfyui", "a1111"), "format", form, "use diffusers, comfyui or a1111"
    )
    config = load_scheduler_config(model)
    held = (
        SensitivityProfile.load(profile, schedule=NoiseSchedule.from_config(config))
        if profile
        else None
    )
    how: dict[str, Any] = {
        "allocation": allocation,
        "p": p,
        "lam": lam,
        "order": order,
        "profile": held,
    }
    levels = [round(level, 6) for level in sigmas(config, steps, **how)]
    if form == "diffusers":
        typer.echo(
            json.dumps(
                {"sigmas": levels}
                if is_flow(config)
                else {"timesteps": timesteps(config, steps, **how), "sigmas": levels}
            )
        )
    elif form == "comfyui":
        typer.echo(", ".join(map(str, levels)))
    else:
        typer.echo(levels)


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of pictures, records and summary.")] = Path(
        "results/ablation"
    ),
    model: Model = "bundled",
    prompts: Prompts = "bundled",
    count: Count = 1000,
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: ddim, ddim-trailing, any allocation, gits, oracle, dual-path, chosen, direct."
        ),
    ] = "ddim,ddim-trailing,noise,gradient,combined",
    solvers: Solvers = "ddim",
    reference_steps: Reference = 0,
    steps: Steps = "20,50,100",
    guidance_scales: Scales = "7.5",
    p: Annotated[float, typer.Option(help="Eq 5's exponent.")] = 0.5,
    lam: Annotated[float, typer.Option(help="Eq 9's λ.")] = 1.0,
    reading: Annotated[str, typer.Option(help="intent, density or literal.")] = "intent",
    batch_size: Batch = 50,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    prompt_seed: Annotated[
        int, typer.Option(help="Which of MS-COCO's images are taken, one caption each.")
    ] = 0,
    clip: Clip = None,
    reference: Annotated[
        str, typer.Option(help="Folder of real pictures, for FID and KID by Inception's features.")
    ] = "",
    dinov2: Annotated[
        str, typer.Option(help="Also by DINOv2's: facebook/dinov2-large, or a folder.")
    ] = "",
    inception: Annotated[
        str,
        typer.Option(
            help="Inception's checkpoint, pt_inception-2015-12-05; torch-fidelity fetches it where no file is given."
        ),
    ] = "",
    prepare: Annotated[
        str,
        typer.Option(
            help="What Inception sees: paper (side 256, centre crop) or plain (torchmetrics' default)."
        ),
    ] = "paper",
    negative_prompt: Annotated[str, typer.Option(help="What no picture is to show.")] = "",
    latents: Annotated[
        str, typer.Option(help="File of a tensor, 1 × c × h × w, from which every picture starts.")
    ] = "",
    tuning_prompts: Tuning = "bundled-tune",
    save_memory: Savers = "",
    shard: Annotated[
        str,
        typer.Option(
            help="Draw only this part, such as 0/4, and judge nothing; later, a run without it judges."
        ),
    ] = "",
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Only measure a few network evaluations, and say what the run will cost."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Runs the ablation and writes records; the same command goes on where it was stopped, and mends what it finds damaged.

    Example: asddim evaluate --count 200 --steps 20 --out results/small

    On many GPUs: torchrun --nproc_per_node 4 -m asddim_lib.cli evaluate --device cuda …, or accelerate launch -m asddim_lib.cli evaluate ….
    On machines that share only a folder: asddim evaluate --shard $SLURM_ARRAY_TASK_ID/4 … on each, then asddim evaluate … on one.
    """
    shape: dict[str, Any] = {
        "methods": methods,
        "solvers": solvers,
        "steps": steps,
        "guidance_scales": guidance_scales,
    }
    shape |= {
        "dtype": dtype,
        "prompt_seed": prompt_seed,
        "clip": clip,
        "shard": shard,
        "plan": plan,
        "negative_prompt": negative_prompt,
        "latents": latents,
    }
    shape |= {"tuning_prompts": tuning_prompts, "save_memory": save_memory, "as_json": as_json}
    shape["against"] = _against(reference, inception, prepare, dinov2)
    summary = _experiment(
        out,
        model,
        prompts,
        count,
        device,
        **shape,
        reference_steps=reference_steps,
        p=p,
        lam=lam,
        reading=reading,
        batch_size=batch_size,
    )
    files = {"records": str(out / "records.parquet"), "summary": str(out / "summary.csv")}
    _say(
        files | {"rows": _rows(summary)},
        summary.to_string(index=False, float_format=lambda v: f"{v:.4g}")
        + f"\n{files['records']}, {files['summary']}",
        as_json,
    )
    _end(summary)


@app.command()
def compare(
    out: Annotated[Path, typer.Option(help="Folder of pictures, records and tables.")] = Path(
        "results/compare"
    ),
    model: Model = "bundled",
    prompts: Prompts = "bundled",
    count: Annotated[
        int, typer.Option(help="How many prompts; more than 192, the judge's features, for a FID.")
    ] = 256,
    grids: Annotated[
        str,
        typer.Option(
            help="Comma-separated allocations, gits, oracle, dual-path, chosen and direct (found by trying)."
        ),
    ] = (
        "leading,trailing,noise,gradient,combined,fitted,equidistributed,dual-weighted,chosen,quadratic,karras,logsnr,beta,arctan,dmn,ays-sd15,gits,oracle,dual-path"
    ),
    solvers: Solvers = "ddim",
    steps: Steps = "5,8,10,20,50",
    guidance_scales: Scales = "1,3,7.5",
    reference_steps: Reference = 1000,
    calibrate_on: Annotated[
        int, typer.Option(help="Tuning prompts that a profile is made on.")
    ] = 16,
    calibrate_steps: Annotated[
        int, typer.Option(help="Timesteps of the path that it is made along.")
    ] = 64,
    tuning_prompts: Tuning = "bundled-tune",
    clip: Clip = None,
    batch_size: Batch = 50,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    save_memory: Savers = "",
    as_json: Json = False,
) -> None:
    """Sets every grid beside the trailing one, paired (by distance; by attributes, without a reference).

    Example: asddim compare --count 200 --steps 10 --guidance-scale 7.5 --reference-steps 200
    """
    from asddim_lib.errors import check
    from asddim_lib.experiment.evaluate import read_records
    from asddim_lib.experiment.score import paired
    from asddim_lib.files import write_whole

    shape: dict[str, Any] = {
        "methods": f"trailing,{grids}",
        "solvers": solvers,
        "steps": steps,
        "guidance_scales": guidance_scales,
    }
    tuned: dict[str, Any] = {
        "calibrate_on": calibrate_on,
        "calibrate_steps": calibrate_steps,
        "adjoint_probes": 2,
        "tuning_seed": 1_000_000,
    }
    tuned |= {
        "tuning_prompts": tuning_prompts,
        "clip": clip,
        "dtype": dtype,
        "save_memory": save_memory,
        "as_json": as_json,
    }
    summary = _experiment(
        out,
        model,
        prompts,
        count,
        device,
        **shape,
        **tuned,
        reference_steps=reference_steps,
        batch_size=batch_size,
    )
    records, key = read_records(out), "distance" if reference_steps else "right_all"
    check(
        key in records,
        "reference_steps",
        0,
        "give some: these prompts have no attributes to compare by",
    )
    against = paired(records, "trailing", key)
    write_whole(out / "paired.csv", lambda part: against.to_csv(part, index=False))
    keys = ["guidance_scale", "steps", "solver", "method"]
    shown = summary[
        [
            *keys,
            *(
                c
                for c in ("distance", "distance_ci", "fid", "fid_ci", "clip", "right")
                if c in summary
            ),
        ]
    ].merge(against, on=keys, how="left")
    _say(
        {"paired": str(out / "paired.csv"), "rows": _rows(shown)},
        shown.to_string(index=False, float_format=lambda v: f"{v:.3g}"),
        as_json,
    )
    _end(summary)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders that evaluate, compare or mlperf wrote.")
    ],
    as_json: Json = False,
) -> None:
    """Prints the paper's tables from what is on record (Markdown), its own figures beside them. Example: asddim report results/guidance-7.5/steps-20"""
    from asddim_lib.experiment.report import markdown, read_run

    runs = [read_run(folder) for folder in folders]
    found = [
        {"folder": str(run.folder), "provenance": run.provenance, "rows": _rows(run.summary)}
        for run in runs
    ]
    _say(found, "\n\n".join(map(markdown, runs)), as_json)


@app.command()
def choose(
    steps: Annotated[int, typer.Option(help="Sampling steps, 1 to 1000.")] = 10,
    solver: Annotated[str, typer.Option(help="ddim, dpm++ (2M), unipc or euler.")] = "ddim",
    profile: Annotated[
        Path | None,
        typer.Option(help="A profile made by calibrate; without one, only fixed grids are tried."),
    ] = None,
    grids: Annotated[
        str, typer.Option(help="Comma-separated allocations that are tried, too.")
    ] = "trailing,leading,karras,logsnr,beta",
    model: Model = "bundled",
    prompts: Annotated[str, typer.Option(help=PROMPTS)] = "bundled-tune",
    count: Count = 16,
    guidance_scale: Scale = 7.5,
    reference_steps: Annotated[
        int, typer.Option(help="DDIM steps of the solution that distances are measured from.")
    ] = 200,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Then move the best one's timesteps while that helps; it takes up to as long as the solution.",
        ),
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Tries grids on a few prompts; prints how far each ends from a fine solution, the best last. Example: asddim choose --steps 8 --solver unipc"""
    from asddim_lib.core.noise import NoiseSchedule
    from asddim_lib.errors import check
    from asddim_lib.evidence.profile import SensitivityProfile
    from asddim_lib.experiment.setting import SOLVERS
    from asddim_lib.grids.methods import timesteps
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.models.prompts import load_prompts
    from asddim_lib.tune.search import direct_search, distances, solution

    check(solver in SOLVERS, "solver", solver, f"use one of {', '.join(SOLVERS)}")
    pipe, (kind, order) = load_pipeline(model, device=device, dtype=_dtype(dtype)), SOLVERS[solver]
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    tried = {name: timesteps(pipe.scheduler, steps, allocation=name) for name in grids.split(",")}
    if profile is not None:
        held = SensitivityProfile.load(
            profile,
            model=model,
            schedule=NoiseSchedule.from_config(pipe.scheduler),
            guidance_scale=guidance_scale,
        )
        best = "dual-weighted" if "carried" in (held.local_error or {}) else "equidistributed"
        for temper in (1.0, 0.75, 0.5, 0.25):
            tried[f"{best}, temper {temper:g}"] = timesteps(
                pipe.scheduler, steps, allocation=best, profile=held, order=order, temper=temper
            )
    texts = list(load_prompts(prompts, count)["prompt"])
    seed = 1_000_000  # no picture that is reported on starts from it
    goal = solution(
        pipe, texts, guidance_scale=guidance_scale, reference_steps=reference_steps, seed=seed
    )
    how: dict[str, Any] = {"guidance_scale": guidance_scale, "seed": seed, "goal": goal}
    found = distances(pipe, texts, tried, **how)
    if search:
        moved = direct_search(
            pipe, texts, [tried[min(found, key=found.__getitem__)]], budget=reference_steps, **how
        )
        found["searched"], tried["searched"] = moved.distance, moved.timesteps
    worst_first = [
        {"grid": name, "distance": found[name], "timesteps": tried[name]}
        for name in sorted(found, key=found.__getitem__, reverse=True)
    ]
    _say(
        worst_first,
        "\n".join(
            f"{one['distance']:8.4f}  {one['grid']:28s} {one['timesteps']}" for one in worst_first
        ),
        as_json,
    )


@app.command()
def clock(
    model: Annotated[
        str, typer.Option(help="sd15 or sdxl: their networks at full size, with random weights.")
    ] = "sd15",
    out: Annotated[Path, typer.Option(help="Where the times (CSV, a row an image) go.")] = Path(
        "clock.csv"
    ),
    steps: Steps = "20,50,100",
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated: ddim (diffusers' own), noise, gradient, combined, online, online-4."
        ),
    ] = "ddim,noise,gradient,combined,online",
    repeats: Annotated[int, typer.Option(help="Images of each method and step count.")] = 5,
    pixels: Annotated[
        int | None,
        typer.Option(help="Pixels a side; by default as many as the model was made for."),
    ] = None,
    guidance_scale: Scale = 7.5,
    dtype: Dtype = "bfloat16",
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Times the methods on the paper's networks (Tables 4-6), no weights needed. Example: asddim clock --model sd15 --steps 20 --device cuda"""
    from tqdm import tqdm

    from asddim_lib.bench import clock as fullsize
    from asddim_lib.files import write_whole

    how: dict[str, Any] = {
        "steps": _numbers("steps", steps, int),
        "methods": tuple(methods.split(",")),
        "repeats": repeats,
    }
    how |= {"pixels": pixels, "guidance_scale": guidance_scale}
    found = fullsize.clock(
        model,
        **how,
        device=device,
        dtype=_dtype(dtype),
        progress=lambda waiting: tqdm(waiting, unit="image"),
    )
    write_whole(out, lambda part: found.to_csv(part, index=False))
    shown = found.groupby(["steps", "method"], sort=False)[["nfe", "seconds", "megabytes"]].agg(
        {"nfe": "first", "seconds": ["median", "min", "max"], "megabytes": "max"}
    )
    _say(
        {"times": str(out), "rows": _rows(found)},
        shown.to_string(float_format=lambda v: f"{v:.3f}"),
        as_json,
    )


#: What MLPerf Inference accepts of SDXL: FID, and CLIP score in percent.
ACCEPTED = {"FID": (23.01, 23.95), "CLIP": (31.69, 31.81)}


@app.command()
def mlperf(
    prompts: Annotated[str, typer.Option(help="The benchmark's captions, captions_source.tsv.")],
    latents: Annotated[
        str, typer.Option(help="The noise that all its pictures start from, latents.pt.")
    ],
    reference: Annotated[
        str,
        typer.Option(help="Folder of the real pictures that its FID is from, MS-COCO's val2014."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of pictures, records and summary.")] = Path(
        "results/mlperf"
    ),
    model: Model = "sdxl",
    count: Count = 5000,
    clip: Annotated[
        str, typer.Option(help="A folder or a hub id.")
    ] = "openai/clip-vit-base-patch32",
    inception: Annotated[
        str,
        typer.Option(
            help="Inception's checkpoint; torch-fidelity fetches it where no file is given."
        ),
    ] = "",
    batch_size: Batch = 8,
    device: Device = "cuda",
    dtype: Dtype = "float16",
    as_json: Json = False,
) -> None:
    """Draws and judges SDXL as MLPerf Inference does, and says whether the figures land where its rules accept them: a known answer for all that
    draws and judges here. Exit code 1 where they do not.

    Example: asddim mlperf --prompts captions_source.tsv --latents latents.pt --reference val2014
    """
    shape: dict[str, Any] = {
        "methods": "ddim",
        "solvers": "euler",
        "steps": "20",
        "guidance_scales": "8",
        "batch_size": batch_size,
        "dtype": dtype,
        "clip": clip,
    }
    shape |= {
        "as_json": as_json,
        "latents": latents,
        "negative_prompt": "normal quality, low quality, worst quality, low res, blurry, nsfw, nude",
    }
    found = _experiment(
        out, model, prompts, count, device, **shape, against=_against(reference, inception, "plain")
    )
    figures = {"FID": float(found["inception_fid"][0]), "CLIP": 100 * float(found["clip"][0])}
    right = {name: low <= figures[name] <= high for name, (low, high) in ACCEPTED.items()}
    lines = [
        f"{name} {figures[name]:.2f}, accepted {low} to {high}: {'right' if right[name] else 'WRONG'}"
        for name, (low, high) in ACCEPTED.items()
    ]
    _say({"figures": figures, "accepted": ACCEPTED, "right": right}, "\n".join(lines), as_json)
    _end(found)
    raise typer.Exit(int(not all(right.values())))


def _experiment(
    out: Path,
    model: str,
    prompts: str,
    count: int,
    device: str,
    *,
    methods: str,
    solvers: str,
    steps: str,
    guidance_scales: str,
    dtype: str = "float32",
    prompt_seed: int = 0,
    clip: str | None = None,
    shard: str = "",
    plan: bool = False,
    against: tuple = (),
    save_memory: str = "",
    as_json: bool = False,
    **rest: Any,
) -> Any:
    """The summary of the experiment that the options ask for; what is written as a list with commas becomes one.

    The process ends here where it has no summary to show: it only plans, or another process judges.
    """
    from asddim_lib.experiment.evaluate import evaluate
    from asddim_lib.experiment.setting import Setting
    from asddim_lib.experiment.shards import joined
    from asddim_lib.models.load import load_pipeline
    from asddim_lib.models.prompts import load_prompts

    setting = Setting(
        methods=tuple(dict.fromkeys(methods.split(","))),
        solvers=tuple(solvers.split(",")),
        steps=_numbers("steps", steps, int),
        guidance_scales=_numbers("guidance_scale", guidance_scales, float),
        **rest,
    )
    table = load_prompts(prompts, count, prompt_seed)
    with joined(shard) as place:
        pipe = load_pipeline(
            model,
            dtype=_dtype(dtype),
            device=place.device(device),
            save_memory=tuple(filter(None, save_memory.split(","))),
        )
        if plan:
            if place.speaks:
                _show_plan(pipe, table, setting, as_json)
            raise typer.Exit
        found = evaluate(
            pipe,
            table,
            setting,
            out,
            lambda waiting: _bar(waiting, place),
            shard=place,
            clip=clip,
            against=against,
        )
    if place.judges:
        return found
    if place.speaks:
        _say(
            _rows(found),
            f"shard {shard} is drawn; when all are, run the same command without --shard to judge",
            as_json,
        )
        _end(found)
    raise typer.Exit


def _against(reference: str, inception: str, prepare: str, dinov2: str = "") -> tuple:
    """The kinds of features that pictures are set against real ones by."""
    from asddim_lib.errors import check
    from asddim_lib.metrics.features.dinov2 import Dinov2
    from asddim_lib.metrics.features.inception import Inception

    if not reference:
        check(
            not inception and not dinov2,
            "reference",
            reference,
            "give a folder of real pictures, too",
        )
        return ()
    return (
        Inception(reference, inception, prepare),
        *([Dinov2(reference, dinov2)] if dinov2 else []),
    )


def _show_plan(pipe: Any, table: Any, setting: Any, as_json: bool) -> None:
    from asddim_lib.experiment.cost import calibration, measure, plan
    from asddim_lib.models.load import device_of

    cost = measure(pipe, table, setting)
    found, profiles = plan(setting, len(table), cost), calibration(setting)
    pictures, evaluations, hours, size = (
        found[name].sum() for name in ("pictures", "evaluations", "hours", "gigabytes")
    )
    memory = "" if cost.memory is None else f", {cost.memory:.0f} MB of memory at its peak"
    lines = [
        found.to_string(index=False, float_format=lambda v: f"{v:.3g}"),
        f"{pictures} pictures, {evaluations} network evaluations, {hours:.3g} hours on one such device, {size:.3g} GB",
        f"besides: profiles, {profiles} evaluations, {profiles * cost.seconds / 3600:.3g} hours; judging; grids that are found by trying",
        f"measured on {device_of(pipe)}, {min(setting.batch_size, len(table))} pictures at once: {cost.seconds:.3g} s an evaluation, {cost.rest:.3g} s a picture "
        f"for text, decoding and copying{memory}",
    ]
    _say(
        {
            "rows": _rows(found),
            "profile_evaluations": profiles,
            "device": str(device_of(pipe)),
            **cost._asdict(),
        },
        "\n".join(lines),
        as_json,
    )


def _bar(waiting: list, shard: Any) -> Iterator:
    """Yields batches under a bar that goes by network evaluations, so that the time left holds for any mixture of step counts."""
    import time

    from tqdm import tqdm

    total, done, begun = sum(batch.pictures for batch in waiting), 0, time.perf_counter()
    look = "{desc}{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"
    name = f"shard {shard.number}/{shard.count} " if shard.count > 1 else ""
    with tqdm(
        total=sum(batch.evaluations for batch in waiting),
        desc=name,
        bar_format=look,
        disable=not shard.speaks,
    ) as bar:
        for batch in waiting:
            yield batch
            done += batch.pictures
            bar.set_postfix_str(
                f"{done}/{total} images, {done / (time.perf_counter() - begun):.3g} images/s",
                refresh=False,
            )
            bar.update(batch.evaluations)


def _say(found: Any, text: str, as_json: bool) -> None:
    """What a command has to tell: JSON for machines, or a text for people."""
    typer.echo(json.dumps(found) if as_json else text)


def _rows(table: Any) -> list[dict[str, Any]]:
    """A table as JSON holds it; what is no number becomes null."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def _end(found: Any) -> None:
    """Says in one line, and by exit code 1, how many pictures failed."""
    if failed := int(found["failed"].sum()) + found.attrs.get("failed_references", 0):
        typer.echo(
            f"asddim: {failed} pictures failed: the network gave numbers that are not finite; the figures leave them out, the next run draws them again",
            err=True,
        )
        raise typer.Exit(1)


def _dtype(name: str) -> Any:
    import torch

    from asddim_lib.errors import check

    check(name in KINDS, "dtype", name, f"use one of {', '.join(KINDS)}")
    return getattr(torch, name)


def _numbers(name: str, text: str, kind: type) -> tuple:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name} is {text!r}; give numbers separated by commas") from error


def main() -> None:
    """Entry point: wrong use and a failing disk end in one line and exit code 2."""
    notes = logging.StreamHandler()
    notes.setFormatter(logging.Formatter("asddim: %(message)s"))
    logging.getLogger("asddim_lib").addHandler(notes)
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"asddim: {error}", file=sys.stderr)
        sys.exit(2)
