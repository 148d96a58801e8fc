"""A faster pipeline: its UNet in bfloat16, its samples in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.models.load import Pipeline


class QuickNetwork(nn.Module):
    """A UNet that computes in bfloat16, with float32 inputs and outputs.

    All other attributes are the network's own. To diffusers it is one of the network's class, and
    is saved as that.
    """

    def __init__(self, network: nn.Module, compiled: bool = False) -> None:
        super().__init__()
        self.network = nn.Module.to(network, torch.bfloat16)
        self.__module__ = type(network).__module__  # where a saved pipeline finds the class
        self._call = torch.compile(self.network) if compiled else self.network

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The network's, by which diffusers chooses how to save it."""
        return type(self.network)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        """The UNet's output, of the same class or tuple, in float32."""
        output = self._call(_halved(sample), timestep, *_halved(args), **_halved(kwargs))
        if isinstance(output, tuple):
            return (output[0].float(),)
        return type(output)(sample=output.sample.float())


def _halved(value: Any) -> Any:
    """What a UNet is given, with features in bfloat16, also within lists and dicts.

    SDXL's sizes (`time_ids`) are whole numbers, which that would round.
    """
    if isinstance(value, Tensor):
        return value.bfloat16() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {n: part if n.endswith("time_ids") else _halved(part) for n, part in value.items()}
    return type(value)(map(_halved, value)) if isinstance(value, (list, tuple)) else value


def quicken(pipe: Pipeline, *, compiled: bool = False) -> Pipeline:
    """Changes the pipeline in place, so that its UNet computes in bfloat16, and returns it.

    Everything else, a ControlNet too and above all the samples, stays in float32, so that rounding
    errors do not add up over steps. This pays on GPUs, and on CPUs with AVX-512-BF16 or AMX (see
    `lscpu`). `compiled` also compiles the UNet, which takes about a minute and needs a C++ compiler
    on a CPU; it pays from some hundred pictures on. Raises WrongUse for a pipeline without a UNet.
    """
    has_unet = getattr(pipe, "unet", None) is not None
    check(has_unet, "pipe", type(pipe).__name__, "give a pipeline with a UNet")
    pipe.unet = QuickNetwork(pipe.unet, compiled)
    return pipe
