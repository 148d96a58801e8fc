"""Pictures from final latents, through a pipeline's own ending, with a derivative."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.metrics.encoders import Encoder
from asddim_lib.models.calls import parameters, swapped
from asddim_lib.models.load import Pipeline
from asddim_lib.pipeline.recording import frozen
from asddim_lib.schedulers.place import drawing, intercepted
from asddim_lib.schedulers.solvers import own_scheduler

if TYPE_CHECKING:
    from asddim_lib.pipeline.run import Run

#: Parts that look at finished pictures, or mark them, and have no derivative.
AFTERWARDS = ("safety_checker", "watermark")
#: Added to a prompt's seed: the noise that it starts from uses the seed itself.
APART = 2**32


def decode(run: Run, ends: Tensor) -> Tensor:
    """The pictures (n × 3 × h × w, numbers from 0 to 1) of a run's final latents (n × d).

    A video's are n × frames × 3 × h × w. The pipeline itself decodes, so that its scaling, packing
    and decoder are not rebuilt here: it draws a single step, whose scheduler leads to `ends`
    whatever the network says. That costs one step. The pictures have a derivative by the latents
    where `ends` requires one, unless torch.no_grad holds. Raises WrongUse for latents of another
    number, and for a modular pipeline.
    """
    count, given = len(run.prompts), len(ends)
    check(given == count, "ends", f"latents of {given} pictures", f"give those of all {count}")
    check_decodes(run.pipe)
    modules = [part for part in run.pipe.components.values() if isinstance(part, nn.Module)]
    without = {name: None for name in AFTERWARDS if hasattr(run.pipe, name)}
    with frozen(modules), swapped(run.pipe, **without):
        return torch.cat([_decoded(run, batch, ends[batch]) for batch in run.batches()])


def check_decodes(pipe: Pipeline) -> None:
    """Raises WrongUse for a modular pipeline, whose decoder cannot be asked for a derivative."""
    remedy = "its blocks have no derivative: use one that is not modular, or measure no features"
    check(not hasattr(pipe, "blocks"), "pipe", type(pipe).__name__, remedy)


def feature_directions(run: Run, ends: Tensor, encoder: Encoder, count: int) -> Tensor:
    """Directions of the final latents (n × d), as an image encoder sees them: count × n × d.

    Each is the gradient of the embedding along a random direction of its own, ⟨u, f(decode(y))⟩ by
    y with u standard normal: the mean square of ⟨direction, e⟩ is ‖J e‖², the square of what the
    embedding makes of a small error e. Prompt i's u come from its own seed.
    """
    parts = [_seen(run.part(batch), ends[batch], encoder, count) for batch in run.batches()]
    return torch.cat(parts, 1)


def _seen(run: Run, ends: Tensor, encoder: Encoder, count: int) -> Tensor:
    latents = ends.detach().requires_grad_()
    with torch.enable_grad():
        features = encoder(decode(run, latents))
    assert run.seeds is not None
    streams = [torch.Generator("cpu").manual_seed(APART + seed) for seed in run.seeds]
    shape = (count, features.shape[1])
    drawn = [torch.randn(shape, generator=one, device="cpu") for one in streams]
    gradients: list[Tensor] = []
    for direction in torch.stack(drawn, 1).to(features):
        along = (features * direction).sum()
        gradients += torch.autograd.grad(along, latents, retain_graph=True)
    return torch.stack(gradients)


def _decoded(run: Run, batch: slice, ends: Tensor) -> Tensor:
    own, steps = run.pipe.scheduler, _steps_of_one(run)
    plain = drawing(own_scheduler(own), own)
    derived = torch.is_grad_enabled() and ends.requires_grad

    def step(self: Any, model_output: Tensor, timestep: Tensor, sample: Tensor, **more: Any) -> Any:
        type(plain).step(self, model_output, timestep, sample, **more)  # which counts its steps
        # Pipelines are called under torch.no_grad, whose end puts the mode back as it was.
        torch.set_grad_enabled(derived)
        return SchedulerOutput(prev_sample=ends.reshape(sample.shape).to(sample))

    scheduler = intercepted(plain, "a step to given latents", step=step)
    how = {"num_inference_steps": steps, "output_type": "pt"}
    return run.call(batch, scheduler, run.generators(batch), **how)


def _steps_of_one(run: Run) -> int:
    """How many steps to ask for where one is to be taken: image-to-image leaves out a part."""
    known = parameters(run.pipe)
    default = known["strength"].default if "strength" in known else 1.0
    strength = run.options.get("strength", default)
    return math.ceil(1 / strength) if strength else 1
