"""What the pipelines of the zoo can do with this library, found by doing it.

    python -m tests.support              writes data/support.csv, which the book's table shows
    python -m tests.support sdxl flux-dev     prints what these two can do

Each column is a function of an entry. It fails where the library does something wrong, and raises
WrongUse where the library refuses.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from asddim_lib import calibrate
from asddim_lib.calibration import record
from asddim_lib.errors import WrongUse
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.levels import Levels
from asddim_lib.pipeline import recording
from asddim_lib.pipeline.decoding import decode
from asddim_lib.tuning.draw import Setup
from asddim_lib.tuning.goals import Latents
from tests import zoo
from tests.guided import at_scale
from tests.zoo.entry import ENTRIES as ENTRIES
from tests.zoo.entry import PROMPTS, entry
from tests.zoo.first import counted

FILE = Path(__file__).parents[1] / "data" / "support.csv"
GRID = [960, 520, 130]
#: Where a recorded path of four steps goes.
POINTS = [999, 749, 499, 249, 0]


#: What each checkpoint is called, by its name in the zoo; and four more pipelines, each of which
#: is refused something.
MODELS = {
    "sd15": "Stable Diffusion 1.5",
    "sd15-pag": "Stable Diffusion 1.5, perturbed attention",
    "sd15-inpaint": "Stable Diffusion 1.5, inpainting with 4 channels",
    "sd15-guess": "Stable Diffusion 1.5, ControlNet in guess mode",
    "instruct-pix2pix": "InstructPix2Pix",
    "sdxl": "SDXL",
    "sdxl-base": "SDXL, stopped before its end for a refiner",
    "sdxl-refiner": "SDXL refiner",
    "sdxl-img2img": "SDXL, image-to-image",
    "sdxl-inpaint": "SDXL, inpainting with 9 channels",
    "sdxl-controlnet": "SDXL, ControlNet",
    "modular-sdxl": "SDXL, modular",
    "animatediff": "AnimateDiff",
    "pixart-sigma": "PixArt-Σ",
    "cogvideox": "CogVideoX",
    "sana": "Sana",
    "sd3": "Stable Diffusion 3",
    "aura-flow": "AuraFlow",
    "lumina2": "Lumina 2",
    "flux-dev": "FLUX.1-dev",
    "flux-kontext": "FLUX.1-Kontext",
    "flux-2": "FLUX.2 [klein]",
    "modular-flux": "FLUX.1-dev, modular",
    "ideogram-4": "Ideogram 4",
    "chroma": "Chroma1-HD",
    "qwen-image": "Qwen-Image",
    "z-image": "Z-Image",
    "hunyuan-video": "HunyuanVideo",
    "ltx": "LTX-Video",
    "wan-2.1": "Wan 2.1",
    "wan-2.2": "Wan 2.2",
}


def draws(one):
    """Our scheduler in the pipeline: its own levels, and latents that are finite."""
    with one.drawn_by(allocation="logsnr") as scheduler:
        assert zoo.draw(one.pipe, one.options).isfinite().all()
        assert len(scheduler.timesteps) == 3


def grid(one):
    """The scheduler steps at the grid's levels, whether it is held or an argument of the call.

    Image-to-image begins within the grid.
    """
    held, given = [], []
    one.run(scheduler=one.watched(held)).ends(GRID)
    wanted = one.levels(GRID)
    if "strength" in one.options:
        wanted = wanted[-len(held) :]
    np.testing.assert_allclose([t for t, _ in held], wanted, rtol=1e-5)
    if one.argument:
        size = one.pipe.scheduler.config["num_train_timesteps"]
        values = [(t + 1) / size for t in GRID] if one.flow else GRID
        with one.drawn_by():
            one.pipe.scheduler = one.watched(given)
            zoo.draw(one.pipe, one.options, **{one.argument: values})
        np.testing.assert_allclose([t for t, _ in given], wanted, rtol=1e-5)


def path(one):
    """A recorded path costs as many evaluations as drawing, and obeys its update to rounding."""
    run = one.run(prompts=2)
    with counted(one.pipe) as recorded:
        path = run.path(4)
    with counted(one.pipe) as drawn:
        one.run(prompts=2, scheduler=one.watched([])).ends(POINTS)
    assert sum(recorded) == sum(drawn) == len(path) * run.evaluations_per_step
    y, sigmas = path.clean(run.schedule), path.sigmas(run.schedule)
    landed = y[:-1] + sigmas.diff().reshape(-1, 1, 1) * path.noises.double()
    length = y.norm(dim=2)
    rounding = 4 * torch.finfo(torch.float32).eps * (length[:-1] + length[1:])
    assert ((landed - y[1:]).norm(dim=2) <= rounding).all()


def g(one):
    """g by forward derivatives is finite, positive, and what differences along the probe give."""
    found = {}
    for estimator in ("jvp", "difference"):
        how = {"guidance_scale": one.guidance, "num_steps": 3, "estimator": estimator}
        found[estimator] = np.array(calibrate(one.pipe, PROMPTS[:1], **how, **one.options).g)
    assert (found["jvp"] > 0).all()
    assert np.isfinite(found["jvp"]).all()
    np.testing.assert_allclose(found["jvp"], found["difference"], rtol=1e-3)


def adjoint(one):
    """An adjoint says what a nudge of the sample after the first step does to the path's end."""
    kept = []

    def keep(sigmas, transpose, probe):
        kept.append(probe.double())
        return carry_back(sigmas, transpose, probe)

    carry_back, recording.carry_back = recording.carry_back, keep
    try:
        how = {"guidance_scale": one.guidance, "num_steps": 4, "adjoint_probes": 1}
        how["shift_steps"] = len(POINTS)
        path = record(one.pipe, PROMPTS[:1], **how, **one.options)
    finally:
        recording.carry_back = carry_back
    (probe,), run, ends = kept, one.run(shift_steps=len(POINTS)), []
    nudge = torch.randn(probe.shape, generator=torch.Generator().manual_seed(1))
    for size in (1e-2, -1e-2):
        seen = []
        one.run(scheduler=one.watched(seen, size * nudge)).ends(POINTS)
        ends.append(seen[-1][1].double())
    sigmas = path.sigmas(run.schedule)
    signal = Levels.from_diffusers(one.pipe.scheduler, run.mu).signal
    scale = float(signal(sigmas[1]) / signal(sigmas[-1]))  # both are changes of y, not of x
    effect = scale * ((ends[0] - ends[1]) / 2e-2 * probe).sum()
    adjoint = path.adjoints[0, 1].double()
    predicted = (adjoint * nudge.double().flatten(1)).sum()
    assert abs(predicted - effect) < 3e-3 * adjoint.norm()


def decoded(one):
    """`decode` gives the pipeline's own pictures, and their derivative by the final latents."""
    run = one.run(scheduler=one.watched([]))
    ends, drawn = run.ends(GRID), run.pictures(GRID).images
    latents = ends.clone().requires_grad_()
    shown = decode(run, latents)
    assert (shown.detach() - drawn / 255).abs().max() < 0.6 / 255
    weights = torch.randn(shown.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((weights * shown).sum(), latents)
    # Sana's decoder has kinks, so that its differences are off by up to a tenth.
    nudge = 1e-2 * gradient / gradient.norm()
    above, below = ((weights * decode(run, ends + s * nudge)).double().sum() for s in (1, -1))
    assert float(above - below) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.1)


def tuned(one):
    """What is judged of a grid is what its scheduler draws in the pipeline, bit for bit.

    `Run` judges it. The scheduler is `tune`'s, loaded from its file, and called with K alone.
    """
    steps, run = len(GRID), one.run()
    returned = Setup(run, steps, Latents()).sampler(GRID).scheduler
    run = run.prepared_with(type(returned))
    judged, levels = run.ends(GRID), run.asked(run.on_grid(GRID)[0], steps).timesteps
    own, config = one.pipe.scheduler, json.loads(returned.to_json_string())
    one.pipe.scheduler = type(returned).from_config(config)
    try:
        plain = one.run()
        assert torch.equal(plain.asked(one.pipe.scheduler, steps).timesteps, levels)
        drawn = plain.pictures(num_inference_steps=steps).latents.flatten(1)
    finally:
        one.pipe.scheduler = own
    np.testing.assert_allclose(levels, one.levels(GRID), rtol=1e-5)
    assert judged.isfinite().all()
    assert torch.equal(judged, drawn)


def guided(one):
    """A guidance plan at another scale than the pipeline's draws what the pipeline draws there.

    At scale 1 it makes fewer rows, but where others than u depend on the prompt being left out.
    """
    for scale in (1.0, 2.0):
        with GuidancePlan(bands=((0.0, scale),)).on(one.pipe) as rows:
            found = zoo.draw(one.pipe, one.options)
        several = type(one.pipe).__name__ in WHOLE
        assert (rows.skipped > 0) == (scale == 1 and not several)
        if not (several and scale == 1):
            wanted = at_scale(one, scale)
            assert (found - wanted).norm() <= 1e-4 * wanted.norm()


#: Pipelines whose step needs all of its rows at any scale.
WHOLE = ("StableDiffusionPAGPipeline", "StableDiffusionInstructPix2PixPipeline")

#: What is tried, under its heading in the table.
COLUMNS = {
    "draws": draws,
    "grid honoured": grid,
    "path recorded": path,
    "g": g,
    "adjoint": adjoint,
    "decoded": decoded,
    "tuned": tuned,
    "guidance plan": guided,
}
WORKS = "✓"


def cell(name, column):
    """What the table shows: that it works, or the reason why not."""
    try:
        COLUMNS[column](entry(name))
    except WrongUse as reason:
        return str(reason)
    return WORKS


def row(name):
    """What stands before an entry's cells."""
    one = entry(name)
    way = f"`{one.argument}=`" if one.argument else "the scheduler"
    return {"model": MODELS[name], "pipeline": type(one.pipe).__name__, "grid by": way}


def write():
    """Writes the table. A test fails where it is not what the pipelines do."""
    rows = [row(name) | {column: cell(name, column) for column in COLUMNS} for name in MODELS]
    with FILE.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write()
    for name in sys.argv[1:]:
        print(name, *(f"{column}: {cell(name, column)}" for column in COLUMNS), sep="\n  ")
