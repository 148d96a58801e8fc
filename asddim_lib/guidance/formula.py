"""How a pipeline combines the predictions of one step, found by what arrives at its scheduler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from asddim_lib.errors import WrongUse
from asddim_lib.models.calls import parameters

#: The guided prediction from a step's predictions, one for each kind of guidance, and a scale.
Guide = Callable[[list[Tensor], Any], Tensor]


@dataclass(frozen=True)
class Formula:
    """A pipeline's guidance: `guide`, of a step's predictions and a scale, and its own `scale`.

    The predictions of numbers `without` and `prompt` are u and c, and the guided one is
    u + scale · (c − u), perhaps rescaled, and with other terms. `scale` is None where there are no
    two such predictions; a tensor of scales broadcasts to them. With `moves_prompt` another term
    contains u, so that only c may be changed for another scale.
    """

    guide: Guide
    scale: float | None = None
    without: int = 0
    prompt: int = 0
    moves_prompt: bool = False

    def combine(self, parts: list[Tensor]) -> Tensor:
        """The guided prediction as the pipeline makes it."""
        return self.guide(parts, self.scale)

    def rescaled(self, without: Tensor, prompt: Tensor, scale: float | Tensor) -> Tensor:
        """What to give in place of u (of c with `moves_prompt`) so that `scale` is drawn with.

        Computed in float32 and returned in the predictions' dtype. At scale 1 it is c itself in
        place of u.
        """
        assert self.scale is not None
        u, c = without.float(), prompt.float()
        moved = u + scale / self.scale * (c - u)
        if not self.moves_prompt:
            moved = c - (scale - 1) / (self.scale - 1) * (c - u)
        return moved.to(prompt.dtype)


def guidance_scales(pipe: Any, options: Mapping[str, Any]) -> list[float]:
    """The guidance scales that a pipeline may have used, in its call's words."""
    known = parameters(pipe)
    names = ("guidance_scale", "true_cfg_scale", "guidance_scale_2", "pag_scale")
    stored = [getattr(pipe, f"_{name}", getattr(pipe, name, None)) for name in names]
    given = [options.get(name, known[name].default) for name in names if name in known]
    numbers = [float(value) for value in (*stored, *given) if isinstance(value, (int, float))]
    return list(dict.fromkeys(numbers))


def formula_of(
    pipe: Any, scales: list[float], parts: list[Tensor], arrived: Tensor, remedy: str
) -> Formula:
    """The formula of guidance that gives what arrived at the scheduler from a step's predictions.

    Each known one is tried with each of the `scales`, and with the one that fits best: not every
    pipeline states its own. Raises WrongUse, with the remedy, where none gives it.
    """
    rounding = 1e-4 if arrived.dtype == torch.float32 else 2e-2
    # Z-Image and perturbed attention add to c; PixArt does not state its scale.
    added = [1 + scale for scale in scales]
    tried = [*scales, *added, *(_fitted(parts, arrived) if len(parts) == 2 else [])]
    for formula in _known(pipe, tried, len(parts)):
        for sign in (1, -1):  # Lumina 2 and Z-Image negate their network's output
            if near(sign * formula.combine(parts), arrived, rounding):
                return formula if sign == 1 else _negated(formula)
    kind = type(pipe).__name__
    raise WrongUse(f"pipe is {kind}, whose way of guiding is not known here; {remedy}")


def near(output: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether two tensors are one, but for a part of the second's length."""
    if output.shape != wanted.shape:
        return False
    given, meant = (part.detach().cpu().double() for part in (output, wanted))  # MPS has no float64
    return bool((given - meant).norm() <= tolerance * meant.norm())


def _fitted(parts: list[Tensor], arrived: Tensor) -> list[float]:
    """The scale above 1 that gives what arrived by least squares, for either order and sign.

    In the wrong order, it would be 1 minus the scale.
    """
    one, other, wanted = (p.detach().cpu().double() for p in (*parts, arrived))
    found = []
    for u, c in ((one, other), (other, one)):
        for sign in (1, -1):
            if wanted.shape == u.shape and float((c - u).norm()) > 0:
                scale = ((sign * wanted - u) * (c - u)).sum() / (c - u).square().sum()
                found.append(round(float(scale), 4))
    return [scale for scale in found if scale > 1]


def predictions(output: Tensor, sample: Tensor) -> list[Tensor]:
    """One prediction for each kind of guidance, without what the pipeline cuts off.

    That is a learned variance, or the tokens of a picture that is edited. `sample` is the
    scheduler's, of as many pictures.
    """
    if output.ndim == sample.ndim + 1:  # Z-Image's dimension for frames
        output = output.reshape(len(output), *sample.shape[1:])
    if output.ndim == sample.ndim:
        output = output[:, : sample.shape[1]]
    return list(output.chunk(max(1, len(output) // len(sample))))


def _negated(formula: Formula) -> Formula:
    guide = formula.guide
    return replace(formula, guide=lambda parts, scale: -guide(parts, scale))


def _known(pipe: Any, scales: list[float], count: int) -> Iterator[Formula]:
    """The formulas of guidance with so many predictions."""
    guider = getattr(pipe, "guider", None)
    if guider is not None:
        yield from _of_guider(guider, count)
        return
    if count == 1:
        yield Formula(lambda p, _: p[0])
    if count == 2:
        for scale in scales:
            for without, prompt in ((0, 1), (1, 0)):
                yield from _classifier_free(pipe, scale, without, prompt)
    if count == 3:
        scale = float(getattr(pipe, "guidance_scale", 1.0) or 0.0)
        if hasattr(pipe, "image_guidance_scale"):  # InstructPix2Pix
            image = float(pipe.image_guidance_scale)
            yield Formula(
                lambda p, s: p[2] + s * (p[0] - p[1]) + image * (p[1] - p[2]),
                scale,
                without=1,
                prompt=0,
                moves_prompt=True,
            )
        if hasattr(pipe, "pag_scale"):  # perturbed attention as well as classifier-free guidance
            perturbed = float(pipe.pag_scale)
            yield Formula(
                lambda p, s: p[0] + s * (p[1] - p[0]) + perturbed * (p[1] - p[2]), scale, 0, 1
            )


def _of_guider(guider: Any, count: int) -> Iterator[Formula]:
    """The formula of a modular pipeline's guider, whose first prediction is the prompt's.

    One that changes the network while it answers (skipped layers, perturbed attention) cannot be
    repeated by calling the network.
    """
    repeats = type(guider).prepare_models is BaseGuidance.prepare_models
    if not repeats or guider.num_conditions != count:
        return
    if count == 2 and type(guider) is ClassifierFreeGuidance:
        added = 1.0 if guider.use_original_formulation else 0.0
        plain, other, *_ = _classifier_free(guider, guider.guidance_scale + added, 1, 0)
        yield other if guider.guidance_rescale else plain
    else:
        now = copy.deepcopy(guider)
        yield Formula(lambda p, _: now.forward(*p).pred)


def _classifier_free(pipe: Any, scale: float, without: int, prompt: int) -> Iterator[Formula]:
    """Classifier-free guidance: plain, with its spread rescaled, or with its norm kept."""

    def plain(p: list[Tensor], s: Any) -> Tensor:
        return p[without] + s * (p[prompt] - p[without])

    def normed(p: list[Tensor], s: Any) -> Tensor:  # Qwen-Image, Lumina 2
        guided = plain(p, s)
        wanted, found = (torch.norm(q, dim=-1, keepdim=True) for q in (p[prompt], guided))
        return guided * (wanted / found)

    rescale = float(getattr(pipe, "guidance_rescale", 0.0) or 0.0)
    yield Formula(plain, scale, without, prompt)
    if rescale:
        spread = lambda p, s: rescale_noise_cfg(plain(p, s), p[prompt], rescale)  # noqa: E731
        yield Formula(spread, scale, without, prompt)
    yield Formula(normed, scale, without, prompt)
