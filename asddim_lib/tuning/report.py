"""What a tuning shows: its verdict in words, a page in Markdown, and pictures side by side."""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from asddim_lib.tuning.draw import Sampler, Trials
from asddim_lib.tuning.verify import CANDIDATE, CURRENT, Comparison

if TYPE_CHECKING:
    from asddim_lib.tuning.result import Tuned

#: A picture on the sheet is at least so wide, in pixels.
WIDE = 144
LABEL = 18
#: More prompts than these are no advice.
MANY = 5000


def examples(trials: Trials, samplers: Mapping[str, Sampler], count: int) -> bytes:
    """A sheet (PNG) of the first prompts: a column for each sampler, and one for the reference."""
    if not count:
        return b""
    setup, run = trials.setup, trials.run.part(slice(0, count))
    setup.work.doing = "drawing examples"
    fine = setup.reference
    runs = {
        name: (replace(run, scheduler=one.scheduler), one)
        for name, one in {**samplers, f"{fine.steps} steps": fine}.items()
    }

    def drawn() -> dict[str, Tensor]:
        pictures = {
            name: of.pictures(num_inference_steps=one.steps).images
            for name, (of, one) in runs.items()
        }
        return {"sheet": torch.frombuffer(bytearray(sheet(pictures)), dtype=torch.uint8)}

    cost = sum(one.calls for _, one in runs.values()) * run.evaluations_per_step
    depends = [[name, of.inputs] for name, (of, _) in runs.items()]
    return setup.work.do(cost, drawn, depends, "sheet")["sheet"].numpy().tobytes()


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
        candidate = decision.returned == CANDIDATE
        name = f"The candidate ({tuned.name})" if candidate else tuned.name
        others = len(decision.of(decision.returned)) - 1
        over = f"{current} and over {_several(others, 'other baseline')}" if others else current
        gain = _change(decision.between(decision.returned, CURRENT), setting.relative)
        won = f"{name} replaces {current}: on {on} it wins over {over}."
        return f"{won} Its loss changes by {gain} against {current}."
    stays = f"Nothing changes: the pipeline keeps {current}."
    if decision.objections:
        seen = decision.objections[0]
        text = f"On {on} {seen.first} wins, but by the second encoder, {setting.check_encoder}, "
        return f"{stays} {text}it loses to {_named(seen.second, current)}."
    pairs = decision.of(CANDIDATE)
    if not pairs:
        return f"{stays} On {on} no grid is proven better than {current} and every other grid."
    ties = _listed([_named(one.second, current) for one in pairs if one.verdict != "win"])
    text = f"{stays} On {on} the candidate is not proven better than {ties}."
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
        "## Every sampler",
        f"On {_prompts(tuned)} that served no choice, from the same noise. The loss is the {mean} "
        f"distance{seen} from the picture of {setting.reference_steps} steps of DPM-Solver++ (2M); "
        "lower is better. A change has a 95 % t interval over prompts: below 0 it is a win, above "
        f"0 a loss, else a tie. Only what wins over {current} and every baseline replaces it.",
        _samplers(tuned),
    ]
    others = [one for one in decision.comparisons if one.second != CURRENT]
    page += ["## Against the baselines", _pairs(others, setting.relative)] if others else []
    if decision.objections:
        page += [f"## Losses that encoder {setting.check_encoder} sees"]
        page += [_pairs(decision.objections, True)]
    if tuned.skipped:
        lines = [f"- {name}: {reason}" for name, reason in tuned.skipped.items()]
        page += ["## Skipped", "\n".join(lines)]
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


def _samplers(tuned: Tuned) -> str:
    """Each sampler's loss, its change against the current one, and its timesteps."""
    relative, current = tuned.setting.relative, tuned.setting.current
    grids = {**tuned.grids, **({CANDIDATE: tuned.candidate} if tuned.candidate else {})}
    lines = [f"| sampler | loss | against {current} | verdict | timesteps |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    pairs = [one for one in tuned.decision.comparisons if one.second == CURRENT]
    if pairs:
        grid = "" if tuned.changed else ", ".join(map(str, tuned.grid or []))
        lines.append(f"| {current}, current | {_loss(pairs[0].loss, relative)} | | | {grid} |")
    for one in sorted(pairs, key=lambda one: one.difference):
        loss = _loss(one.loss + one.difference, relative)
        row = f"| {one.first} | {loss} | {_change(one, relative)} | {one.verdict} |"
        lines.append(f"{row} {', '.join(map(str, grids[one.first]))} |")
    return "\n".join(lines)


def _pairs(comparisons: Sequence[Comparison], relative: bool) -> str:
    lines = ["| sampler | against | change of the loss | verdict |", "| --- | --- | --- | --- |"]
    for one in comparisons:
        pair = f"| {one.first} | {_named(one.second, 'sampler')} "
        lines.append(f"{pair}| {_change(one, relative)} | {one.verdict} |")
    return "\n".join(lines)


def _use(tuned: Tuned, folder: str) -> list[str]:
    """How the result is used, with this library, without it, and in other programs."""
    setting, guidance = tuned.setting, ""
    if setting.guidance_scale is not None:
        guidance = f", guidance_scale={setting.guidance_scale:g}"
    call = f"pipe(prompt, num_inference_steps={setting.steps}{guidance})"
    if not tuned.changed:
        return [f"Go on as before: `{call}`."]
    name = tuned.scheduler_config["_class_name"]
    lines = [
        f"from asddim_lib import {name}",
        "",
        f'pipe.scheduler = {name}.from_pretrained("{folder}", subfolder="scheduler")',
        call,
    ]
    export = f"For ComfyUI or AUTOMATIC1111: `asddim export --model {folder} --format comfyui`, or "
    parts = [_code(lines), f"{export}`--format a1111`."]
    stock = tuned.without_us()
    if stock is None:
        return parts
    scheduler, how = stock
    plain, ((argument, grid),) = type(scheduler), how.items()
    loaded = plain.from_config(tuned.scheduler_config).config
    changes = [
        f", {key}={value!r}"
        for key, value in scheduler.config.items()
        if key in inspect.signature(plain).parameters and value != loaded[key]
    ]
    load = f'{plain.__name__}.from_pretrained("{folder}", subfolder="scheduler"{"".join(changes)})'
    lines = [
        f"from diffusers import {plain.__name__}",
        "",
        f"pipe.scheduler = {load}",
        f"pipe(prompt, {argument}={grid}{guidance})",
    ]
    return [*parts, "With diffusers alone:", _code(lines)]


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


def _loss(value: float, relative: bool) -> str:
    return _digits(math.exp(value) if relative else value)


def _digits(value: float) -> str:
    """Three significant digits; whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _named(name: str, current: str) -> str:
    return f"the current {current}" if name == CURRENT else name


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
