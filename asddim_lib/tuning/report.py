"""What a tuning shows: its verdict in words, a page in Markdown, and pictures side by side."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import diffusers
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from asddim_lib.configs import is_flow
from asddim_lib.models.calls import parameters
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import drawing
from asddim_lib.tuning.draw import Sampler, Trials
from asddim_lib.tuning.goals import Seen
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, Comparison

if TYPE_CHECKING:
    from asddim_lib.models.load import Pipeline
    from asddim_lib.tuning.result import Tuned, TunedFor

#: diffusers' class that draws a grid of ours by the same method, and the call's argument for it.
STOCK = {
    "ASDDIMScheduler": ("EulerDiscreteScheduler", "timesteps"),
    "DPMSolverGridScheduler": ("DPMSolverMultistepScheduler", "timesteps"),
    "ASFlowScheduler": ("FlowMatchEulerDiscreteScheduler", "sigmas"),
}
#: A picture on the sheet is at least so wide, in pixels.
WIDE = 144
LABEL = 18
#: More prompts than these are no advice.
MANY = 5000


def examples(trials: Trials, samplers: Mapping[str, Sampler], count: int) -> bytes:
    """A sheet (PNG) of the first prompts: a column for each sampler, and one for the reference.

    Empty for none.
    """
    if not count:
        return b""
    setup, run = trials.setup, trials.run.part(slice(0, count))
    setup.work.doing = "drawing examples"

    def pictures(part: Run, steps: int) -> Seen:
        return {"images": part.pictures(num_inference_steps=steps).images}

    every = {**samplers, f"{setup.reference.steps} steps": setup.reference}
    drawn = {n: setup.drawn(run, one, pictures, "pictures") for n, one in every.items()}
    return sheet({name: seen["images"] for name, seen in drawn.items()})


def sheet(columns: dict[str, Tensor]) -> bytes:
    """A PNG of pictures side by side: a column for each name, a row for each prompt.

    A column has n × 3 × h × w, uint8; of a video, n × frames × 3 × h × w, the middle frame is
    shown. Small pictures are enlarged by a whole number.
    """
    still = {n: v if v.ndim == 4 else v[:, v.shape[1] // 2] for n, v in columns.items()}
    count, _, high, wide = next(iter(still.values())).shape
    times = -(-WIDE // wide)
    page = Image.new("RGB", (times * wide * len(still), LABEL + times * high * count), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)
    for place, (name, pictures) in enumerate(still.items()):
        left = place * times * wide
        pen.text((left + 3, 2), name, fill="black", font=font)
        for row, picture in enumerate(pictures):
            shown = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
            large = shown.resize((times * wide, times * high), Image.Resampling.NEAREST)
            page.paste(large, (left, LABEL + row * times * high))
    content = io.BytesIO()
    page.save(content, "PNG")
    return content.getvalue()


def summary(tuned: Tuned) -> str:
    """What is returned, and how sure that is, in a few sentences."""
    setting, decision = tuned.setting, tuned.decision
    on, current = _prompts(tuned), setting.current
    if tuned.changed:
        pairs = decision.of(decision.returned)
        candidate = decision.returned == CANDIDATE
        name = f"The candidate ({tuned.name})" if candidate else tuned.name
        others = f" and over {_several(len(pairs) - 1, 'other baseline')}" if pairs[1:] else ""
        gain = next(one for one in pairs if one.second == CURRENT)
        return (
            f"{name} replaces {current}: on {on} it wins over {current}{others}. "
            f"Its loss changes by {_change(gain, setting.relative)} against {current}."
        )
    stays = f"Nothing changes: the pipeline keeps {current}. On {on}"
    if decision.objections:
        seen = decision.objections[0]
        over = _named(seen.second, current)
        second = f"by the second encoder, {setting.check_encoder}, it loses to {over}"
        return f"{stays} {seen.first} wins, but {second}."
    text = f"{stays} no grid is proven better than {current} and every other grid."
    if pairs := decision.of(CANDIDATE):
        ties = [_named(one.second, current) for one in pairs if one.verdict != "win"]
        text = f"{stays} the candidate is not proven better than {' or '.join(ties)}."
    return text if tuned.advice is None else f"{text} {_advice(tuned.advice, tuned.minutes)}"


def _advice(count: int, minutes: float | None) -> str:
    """How many prompts would decide, and in what time."""
    if count > MANY:
        return "The difference is so small that thousands of prompts would not decide."
    time = "" if minutes is None else f", about {_several(max(1, round(minutes)), 'minute')}"
    return f"{count} prompts would decide (--count {count}{time})."


def markdown(tuned: Tuned, folder: str = "tuned") -> str:
    """The page: the verdict, its use, pictures, every comparison, and what it is for."""
    setting, decision = tuned.setting, tuned.decision
    current, steps = setting.current, _several(setting.steps, "step")
    verdict = f"{tuned.name} replaces {current}" if tuned.changed else f"{current} stays"
    page = [f"# {setting.model or setting.pipeline}, {steps}: {verdict}", summary(tuned)]
    page += ["## Use it", *_use(tuned, folder)]
    if tuned.sheet:
        page += ["## Pictures", "![Pictures side by side, from the same noise.](sheet.png)"]
        page += ["\n".join(f"{n}. {prompt}" for n, prompt in enumerate(tuned.shown, 1))]
    mean = "geometric mean of the" if setting.relative else "mean"
    seen = f" in the embedding of encoder {setting.encoder}" if setting.encoder else ""
    page += [
        "## Every comparison",
        f"On {_prompts(tuned)} that served no choice, from the same noise. The loss is the {mean} "
        f"distance{seen} from the picture of {setting.reference_steps} steps of DPM-Solver++ (2M); "
        "lower is better. A change has a 95 % t interval over prompts: below 0 it is a win, above "
        f"0 a loss, else a tie. Only what wins over {current} and every baseline replaces it.",
        _table(decision.comparisons, setting.relative, current),
    ]
    if decision.objections:
        page += [f"## Losses that encoder {setting.check_encoder} sees"]
        page += [_table(decision.objections, True, current)]
    grids = tuned.grids | ({} if tuned.changed or not tuned.grid else {current: tuned.grid})
    page += ["## Timesteps", _list({n: ", ".join(map(str, grid)) for n, grid in grids.items()})]
    if tuned.skipped:
        page += ["## Skipped", _list(tuned.skipped)]
    scale = "" if setting.guidance_scale is None else f" at guidance {setting.guidance_scale:g}"
    options = "".join(f", {name} {value}" for name, value in setting.options.items())
    searched = f"{_several(tuned.chosen_on, 'other picture')} chose among grids. "
    page += [
        "## What it cost, and what it is for",
        f"As much as {_digits(tuned.cost_in_pictures)} pictures of {current} in {steps}. "
        f"{searched if tuned.chosen_on else ''}It is for {setting.pipeline}{scale}{options}, and "
        f"grids drawn by {setting.solver}. Another model, solver, number of steps, guidance, size "
        "or shift needs a grid of its own.",
    ]
    return "\n\n".join(page) + "\n"


def _table(comparisons: Sequence[Comparison], relative: bool, current: str) -> str:
    """Each comparison, with the losses of both samplers."""
    lines = ["| sampler | loss | against | its loss | change | verdict |", "|" + " --- |" * 6]
    for one in sorted(comparisons, key=lambda one: (one.second != CURRENT, one.difference)):
        first, second = (
            _digits(math.exp(loss) if relative else loss)
            for loss in (one.loss + one.difference, one.loss)
        )
        pair = f"| {one.first} | {first} | {_named(one.second, current)} | {second} "
        lines.append(f"{pair}| {_change(one, relative)} | {one.verdict} |")
    return "\n".join(lines)


def _list(entries: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in entries.items())


def _use(tuned: Tuned, folder: str) -> list[str]:
    """How the result is used, with this library, without it, and in other programs."""
    call = _call(tuned.setting, f"num_inference_steps={tuned.setting.steps}")
    if not tuned.changed:
        return [f"Go on as before: `{call}`."]
    name = type(tuned.scheduler).__name__
    load = f'{name}.from_pretrained("{folder}", subfolder="scheduler")'
    parts = [
        _code(f"from asddim_lib import {name}", load, call),
        f"For ComfyUI or AUTOMATIC1111: `asddim export --model {folder} --format comfyui`, or "
        "`--format a1111`.",
    ]
    plain = ["With diffusers alone, in the pipeline as it was:", tuned.plain]
    return [*parts, *plain] if tuned.plain else parts


def without_us(pipe: Pipeline, scheduler: Any, grid: Sequence[int], setting: TunedFor) -> str:
    """Code that draws a grid of a scheduler of ours with diffusers alone.

    Empty where diffusers has no class that takes the grid, or the pipeline no argument for it. DDIM
    is drawn by Euler, the same method in other variables.
    """
    name, argument = STOCK.get(type(scheduler).__name__, ("", ""))
    config = scheduler.config
    clips = name.startswith("Euler") and (config["clip_sample"] or config["thresholding"])
    flow_dpm = is_flow(config) and argument == "timesteps"
    if argument not in parameters(pipe) or clips or flow_dpm:
        return ""
    kind = getattr(diffusers, name)
    plain = kind.from_config(pipe.scheduler.config).config
    wanted = dict(drawing(kind, pipe.scheduler).config)
    if name.startswith("Euler"):  # its first sample then has DDIM's scale
        wanted["timestep_spacing"] = "leading"
    settings = [key for key in inspect.signature(kind).parameters if wanted[key] != plain[key]]
    changes = "".join(f", {key}={wanted[key]!r}" for key in settings)
    size = config["num_train_timesteps"]
    values = grid if argument == "timesteps" else [(t + 1) / size for t in grid]
    load = f"{name}.from_config(pipe.scheduler.config{changes})"
    call = _call(setting, f"{argument}={values}")
    return _code(f"from diffusers import {name}", load, call)


def _call(setting: TunedFor, steps: str) -> str:
    scale = setting.guidance_scale
    return f"pipe(prompt, {steps}{'' if scale is None else f', guidance_scale={scale:g}'})"


def _code(imports: str, scheduler: str, call: str) -> str:
    return f"```python\n{imports}\n\npipe.scheduler = {scheduler}\n{call}\n```"


def _prompts(tuned: Tuned) -> str:
    """How many prompts the verdict has, and pictures where these are more."""
    several = _several(tuned.prompts, "prompt")
    more = tuned.pictures > tuned.prompts
    return f"{tuned.pictures} pictures of {several}" if more else several


def _change(one: Comparison, relative: bool) -> str:
    """A difference and its interval: of logarithms as a percentage of the second's loss."""
    ends = (one.difference, one.difference - one.half, one.difference + one.half)
    if relative:
        ends = tuple(100 * math.expm1(min(end, 700.0)) for end in ends)  # type: ignore[assignment]
    middle, low, high = (f"{end:+.1f}" if relative else f"{end:+.3g}" for end in ends)
    return f"{middle}{' %' if relative else ''} ({low} to {high})"


def _digits(value: float) -> str:
    """Three significant digits; whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _named(name: str, current: str) -> str:
    return f"the current {current}" if name == CURRENT else name


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
