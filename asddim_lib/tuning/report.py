"""What a tuning shows: its verdict in words, a page in Markdown, and pictures side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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


def examples(
    trials: Trials, samplers: Mapping[str, Sampler], count: int
) -> tuple[bytes, dict[str, Any]]:
    """A sheet (PNG) of the first prompts, a column for each sampler and the fine one.

    With it, as the setting says it: a picture's width and height, and the prompts that are shown.
    """
    if not count:
        return b"", {}
    setup, run = trials.setup, trials.run.part(slice(0, count))
    setup.work.doing = "drawing examples"
    fine = setup.reference
    columns = {**samplers, f"{fine.steps} steps": fine}

    def drawn() -> dict[str, Tensor]:
        pictures = {
            name: replace(run, scheduler=one.scheduler)
            .pictures(num_inference_steps=one.steps)
            .images
            for name, one in columns.items()
        }
        height, width = next(iter(pictures.values())).shape[-2:]
        content = torch.frombuffer(bytearray(sheet(pictures)), dtype=torch.uint8)
        return {"sheet": content, "size": torch.tensor([width, height])}

    cost = sum(one.calls for one in columns.values()) * run.evaluations_per_step
    depends = [[n, replace(run, scheduler=one.scheduler).inputs] for n, one in columns.items()]
    found = setup.work.do(cost, drawn, depends, "sheet")
    width, height = found["size"].tolist()
    content = found["sheet"].numpy().tobytes()
    return content, {"width": width, "height": height, "shown": list(run.prompts)}


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
    on, current = prompts(setting), setting["current"]
    if tuned.changed:
        pairs = decision.of(decision.returned)
        others = len(pairs) - 1
        over = f"the current sampler, {current}"
        over += f", and over {_several(others, 'other baseline')}" if others else ""
        own = decision.between(decision.returned, CURRENT)
        gain = f"{change(own, setting['relative'])} against {current}"
        return f"{tuned.name} replaces {current}: it wins over {over}, on {on}. Its loss: {gain}."
    stays = f"so nothing changes: the pipeline keeps its {current}"
    if decision.objections:
        seen = decision.objections[0]
        text = f"{seen.first} wins, but the second encoder, {setting['check_encoder']}, sees it "
        return f"{text}lose to {_named(seen.second, current)} on {on}, {stays}."
    pairs = decision.of(CANDIDATE) or decision.comparisons
    open_ = [_named(one.second, current) for one in pairs if one.verdict != "win"]
    if not decision.of(CANDIDATE) and tuned.candidate is not None:
        return f"No grid was found that is better than those compared on {on}, {stays}."
    if not decision.of(CANDIDATE):
        text = f"No grid is proven better than {current} and every other on {on}, {stays}."
    else:
        text = f"Not proven better than {_listed(open_)} on {on}, {stays}."
    if tuned.advice is None:
        return text
    minutes = None if tuned.minutes is None else max(1, round(tuned.minutes))
    time = "" if minutes is None else f", about {_several(minutes, 'minute')}"
    return f"{text} To decide, run with {tuned.advice} prompts (--count {tuned.advice}){time}."


def prompts(setting: Mapping[str, Any]) -> str:
    """How many prompts the verdict has, and pictures where these are more."""
    several = _several(setting["prompts"], "prompt")
    if setting["pictures"] == setting["prompts"]:
        return several
    return f"{setting['pictures']} pictures of {several}"


def change(one: Comparison, relative: bool) -> str:
    """A difference and its interval: of logarithms as a percentage of the second's loss."""
    ends = (one.difference, one.difference - one.half, one.difference + one.half)
    if not relative:
        return f"{one.difference:+.4f} ± {one.half:.4f}"
    middle, low, high = (100 * math.expm1(min(value, 700.0)) for value in ends)
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def markdown(tuned: Tuned) -> str:
    """The page: the verdict, every comparison, what it is for, what it cost, and its use."""
    setting = tuned.setting
    kind = "geometric mean" if setting["relative"] else "mean"
    grid = [] if tuned.grid is None else [f"Timesteps: {tuned.grid}"]
    parts = [
        f"# {setting['steps']} steps of {setting['model'] or 'a pipeline'}",
        summary(tuned),
        *grid,
        "## Every comparison",
        f"On {prompts(setting)} that served no choice, from the same noise. The loss is a distance "
        f"from the picture of {setting['reference_steps']} steps, {_seen(setting)}, as a "
        f"{kind}; lower is better. The interval is a 95 % t interval of the paired difference. A "
        "win or a loss is an interval without 0. Only what wins over the current sampler and over "
        "every baseline replaces it.",
        _table(tuned),
        *_skipped(tuned),
        *_shown(tuned),
        "## What it is for",
        "Another model, solver, number of steps, guidance, size or shift needs a grid of its own.",
        "\n".join(f"- {name}: {value}" for name, value in setting.items() if value not in ("", [])),
        "## What it cost",
        f"{tuned.evaluations:,} network evaluations, as many as {tuned.pictures:,.0f} pictures of "
        f"the current sampler ({setting['current']}, {setting['steps']} steps).",
        *_use(tuned),
    ]
    return "\n\n".join(parts) + "\n"


def _table(tuned: Tuned) -> str:
    current, relative = tuned.setting["current"], tuned.setting["relative"]
    grids = {**tuned.grids, CANDIDATE: tuned.candidate}
    lines = ["| sampler | against | loss of that | difference | verdict |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for one in tuned.decision.comparisons:
        loss = math.exp(one.loss) if relative else one.loss
        pair = f"| {one.first} | {_named(one.second, current)} | {loss:.4f} "
        lines.append(f"{pair}| {change(one, relative)} | {one.verdict} |")
    drawn = "\n".join(f"- {name}: {grid}" for name, grid in grids.items() if grid)
    return "\n".join(lines) + f"\n\nTheir timesteps:\n\n{drawn}"


def _use(tuned: Tuned) -> list[str]:
    """How the result is used, with this library and without it."""
    setting, name = tuned.setting, tuned.scheduler_config["_class_name"]
    if not tuned.changed:
        call = f"pipe(prompt, num_inference_steps={setting['steps']})"
        return ["## Use it", f"Nothing changes: `{call}`."]
    lines = [
        "import asddim_lib  # which knows the scheduler's class",
        f"from asddim_lib import {name} as Scheduler",
        "",
        'pipe.scheduler = Scheduler.from_pretrained("this folder", subfolder="scheduler")',
        f"pipe(prompt, num_inference_steps={setting['steps']})",
    ]
    found = tuned.without_us()
    if found is None:
        why = "No scheduler of diffusers, or no argument of the pipeline, takes this grid."
        return ["## Use it", _code(lines), "## Without asddim_lib", why]
    scheduler, how = found
    plain = type(scheduler).__name__
    (argument, grid), *_ = how.items()
    spacing = ', timestep_spacing="leading"' if plain.startswith("Euler") else ""
    stock = [
        f"from diffusers import {plain}",
        "",
        f"pipe.scheduler = {plain}.from_config(pipe.scheduler.config{spacing})",
        f"pipe(prompt, {argument}={grid})",
    ]
    return ["## Use it", _code(lines), "## Without asddim_lib", _code(stock)]


def _code(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _seen(setting: Mapping[str, Any]) -> str:
    name = setting["encoder"]
    return f"in the embedding of {name}" if name else f"by the goal {setting['goal']}"


def _skipped(tuned: Tuned) -> list[str]:
    if not tuned.skipped:
        return []
    lines = [f"- {name}: {reason}" for name, reason in tuned.skipped.items()]
    return ["Baselines that were skipped:", "\n".join(lines)]


def _shown(tuned: Tuned) -> list[str]:
    if not tuned.sheet:
        return []
    shown = "; ".join(tuned.setting["shown"])
    return ["![Pictures side by side.](sheet.png)", f"From the same noise, row by row: {shown}."]


def _named(name: str, current: str) -> str:
    return f"the current {current}" if name == CURRENT else name


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
