"""What pipelines differ in: the rows of a step, what guidance is called, what comes back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from asddim_lib.errors import check
from asddim_lib.models.load import Pipeline, network


def parameters(pipe: Pipeline) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call."""
    return inspect.signature(pipe.__call__).parameters


def embeds_guidance(pipe: Pipeline) -> bool:
    """Whether the network is told the guidance scale, as a distilled one is (FLUX.1-dev)."""
    return bool(getattr(network(pipe).config, "guidance_embeds", False))


def check_guidance(pipe: Pipeline, guidance_scale: float | None) -> None:
    """Raises WrongUse for a guidance scale that the pipeline makes no use of."""
    known, kind = parameters(pipe), type(pipe).__name__
    if guidance_scale is None or guidance_scale <= 1:
        return
    remedy = f"{kind} has none: give None"
    generic = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    check("guidance_scale" in known or generic, "guidance_scale", guidance_scale, remedy)
    idle = "true_cfg_scale" in known and not embeds_guidance(pipe)
    remedy = f"{kind} leaves it aside: give None, and true_cfg_scale with a negative_prompt"
    check(not idle, "guidance_scale", guidance_scale, remedy)


def rows(pipe: Pipeline, guidance_scale: float | None, options: Mapping[str, Any]) -> int:
    """Network evaluations of one step for one prompt."""
    known = parameters(pipe)

    def value(name: str) -> float:
        given = options.get(name, known[name].default if name in known else None)
        return float(given or 0.0)

    if "true_cfg_scale" in known:
        negative = any(name.startswith("negative_prompt") and options[name] for name in options)
        return 2 if value("true_cfg_scale") > 1 and negative else 1
    scale = value("guidance_scale") if guidance_scale is None else guidance_scale
    guided = scale > 1
    if "image_guidance_scale" in known:  # InstructPix2Pix
        return 3 if guided and value("image_guidance_scale") >= 1 else 1
    return 1 + guided + (value("pag_scale") > 0)


def pictures_of(result: Any) -> Any:
    """The pictures or frames that a pipeline gave back."""
    for name in ("images", "frames"):
        if hasattr(result, name):
            return getattr(result, name)
    return result  # a modular pipeline's, which is asked for them by name


class _Asked(Exception):
    """A pipeline has come as far as `set_timesteps`."""


@contextmanager
def asked_for_mu(scheduler: Any) -> Iterator[tuple[Any, list[float | None]]]:
    """A copy of a scheduler that learns the `mu` it is given, and stops the run there.

    Nothing but the prompt is encoded until then.
    """
    found: list[float | None] = []
    kind = type(scheduler)

    def set_timesteps(
        self: Any,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        found.append(mu)
        raise _Asked

    asking = copy.copy(scheduler)
    asking.__class__ = type(kind.__name__, (kind,), {"set_timesteps": set_timesteps})
    with suppress(_Asked):
        yield asking, found
    what = f"{kind.__name__}, which its pipeline asks for no steps"
    check(bool(found), "pipe.scheduler", what, "use a fixed shift")
