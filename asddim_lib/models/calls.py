"""What pipelines differ in: the rows of a step, what guidance is called, what comes back."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.models.load import BUNDLED, Pipeline, network
from asddim_lib.schedulers.place import intercepted

#: Pipelines that add scale · (ε − ε without the prompt) to ε: at 0 they leave it out, not at 1.
FROM_ZERO = ("ZImage", "Krea2")
#: How the names of options begin that have an entry for each prompt.
PER_PROMPT = (
    *("prompt", "negative_prompt", "pooled_prompt", "negative_pooled_prompt", "latents"),
    *("image", "mask_image", "masked_image", "control_image", "video"),
)


def parameters(pipe: Pipeline) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's call; a modular pipeline's are those of its blocks."""
    if not hasattr(pipe, "blocks"):
        return inspect.signature(pipe.__call__).parameters
    kind = inspect.Parameter.KEYWORD_ONLY
    known = (entry for entry in pipe.blocks.inputs if entry.name)
    return {e.name: inspect.Parameter(e.name, kind, default=e.default) for e in known}


def embeds_guidance(pipe: Pipeline) -> bool:
    """Whether the network is told the guidance scale, as a distilled one is (FLUX.1-dev, LCM)."""
    config = network(pipe).config
    told = getattr(config, "time_cond_proj_dim", None) is not None
    return told or bool(getattr(config, "guidance_embeds", False))


def default_scale(pipe: Pipeline) -> float | None:
    """The guidance scale of a call that names none: the pipeline's default, 3 if bundled."""
    if str(getattr(pipe, "name_or_path", "")) in BUNDLED:
        return 3.0
    known = parameters(pipe)
    default = known["guidance_scale"].default if "guidance_scale" in known else None
    unused = getattr(pipe, "guider", None) is not None or _ignores_scale(pipe)
    return float(default) if isinstance(default, (int, float)) and not unused else None


def _ignores_scale(pipe: Pipeline) -> bool:
    """Whether a pipeline is guided by true_cfg_scale alone."""
    return "true_cfg_scale" in parameters(pipe) and not embeds_guidance(pipe)


def check_options(pipe: Pipeline, options: Mapping[str, Any], ours: Iterable[str] = ()) -> None:
    """Raises WrongUse for an option that the pipeline's call does not name.

    Where the call takes any keyword, a name that it does not state is refused as well. `ours` are
    the arguments of the function that was given the options, which may have been meant.
    """
    known = [
        name
        for name, one in parameters(pipe).items()
        if one.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ]
    if hasattr(pipe, "blocks"):
        known += inspect.signature(pipe.__call__).parameters
    for name, value in options.items():
        near = difflib.get_close_matches(name, [*known, *ours], 1)
        meant = f"did you mean {near[0]}? " if near else ""
        listed = ", ".join(sorted(set(known) - {"state", "prompt", "kwargs"}))
        shown = value if isinstance(value, (bool, int, float, str)) else type(value).__name__
        remedy = f"{meant}{type(pipe).__name__} has no such option; it has {listed}"
        check(name in known, name, shown, remedy)


def check_guidance(pipe: Pipeline, guidance_scale: float | None) -> None:
    """Raises WrongUse for a guidance scale that the pipeline makes no use of."""
    known, kind = parameters(pipe), type(pipe).__name__
    free = guidance_scale is None or getattr(pipe, "guider", None) is None
    remedy = f"{kind} leaves it aside: give None, and set pipe.guider"
    check(free, "guidance_scale", guidance_scale, remedy)
    if guidance_scale is None or guidance_scale <= 1:
        return
    remedy = f"{kind} has none: give None or 1"
    generic = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    check("guidance_scale" in known or generic, "guidance_scale", guidance_scale, remedy)
    remedy = f"{kind} leaves it aside: give None or 1, and true_cfg_scale with a negative_prompt"
    check(not _ignores_scale(pipe), "guidance_scale", guidance_scale, remedy)


def rows(pipe: Pipeline, guidance_scale: float | None, options: Mapping[str, Any]) -> int:
    """Network evaluations of one step for one prompt."""
    known, guider = parameters(pipe), getattr(pipe, "guider", None)
    if guider is not None:  # as new: at a run's end it may have stopped guiding
        return int(guider.new().num_conditions) if guider.get_state()["enabled"] else 1

    def value(name: str) -> float:
        given = options.get(name, known[name].default if name in known else None)
        return float(given or 0.0)

    if "true_cfg_scale" in known:
        named = (given for name, given in options.items() if name.startswith("negative_prompt"))
        negative = any(given is not None for given in named)  # an empty one is one, too
        return 2 if value("true_cfg_scale") > 1 and negative else 1
    if "guidance_schedule" in known:  # Ideogram 4 makes both predictions at any scale
        return 2
    scale = value("guidance_scale") if guidance_scale is None else guidance_scale
    least = 0 if type(pipe).__name__.startswith(FROM_ZERO) else 1
    guided = scale > least and not embeds_guidance(pipe)
    if "image_guidance_scale" in known:  # InstructPix2Pix
        return 3 if guided and value("image_guidance_scale") >= 1 else 1
    return 1 + guided + (value("pag_scale") > 0)


def per_prompt(pipe: Pipeline, name: str, value: Any, count: int) -> bool:
    """Whether an option has an entry for each of `count` prompts: by its name, then its length."""
    if not name.startswith(PER_PROMPT) or not isinstance(value, (list, Tensor, np.ndarray)):
        return False
    # Several ControlNets take a list of pictures, one for each of them.
    nets = getattr(getattr(pipe, "controlnet", None), "nets", None)
    shared = nets is not None and isinstance(value, list) and "image" in name
    return not shared and len(value) == count > 1


def pictures_of(result: Any) -> Any:
    """The pictures or frames that a pipeline gave back."""
    for name in ("images", "frames"):
        if hasattr(result, name):
            return getattr(result, name)
    return result  # a modular pipeline's, which is asked for them by name


class _Asked(BaseException):
    """A pipeline has come as far as `set_timesteps`. Modular ones log any Exception, many times."""


def asked(scheduler: Any, call: Callable[[Any], Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments with which a pipeline, run by `call` of a scheduler, sets its steps.

    The run stops there: nothing is computed until then but what encodes prompts and given pictures.
    Raises WrongUse where no steps are asked for.
    """
    found: list[tuple[tuple, dict[str, Any]]] = []

    @functools.wraps(type(scheduler).set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        found.append((args, kwargs))
        raise _Asked

    with suppress(_Asked):
        call(intercepted(scheduler, "asked for its steps", set_timesteps=set_timesteps))
    what = f"{type(scheduler).__name__}, which its pipeline asks for no steps"
    check(bool(found), "pipe.scheduler", what, "give a pipeline that calls set_timesteps")
    return found[0]


@contextmanager
def swapped(pipe: Pipeline, **parts: Any) -> Iterator[None]:
    """Within it, a pipeline has other parts."""
    own = {name: getattr(pipe, name) for name in parts}
    for name, part in parts.items():
        setattr(pipe, name, part)
    try:
        yield
    finally:
        for name, part in own.items():
            setattr(pipe, name, part)


def one_step_more(guider: Any) -> Any:
    """A modular pipeline's guider that expects one step more than the pipeline is asked for.

    It does not guide beyond the number that it expects, and a recorder goes on to timestep 0.
    """
    more = copy.copy(guider)

    def set_state(step: int, num_inference_steps: int, timestep: Any) -> None:
        type(guider).set_state(more, step, num_inference_steps + 1, timestep)

    more.set_state = set_state
    return more
