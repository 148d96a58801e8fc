"""A tiny pipeline of the zoo as the library calls it, beside four that are refused something."""

import functools
from contextlib import contextmanager

import numpy as np
from diffusers import StableDiffusionInpaintPipeline

from asddim_lib import ASDDIMScheduler, ASFlowScheduler
from asddim_lib.levels import Levels
from asddim_lib.models import calls
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import drawing
from tests import tiny, zoo
from tests.zoo.first import built
from tests.zoo.flow import ideogram_4

PROMPTS = ["a red boot", "a blue bag"]


def inpaint_4():
    """Inpainting that puts the picture's known part back after each step."""
    mask = (tiny.PICTURE[:, :1] > 0.5).float()
    options = {"image": tiny.PICTURE, "mask_image": mask, "height": 64, "width": 64}
    return StableDiffusionInpaintPipeline(**tiny.parts(), **tiny.PLAIN), options


def guess():
    """ControlNet without the prompt: it is called for the guided half alone."""
    pipe, options = tiny.controlnet()
    return pipe, {**options, "image": tiny.PICTURE, "guess_mode": True}


MORE = {
    "sd15-inpaint": inpaint_4,
    "sd15-guess": guess,
    "sdxl-base": tiny.sdxl_base,
    "ideogram-4": ideogram_4,
}
ENTRIES = [*zoo.ZOO, *MORE]


class Entry:
    """A pipeline of the zoo, how it is called, and which of our schedulers draws it."""

    def __init__(self, pipe, options):
        self.pipe, self.options = pipe, options
        self.pipe.set_progress_bar_config(disable=True)
        guided = "true_cfg_scale" in self.options or getattr(self.pipe, "guider", None) is not None
        self.guidance = None if guided else zoo.GUIDANCE
        self.flow = Levels.from_diffusers(self.pipe.scheduler, mu=0.0).kind == "flow"
        self.scheduler = ASFlowScheduler if self.flow else ASDDIMScheduler

    @property
    def argument(self):
        """The call's argument that takes a grid for our scheduler, if there is one."""
        name = "sigmas" if self.flow else "timesteps"
        return name if name in calls.parameters(self.pipe) else ""

    def run(self, prompts=1, **changes):
        how = {"guidance_scale": self.guidance, "options": self.options, **changes}
        return Run(self.pipe, PROMPTS[:prompts], **how)

    @contextmanager
    def drawn_by(self, **settings):
        """Within it, our scheduler is the pipeline's."""
        own = self.pipe.scheduler
        self.pipe.scheduler = self.scheduler.from_config(own.config, **settings)
        try:
            yield self.pipe.scheduler
        finally:
            self.pipe.scheduler = own

    def levels(self, grid):
        """The timesteps that stand for a grid of numbers: the same, or moved by the shift."""
        config, mu = self.pipe.scheduler.config, self.run(shift_steps=len(grid)).mu
        if not self.flow:
            return grid
        mix = (np.array(grid) + 1) / config["num_train_timesteps"]
        shift = np.exp(mu) if mu is not None else config.get("flow_shift", config.get("shift"))
        return 1000 * shift * mix / (1 + (shift - 1) * mix)

    def watched(self, seen, nudge=None):
        """Our scheduler on any grid, which ends where a recorded path ends."""
        kind = watched(self.scheduler, seen, nudge)
        return drawing(kind, self.pipe.scheduler, "zero" if self.flow else "sigma_min")


@functools.cache
def entry(name):
    return Entry(*(MORE[name]() if name in MORE else built(name)))


def watched(kind, seen, nudge):
    """A scheduler class that lists each timestep and where its step leads.

    After the first step the nudge, if there is one, is added to the sample.
    """

    class Watched(kind):
        def step(self, model_output, timestep, sample, *rest, **more):
            landed = super().step(model_output, timestep, sample, *rest, **more)
            if nudge is not None and not seen:
                landed[0].add_(nudge)
            seen.append((float(timestep), landed[0]))
            return landed

    return Watched
