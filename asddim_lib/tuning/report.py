"""What a tuning shows of itself: a page in Markdown, and pictures side by side."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.ahead import PLAIN
from asddim_lib.tuning.goals import even, fine_run
from asddim_lib.tuning.trials import Meter, Shelf

if TYPE_CHECKING:
    from asddim_lib.tuning.result import Tuned
    from asddim_lib.tuning.verify import Comparison

#: A picture on the sheet is at least so wide, in pixels.
WIDE = 144
LABEL = 18
#: A picture's steps where a cost is told in pictures.
PICTURE_STEPS = 50


def examples(
    columns: Mapping[str, tuple[Run, list[int]]], fine_steps: int, shelf: Shelf, meter: Meter
) -> tuple[bytes, int, int]:
    """The sheet of runs of the same prompts on their grids, and of the fine one.

    Returns the PNG, and a picture's width and height.
    """
    meter.doing = "drawing examples"
    run = next(iter(columns.values()))[0]
    steps = sum(len(grid) for _, grid in columns.values()) + fine_steps
    meter.spend(steps * run.evaluations_per_step)

    def drawn() -> dict[str, Tensor]:
        pictures = {name: one.pictures(grid).images for name, (one, grid) in columns.items()}
        pictures[f"{fine_steps} steps"] = fine_run(run).pictures(even(run, fine_steps)).images
        height, width = next(iter(pictures.values())).shape[-2:]
        content = torch.frombuffer(bytearray(sheet(pictures)), dtype=torch.uint8)
        return {"sheet": content, "size": torch.tensor([width, height])}

    depends = {name: [one.inputs, grid] for name, (one, grid) in columns.items()}
    found = shelf.kept(drawn, depends, "sheet", fine_steps)
    width, height = found["size"].tolist()
    return found["sheet"].numpy().tobytes(), width, height


def sheet(columns: dict[str, Tensor]) -> bytes:
    """A PNG of pictures side by side: a column for each name, a row for each prompt.

    A column holds n × 3 × h × w, uint8; of a video, n × frames × 3 × h × w, the middle frame is
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


def markdown(tuned: Tuned) -> str:
    """The page: what is handed out, the verdicts, what it is for, and what it cost."""
    kind = "geometric mean" if tuned.setting["relative"] else "mean"
    parts = [
        f"# A grid of {len(tuned.grid)} steps for {tuned.setting['model'] or 'a pipeline'}",
        tuned.summary(),
        f"Timesteps: {tuned.grid}",
        "## Against every peer at the same steps",
        f"{_tally(tuned.acceptance.comparisons)} of {len(tuned.rivals)}. A loss is the {kind} over "
        f"{tuned.setting['verified_on']} prompts that served no choice; lower is better. A win or "
        "a loss is a paired interval without 0, and p after Holm's correction below 0.05.",
        _verdicts(tuned),
        *_checked(tuned),
        *_told(tuned),
        *_left_out(tuned),
        *_shown(tuned),
        "## What it is for",
        "Another model, solver, number of steps, guidance, size or shift needs a grid of its own.",
        "\n".join(f"- {name}: {value}" for name, value in tuned.setting.items() if value != ""),
        "## What it cost",
        f"{tuned.evaluations} network evaluations, as many as {tuned.pictures:.0f} pictures of "
        f"{PICTURE_STEPS} steps.",
        "## Use it",
        "```python\nimport asddim_lib  # which knows the scheduler's class\n"
        f"from asddim_lib import {tuned.scheduler_config['_class_name']} as Scheduler\n\n"
        'pipe.scheduler = Scheduler.from_pretrained("this folder", subfolder="scheduler")\n'
        f"pipe(prompt, num_inference_steps={len(tuned.grid)})\n```",
    ]
    return "\n\n".join(parts) + "\n"


def change(one: Comparison, relative: bool) -> str:
    """A difference and its interval: of logarithms as a share of the peer's loss, else as it is."""
    ends = (one.difference, one.difference - one.half, one.difference + one.half)
    if not relative:
        return f"{one.difference:+.4f} ± {one.half:.4f}"
    middle, low, high = (100 * math.expm1(value) for value in ends)
    return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"


def loss(one: Comparison, relative: bool) -> str:
    """A peer's mean loss, or its geometric mean."""
    return f"{math.exp(one.loss) if relative else one.loss:.4f}"


def _tally(comparisons: list[Comparison]) -> str:
    counts = Counter(one.verdict for one in comparisons)
    wins, ties, losses = (counts[kind] for kind in ("win", "tie", "loss"))
    words = [(wins, "win", "wins"), (ties, "tie", "ties"), (losses, "loss", "losses")]
    return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in words)


def _verdicts(tuned: Tuned) -> str:
    relative = tuned.setting["relative"]
    lines = ["| peer | its loss | the candidate's, against that | p | verdict | timesteps |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for one in sorted(tuned.acceptance.comparisons, key=lambda one: one.loss):
        rest = f"{one.p_value:.3f} | {one.verdict} | {tuned.rivals[one.peer]}"
        figures = f"{loss(one, relative)} | {change(one, relative)}"
        lines.append(f"| {one.peer} | {figures} | {rest} |")
    return "\n".join(lines)


def _checked(tuned: Tuned) -> list[str]:
    second = tuned.acceptance.check
    if second is None:
        return []
    text = f"The second encoder, {tuned.setting['check_encoder']}, which served no choice"
    figures = f"{change(second, True)} against {second.peer}'s {loss(second, True)}"
    return [f"{text}: {figures}, a {second.verdict}."]


def _told(tuned: Tuned) -> list[str]:
    """What telling the network other times gains over the same grid without it."""
    if tuned.told is None:
        return []
    own = next(one for one in tuned.told.comparisons if one.peer == PLAIN)
    relative = tuned.setting["relative"]
    figures = f"{change(own, relative)} against {loss(own, relative)}, p {own.p_value:.3f}"
    text = f"The network told the time of a point {tuned.share:+g} of a step ahead: {figures}, "
    text += f"of the same grid without it, a {own.verdict}."
    handed = "It is handed out." if tuned.look_ahead else "It is left out."
    return ["## Other times", f"{text} {handed}"]


def _left_out(tuned: Tuned) -> list[str]:
    if not tuned.left_out:
        return []
    lines = [f"- {name}: {reason}" for name, reason in tuned.left_out.items()]
    return ["Peers that were left out:", "\n".join(lines)]


def _shown(tuned: Tuned) -> list[str]:
    if not tuned.sheet:
        return []
    prompts = "; ".join(tuned.setting["shown"])
    return ["![Pictures side by side.](sheet.png)", f"From the same noise, row by row: {prompts}."]
