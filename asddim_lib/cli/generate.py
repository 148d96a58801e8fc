"""`asddim generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from asddim_lib.cli import options as opt
from asddim_lib.cli.output import check_file, say
from asddim_lib.errors import check, check_whole


@opt.command
def generate(
    model: opt.ModelOptions,
    pictures: opt.CallOptions,
    prompt: str = typer.Argument(help="What the picture shows."),
    out: str = typer.Argument("image.png", help="File for the picture; .gif or .webp for a video."),
    steps: int | None = typer.Option(
        None, help="Number of sampling steps.", show_default="20, or those of a tuned folder"
    ),
    allocation: str = opt.ALLOCATION,
    guidance_plan: str = typer.Option(
        "",
        help="The guidance scale of each step: capped, capped-measured (with --profile), "
        "interval-sdxl or another plan's name, or a folder with one.",
        show_default="that of the model's folder, if it has one",
    ),
    profile: str = opt.PROFILE,
    override: str = typer.Option(
        "",
        help="Comma-separated: which of model, schedule and guidance_scale may be other than the "
        "profile's.",
    ),
    seed: int = opt.SEED,
    as_json: bool = opt.JSON,
) -> None:
    """Draws one picture with the model's scheduler, or by DDIM (Euler) on another grid.

    A folder that `asddim tune` wrote gives the scheduler, the steps and the guidance.

    Example: asddim generate "a red boot on a white ground" boot.png --steps 20
    """
    from asddim_lib.evidence.profile import Profile
    from asddim_lib.guidance.plan import saved_or_named
    from asddim_lib.models.load import check_seeds, tuned_setting

    file, options, tuned = _picture(out), pictures.options(), tuned_setting(model.model)
    steps = tuned.get("steps", 20) if steps is None else steps
    scale = pictures.guidance_scale
    scale = tuned.get("guidance_scale") if scale is None else scale
    check_whole("steps", steps, 1, 1000)
    remedy = "give a profile too, or leave it out"
    check(not override or bool(profile), "override", override, remedy)
    may_differ = opt.words("override", override) if override else ()
    planned = "measured" in guidance_plan
    if allocation:
        _check_allocation(allocation, profile, planned)
    # A damaged file is refused before any work.
    given = Profile.load(profile, override=may_differ) if profile else None
    plan = saved_or_named(guidance_plan, model.model, given)
    check_seeds([seed])
    check(bool(prompt.strip()), "prompt", repr(prompt), "give a text with at least one word")
    pipe = model.load()
    pipe.set_progress_bar_config(disable=False, leave=False)
    from asddim_lib.pipeline.run import Run
    from asddim_lib.schedulers.solvers import own_scheduler

    run = Run(
        pipe,
        [prompt],
        [seed],
        scale,
        options=options,
        truncate=pictures.truncate,
        guidance_plan=plan,
    )
    if profile and not allocation and not planned:
        _check_allocation(pipe.scheduler.config.get("allocation", "uniform"), profile)
    if profile:
        Profile.load(
            profile,
            model=pipe.name_or_path,
            schedule=run.schedule,
            guidance_scale=run.guidance_scale,
            override=may_differ,
        )
    if allocation or (profile and not planned):
        used = given is not None and (not allocation or _needs_profile(allocation))
        changes: dict[str, Any] = {"profile": given.to_dict() if given and used else None}
        changes |= {"allocation": allocation, "grid": None} if allocation else {}
        own = own_scheduler(pipe.scheduler)
        pipe.scheduler = own.from_config(pipe.scheduler.config, **changes)
    drawn = run.pictures(num_inference_steps=steps)
    _save(drawn.images[0], file)
    grid = [round(t, 2) for t in pipe.scheduler.timesteps.tolist()]
    high, wide = drawn.images.shape[-2:]
    guided = "" if run.guidance_scale is None else f", guidance {run.guidance_scale:g}"
    value = {
        "image": str(file),
        "width": wide,
        "height": high,
        "guidance_scale": run.guidance_scale,
        "timesteps": grid,
        "seed": seed,
    }
    say(value, f"{file}: {wide}×{high}{guided}, timesteps {grid}", as_json)


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


def _needs_profile(allocation: str) -> bool:
    """Whether a scheduler's allocation needs one. Raises WrongUse for another name."""
    from asddim_lib.grids.table import method_of

    return method_of(allocation, ("nothing", "profile")).needs == "profile"


def _check_allocation(allocation: str, profile: str, planned: bool = False) -> None:
    """Raises WrongUse for an allocation or a profile that the scheduler would refuse or ignore.

    A profile that the guidance plan uses (`planned`) may be of no use to the allocation.
    """
    from asddim_lib.grids.table import METHODS

    if _needs_profile(allocation):
        remedy = f"allocation {allocation} needs one: run asddim calibrate, and give its file"
        check(bool(profile), "profile", "not given", remedy)
    else:
        others = ", ".join(m.name for m in METHODS.values() if m.needs == "profile")
        remedy = f"allocation {allocation} does not use it: use one of {others}"
        check(not profile or planned, "profile", profile, remedy)
