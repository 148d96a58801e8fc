"""`asddim generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from asddim_lib.cli.options import (
    Allocation,
    Call,
    Device,
    Dtype,
    Height,
    Json,
    Model,
    PipelineClass,
    Profile,
    Savers,
    Scale,
    Seed,
    Truncate,
    Variant,
    Width,
    called,
    check_scale,
    check_steps,
    load,
    scale_of,
    words,
)
from asddim_lib.cli.output import check_file, say
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
        help="What may differ from what the profile was made for, comma-separated: "
        "model, schedule, guidance_scale."
    ),
]


def generate(
    prompt: Prompt,
    out: Out = "image.png",
    model: Model = "bundled",
    steps: Steps = None,
    guidance_scale: Scale = None,
    allocation: Allocation = "",
    profile: Profile = "",
    override: Override = "",
    seed: Seed = 0,
    width: Width = None,
    height: Height = None,
    call: Call = "",
    truncate: Truncate = False,
    variant: Variant = "",
    pipeline_class: PipelineClass = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    save_memory: Savers = "",
    as_json: Json = False,
) -> None:
    """Draws one picture as the model does, or by DDIM (Euler) on the grid of an allocation.

    Of a folder that `asddim tune` wrote it takes the grid, the solver, the
    steps and the guidance.

    Example: asddim generate "a red boot on a white ground" boot.png --steps 20
    """
    from asddim_lib.models.load import tuned_setting

    file, options, tuned = _picture(out), called(call, width, height), tuned_setting(model)
    steps = steps if steps is not None else tuned.get("steps", 20)
    guidance_scale = tuned.get("guidance_scale") if guidance_scale is None else guidance_scale
    check_steps(steps)
    check_scale(guidance_scale)
    if allocation:
        _check_allocation(allocation, profile)
    remedy = "there is no profile: leave it out, or give one"
    check(not override or bool(profile), "override", override, remedy)
    may_differ = words("override", override) if override else ()
    pipe = load(model, device, dtype, save_memory, variant, pipeline_class)
    pipe.set_progress_bar_config(disable=False, leave=False)
    from asddim_lib.pipeline.run import Run
    from asddim_lib.schedulers.solvers import own_scheduler

    if profile and not allocation:
        _check_allocation(pipe.scheduler.config.get("allocation", "uniform"), profile)
    scale = scale_of(pipe, guidance_scale)
    run = Run(pipe, [prompt], [seed], scale, options=options, truncate=truncate)
    if allocation or profile:
        kind, config = own_scheduler(pipe.scheduler), pipe.scheduler.config
        values = _values(profile, may_differ, run.schedule, pipe.name_or_path, scale)
        chosen = {"allocation": allocation, "grid": None} if allocation else {}
        pipe.scheduler = kind.from_config(config, profile=values, **chosen)
    drawn = run.pictures(num_inference_steps=steps)
    _save(drawn.images[0], file)
    grid = [round(t, 2) for t in pipe.scheduler.timesteps.tolist()]
    high, wide = drawn.images.shape[-2:]
    value = {"image": str(file), "width": wide, "height": high, "guidance_scale": scale}
    text = f"{file}: {wide}×{high}, guidance {scale:g}, timesteps {grid}"
    say(value | {"timesteps": grid, "seed": seed}, text, as_json)


def _picture(out: str) -> Path:
    """The file. Refuses, before anything is drawn, one that no picture can be written to."""
    from PIL import Image

    file = check_file(out)
    form = Image.registered_extensions().get(file.suffix.lower())
    check(form in Image.SAVE, "out", out, "give a name that ends as a picture's, such as .png")
    return file


def _save(picture: Any, out: Path) -> None:
    """Writes a picture (3 × h × w), or a video's frames, which need a format that moves."""
    from PIL import Image

    from asddim_lib.cache import write_whole

    frames = picture if picture.ndim == 4 else picture[None]
    moving = out.suffix in (".gif", ".webp", ".png")
    check(len(frames) == 1 or moving, "out", str(out), "a video's file ends in .gif or .webp")
    first, *rest = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    more: dict[str, Any] = {"save_all": True, "append_images": rest} if rest else {}
    write_whole(out, lambda part: first.save(part, **more))


def _check_allocation(allocation: str, profile: str) -> None:
    """Refuses what the scheduler would refuse, or not use."""
    from asddim_lib.grids.table import ALLOCATIONS, CALIBRATED

    remedy = "use one of " + ", ".join(ALLOCATIONS)
    check(allocation in ALLOCATIONS, "allocation", allocation, remedy)
    needed, names = allocation in CALIBRATED, ", ".join(CALIBRATED)
    remedy = f"allocation {allocation} makes no use of it: use one of {names}"
    check(needed or not profile, "profile", profile, remedy)
    remedy = f"allocation {allocation} needs one: run asddim calibrate, and give its file"
    check(not needed or bool(profile), "profile", "not given", remedy)


def _values(
    profile: str, override: tuple[str, ...], schedule: Any, model: str, scale: float | None
) -> dict[str, Any] | None:
    """The profile as a scheduler's config has it, if it was made for this model and scale."""
    from asddim_lib.evidence.profile import Profile

    if not profile:
        return None
    read = Profile.load(
        profile, model=model, schedule=schedule, guidance_scale=scale, override=override
    )
    return read.to_dict()
