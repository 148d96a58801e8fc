"""What an experiment will cost, from a few network evaluations on the device that will draw it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from asddim_lib.calibration import Measurement
from asddim_lib.models import calls
from asddim_lib.models.load import Pipeline, device_of
from asddim_lib.pipeline.run import Run
from experiments.memory import Peak
from experiments.setting import (
    KAPPA_PROBES,
    Setting,
    cells,
    is_measured,
    picture_evaluations,
    references,
)

#: Two lengths of a run. They differ by the network's time; the rest is text, decoding, copying.
STEPS = (1, 4)


class PictureCost(NamedTuple):
    """What a picture costs.

    `seconds` per network evaluation, the `rest` of its seconds, `kilobytes` on disk, and the peak
    `memory` in MB, where the system says it.
    """

    seconds: float
    rest: float
    kilobytes: float
    memory: float | None


def measure(pipe: Pipeline, table: pd.DataFrame, setting: Setting) -> PictureCost:
    """Draws one batch of the setting's size over 1 step and over 4, after one that is not timed.

    The memory is the device's; on a CPU, the process's.
    """
    scale, prompts = max(setting.guidance_scales), list(table["prompt"].head(setting.batch_size))
    how: Any = (scale, setting.batch_size, setting.options, setting.truncate)
    run = Run(pipe, prompts, None, *how)
    per_step = run.evaluations_per_step // len(prompts)
    run.pictures(num_inference_steps=1)
    peak = Peak(device_of(pipe))
    short, long = (run.pictures(num_inference_steps=steps) for steps in STEPS)
    seconds = max(long.seconds - short.seconds, 0) / (STEPS[1] - STEPS[0]) / per_step
    size = sum(part.nbytes for part in (long.images, long.latents)) / len(prompts)
    rest = max(short.seconds - seconds * per_step, 0)
    return PictureCost(seconds, rest, size / 1e3, peak.megabytes())


def plan(pipe: Pipeline, setting: Setting, count: int, cost: PictureCost) -> pd.DataFrame:
    """The cost of `count` prompts: one row per guidance scale and step count, references too.

    Each has its pictures, network evaluations, hours on one device, hours of one method
    (`hours_a_row`), and gigabytes.
    """
    wanted = list(dict.fromkeys((*cells(setting), *references(setting, pipe.scheduler))))
    rows = []
    for scale, steps in dict.fromkeys((cell.guidance_scale, cell.steps) for cell in wanted):
        alike = [c for c in wanted if (c.guidance_scale, c.steps) == (scale, steps)]
        each = picture_evaluations(pipe, setting, alike[0])
        hours = count * (each * cost.seconds + cost.rest) / 3600
        pictures = count * len(alike)
        row = {"guidance_scale": scale, "steps": steps, "rows": len(alike), "pictures": pictures}
        row["evaluations"] = pictures * each
        row |= {"hours": hours * len(alike), "hours_a_row": hours}
        rows.append({**row, "gigabytes": pictures * cost.kilobytes / 1e6})
    return pd.DataFrame(rows)


def calibration(pipe: Pipeline, setting: Setting) -> int:
    """Network evaluations of all profiles, as `calibrate` counts them; 0 where none is needed."""
    rows = {g: calls.rows(pipe, g, setting.options) for g in setting.guidance_scales}
    profile = Measurement(
        setting.calibrate_steps,
        adjoint_probes=setting.adjoint_probes,
        feature_probes=setting.feature_probes,
    )
    kappa = Measurement(setting.calibrate_steps, estimator="path", kappa_probes=KAPPA_PROBES)
    capped = {cell.guidance_scale for cell in cells(setting) if is_measured(cell.guidance_plan)}
    spent = sum(rows.values()) * profile.evaluations if setting.profiled else 0
    return setting.calibrate_on * (spent + sum(rows[g] for g in capped) * kappa.evaluations)
