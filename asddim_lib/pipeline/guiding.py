"""The ways of guiding: from a step's network outputs to what arrives at the scheduler.

None is taken on trust: it must give back what arrived, or the pipeline is refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from asddim_lib.errors import WrongUse
from asddim_lib.pipeline.calls import parameters

#: The guided output from a step's outputs, one for each kind of guidance.
Combine = Callable[[list[Tensor]], Tensor]


def guidance_scales(pipe: Any, options: Mapping[str, Any]) -> list[float]:
    """The guidance scales that a pipeline may have used, in its call's words."""
    known = parameters(pipe)
    names = ("guidance_scale", "true_cfg_scale", "guidance_scale_2", "pag_scale")
    held = [getattr(pipe, f"_{name}", getattr(pipe, name, None)) for name in names]
    given = [options.get(name, known[name].default) for name in names if name in known]
    numbers = [float(value) for value in (*held, *given) if isinstance(value, (int, float))]
    return list(dict.fromkeys(numbers))


def combination(
    pipe: Any, scales: list[float], parts: list[Tensor], arrived: Tensor, remedy: str
) -> Combine:
    """The way of guiding that gives what arrived at the scheduler.

    Raises WrongUse, with the remedy, where none does.
    """
    rounding = 1e-4 if arrived.dtype == torch.float32 else 2e-2
    for combine in _known(pipe, scales, len(parts)):
        for sign in (1, -1):  # Lumina 2 and Z-Image negate their network's output
            if near(sign * combine(parts), arrived, rounding):
                return combine if sign == 1 else lambda p, c=combine: -c(p)  # type: ignore[misc]
    kind = type(pipe).__name__
    raise WrongUse(f"pipe is {kind}, whose way of guiding is not known here; {remedy}")


def _known(pipe: Any, scales: list[float], count: int) -> Iterator[Combine]:
    """The ways of guiding with so many outputs."""
    guider = getattr(pipe, "guider", None)
    if guider is not None:
        yield from _guider_s(guider, count)
        return
    if count == 1:
        yield lambda p: p[0]
    if count == 2:
        for scale in (*scales, *(1 + scale for scale in scales)):  # Z-Image and PAG add
            for without, with_prompt in ((0, 1), (1, 0)):
                yield from _classifier_free(pipe, scale, without, with_prompt)
    if count == 3:
        yield from _of_three(pipe)


def _guider_s(guider: Any, count: int) -> Iterator[Combine]:
    """A modular pipeline's guider, as it is at this step.

    One that changes the network while it answers (skipped layers, perturbed attention) is not had
    again by calling the network.
    """
    plain = type(guider).prepare_models is BaseGuidance.prepare_models
    if plain and guider.num_conditions == count:
        now = copy.deepcopy(guider)
        yield lambda p: now.forward(*p).pred


def _classifier_free(pipe: Any, scale: float, without: int, with_prompt: int) -> Iterator[Combine]:
    """Classifier-free guidance, as it is, with its spread rescaled, or with its norm kept."""

    def plain(p: list[Tensor]) -> Tensor:
        return p[without] + scale * (p[with_prompt] - p[without])

    def normed(p: list[Tensor]) -> Tensor:  # Qwen-Image, Lumina 2
        guided = plain(p)
        norms = (torch.norm(part, dim=-1, keepdim=True) for part in (p[with_prompt], guided))
        wanted, found = norms
        return guided * (wanted / found)

    rescale = float(getattr(pipe, "guidance_rescale", 0.0) or 0.0)
    yield plain
    if rescale:
        yield lambda p: rescale_noise_cfg(plain(p), p[with_prompt], rescale)
    yield normed


def _of_three(pipe: Any) -> Iterator[Combine]:
    """InstructPix2Pix, and perturbed-attention guidance beside the classifier-free one."""
    scale = float(getattr(pipe, "guidance_scale", 1.0) or 0.0)
    if hasattr(pipe, "image_guidance_scale"):
        image = float(pipe.image_guidance_scale)
        yield lambda p: p[2] + scale * (p[0] - p[1]) + image * (p[1] - p[2])
    if hasattr(pipe, "pag_scale"):
        perturbed = float(pipe.pag_scale)
        yield lambda p: p[0] + scale * (p[1] - p[0]) + perturbed * (p[1] - p[2])


def near(output: Tensor, wanted: Tensor, share: float) -> bool:
    """Whether two tensors are one, but for a share of the second's length."""
    if output.shape != wanted.shape:
        return False
    given, meant = (part.detach().cpu().double() for part in (output, wanted))  # MPS has no float64
    return bool((given - meant).norm() <= share * meant.norm())
