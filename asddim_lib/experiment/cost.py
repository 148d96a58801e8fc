"""What an experiment will cost, from a few network evaluations on the device that is to draw it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from asddim_lib.bench.memory import Peak
from asddim_lib.experiment.setting import Setting, cells, references
from asddim_lib.experiment.store import draw
from asddim_lib.models.load import Pipeline, device_of
from asddim_lib.models.prompts import check_prompts

STEPS = (
    1,
    4,
)  # two lengths of a picture: their difference is the network's time, the rest is text, decoding and copying


class Cost(NamedTuple):
    """What a picture costs: `seconds` a network evaluation, `rest` of its seconds, `kilobytes` on disk; `memory` in MB at its peak, where known."""

    seconds: float
    rest: float
    kilobytes: float
    memory: float | None


def measure(pipe: Pipeline, table: pd.DataFrame, setting: Setting) -> Cost:
    """Draws one batch of the setting's size over 1 step and over 4, after a first one that is not timed. The memory is the device's; on a CPU, the process's."""
    scale = max(setting.guidance_scales)
    prompts, each = list(table["prompt"].head(setting.batch_size)), 2 if scale > 1 else 1
    check_prompts(pipe, prompts)
    what: dict[str, Any] = {
        "prompts": prompts,
        "seeds": list(range(len(prompts))),
        "guidance_scale": scale,
        "batch_size": setting.batch_size,
    }
    draw(pipe, **what, num_inference_steps=1)
    peak = Peak(device_of(pipe))
    short, long = (draw(pipe, **what, num_inference_steps=steps) for steps in STEPS)
    seconds = max(long.seconds - short.seconds, 0) / (STEPS[1] - STEPS[0]) / each
    size = sum(part.nbytes for part in (long.images, long.latents)) / len(prompts)
    return Cost(seconds, max(short.seconds - seconds * each, 0), size / 1e3, peak.megabytes())


def plan(setting: Setting, count: int, cost: Cost) -> pd.DataFrame:
    """A row a guidance scale and step count, the references' too: pictures, network evaluations, hours on one device, of one method, and gigabytes."""
    wanted = list(dict.fromkeys((*cells(setting), *references(setting))))
    rows = []
    for scale, steps in dict.fromkeys((cell.guidance_scale, cell.steps) for cell in wanted):
        alike = [cell for cell in wanted if (cell.guidance_scale, cell.steps) == (scale, steps)]
        each = count * (alike[0].evaluations * cost.seconds + cost.rest) / 3600
        rows.append(
            {
                "guidance_scale": scale,
                "steps": steps,
                "rows": len(alike),
                "pictures": count * len(alike),
                "evaluations": sum(count * cell.evaluations for cell in alike),
                "hours": each * len(alike),
                "hours_a_row": each,
                "gigabytes": count * len(alike) * cost.kilobytes / 1e6,
            }
        )
    return pd.DataFrame(rows)


def calibration(setting: Setting) -> int:
    """Network evaluations of all profiles, as `calibrate` counts them: the path, a derivative a timestep, and the sweeps back; 0 where none is needed."""
    if not setting.profiled:
        return 0
    each = [setting.calibrate_on * (2 if scale > 1 else 1) for scale in setting.guidance_scales]
    return sum(each) * (
        (setting.calibrate_steps + 1) * (1 + 3 * setting.adjoint_probes)
        + 3 * setting.calibrate_steps
    )
