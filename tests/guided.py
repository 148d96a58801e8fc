"""Pipelines of the zoo at a guidance scale, and the rows that their networks make."""

import functools

from asddim_lib.models.load import networks
from tests import zoo
from tests.zoo.first import count


def at_scale(one, scale, **how):
    """What an entry's pipeline draws at a guidance scale of its own, u + scale · (c − u)."""
    options = one.options
    if "true_cfg_scale" in options:
        return zoo.draw(one.pipe, {**options, "true_cfg_scale": scale}, **how)
    if getattr(one.pipe, "guider", None) is not None:
        own, one.pipe.guider = one.pipe.guider, type(one.pipe.guider)(guidance_scale=scale)
        try:
            return zoo.draw(one.pipe, options, **how)
        finally:
            one.pipe.guider = own
    added = 1 if type(one.pipe).__name__.startswith("ZImage") else 0
    if "guidance_scale_2" in options:
        options = {**options, "guidance_scale_2": scale}
    return zoo.draw(one.pipe, options, guidance_scale=scale - added, **how)


class Counted:
    """The rows that a pipeline's networks really make: counted where they are made."""

    def __init__(self, pipe):
        self.parts, self.rows = networks(pipe), 0

    def __enter__(self):
        for part in self.parts:
            own = part.forward

            @functools.wraps(own)
            def forward(*args, _own=own, **kwargs):
                output = _own(*args, **kwargs)
                self.rows += count(output)
                return output

            part.forward = forward
        return self

    def __exit__(self, *_):
        for part in self.parts:
            del part.forward
