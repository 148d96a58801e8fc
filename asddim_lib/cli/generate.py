"""`asddim generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_file, guided, say
from asddim_lib.errors import check

Prompt = Annotated[str, typer.Argument(help="What the picture shows.")]
Out = Annotated[str, typer.Argument(help="File for the picture; .gif or .webp for a video.")]
Steps = Annotated[
    int | None,
    typer.Option(help="Number of sampling steps.", show_default="20, or those of a tuned folder"),
]
Override = Annotated[
    str,
    typer.Option(
        help="Comma-separated: which of model, schedule and guidance_scale may be other than the "
        "profile's."
    ),
]


def generate(
    prompt: Prompt,
    out: Out = "image.png",
    model: opt.Model = "bundled",
    steps: Steps = None,
    guidance_scale: opt.Scale = None,
    allocation: opt.Allocation = "",
    profile: opt.Profile = "",
    override: Override = "",
    seed: opt.Seed = 0,
    width: opt.Pixels = None,
    height: opt.Pixels = None,
    call: opt.Call = "",
    truncate: opt.Truncate = False,
    variant: opt.Variant = "",
    pipeline_class: opt.PipelineClass = "",
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    save_memory: opt.Savers = "",
    as_json: opt.Json = False,
) -> None:
    """Draws one picture with the model's scheduler, or by DDIM (Euler) on another grid.

    A folder that `asddim tune` wrote gives the scheduler, the steps and the guidance.

    Example: asddim generate "a red boot on a white ground" boot.png --steps 20
    """
    from asddim_lib.evidence.profile import Profile
    from asddim_lib.models.load import check_seeds, tuned_setting

    file, options, tuned = _picture(out), opt.called(call, width, height), tuned_setting(model)
    steps = steps if steps is not None else tuned.get("steps", 20)
    guidance_scale = tuned.get("guidance_scale") if guidance_scale is None else guidance_scale
    opt.check_steps(steps)
    opt.check_scale(guidance_scale)
    if allocation:
        _check_allocation(allocation, profile)
    check(
        not override or bool(profile), "override", override, "give a profile too, or leave it out"
    )
    may_differ = opt.words("override", override) if override else ()
    if profile:
        Profile.load(profile, override=may_differ)  # a damaged file is refused before any work
    check_seeds([seed])
    check(bool(prompt.strip()), "prompt", repr(prompt), "give a text with at least one word")
    pipe = opt.load(model, device, dtype, save_memory, variant, pipeline_class)
    pipe.set_progress_bar_config(disable=False, leave=False)
    from asddim_lib.pipeline.run import Run

    if profile and not allocation:
        _check_allocation(pipe.scheduler.config.get("allocation", "uniform"), profile)
    scale = opt.scale_of(pipe, guidance_scale)
    run = Run(pipe, [prompt], [seed], scale, options=options, truncate=truncate)
    if allocation or profile:
        measured = profile and Profile.load(
            profile,
            model=pipe.name_or_path,
            schedule=run.schedule,
            guidance_scale=scale,
            override=may_differ,
        )
        pipe.scheduler = _scheduler(pipe.scheduler, allocation, measured or None)
    drawn = run.pictures(num_inference_steps=steps)
    _save(drawn.images[0], file)
    grid = [round(t, 2) for t in pipe.scheduler.timesteps.tolist()]
    high, wide = drawn.images.shape[-2:]
    value = {
        "image": str(file),
        "width": wide,
        "height": high,
        "guidance_scale": scale,
        "timesteps": grid,
        "seed": seed,
    }
    say(value, f"{file}: {wide}×{high}{guided(scale)}, timesteps {grid}", as_json)


def _picture(out: str) -> Path:
    """The file. Refuses, before anything is drawn, one that no picture can be written to."""
    from PIL import Image

    file = check_file(out)
    form = Image.registered_extensions().get(file.suffix.lower())
    check(form in Image.SAVE, "out", out, "give a name that ends as a picture's, such as .png")
    return file


def _save(picture: Any, out: Path) -> None:
    """Writes a picture (3 × h × w), or a video's frames (frames × 3 × h × w)."""
    from PIL import Image

    from asddim_lib.cache import write_whole

    frames = picture if picture.ndim == 4 else picture[None]
    moving = out.suffix.lower() in (".gif", ".webp", ".png")
    check(len(frames) == 1 or moving, "out", str(out), "a video's file ends in .gif or .webp")
    first, *rest = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    if rest:
        write_whole(out, lambda part: first.save(part, save_all=True, append_images=rest))
    else:
        write_whole(out, first.save)


def _check_allocation(allocation: str, profile: str) -> None:
    """Raises WrongUse for an allocation or a profile that the scheduler would refuse or ignore."""
    from asddim_lib.grids.table import ALLOCATIONS, CALIBRATED

    check(
        allocation in ALLOCATIONS, "allocation", allocation, f"use one of {', '.join(ALLOCATIONS)}"
    )
    needed = allocation in CALIBRATED
    remedy = f"allocation {allocation} does not use it: use one of {', '.join(CALIBRATED)}"
    check(needed or not profile, "profile", profile, remedy)
    remedy = f"allocation {allocation} needs one: run asddim calibrate, and give its file"
    check(not needed or bool(profile), "profile", "not given", remedy)


def _scheduler(scheduler: Any, allocation: str, profile: Any) -> Any:
    """Ours for this scheduler's model, with this allocation or else the config's."""
    from asddim_lib.schedulers.solvers import own_scheduler

    kind, values = own_scheduler(scheduler), profile.to_dict() if profile else None
    if not allocation:
        return kind.from_config(scheduler.config, profile=values)
    return kind.from_config(scheduler.config, profile=values, allocation=allocation, grid=None)
