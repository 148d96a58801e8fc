"""A pretend accelerator without float64, as MPS is, whose numbers are computed on the CPU.

Whole pipelines run on it, backward passes too:

    with no_float64() as device:
        pipe.to(device)

As on a real device, an operation that mixes its tensors with the CPU's is refused, except for
single numbers. A float64 tensor on it is refused too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: What the device is called. No other device without a kernel of its own has a backward pass.
DEVICE = torch.device("meta")


class DeviceTensor(Tensor):
    """A tensor that reports `DEVICE` and keeps its values on the CPU."""

    cpu_values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> DeviceTensor:
        known = {"dtype": values.dtype, "device": DEVICE, "strides": values.stride()}
        known |= {"storage_offset": values.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, values.shape, **known)  # type: ignore[attr-defined]
        made.cpu_values = values
        return made

    def __repr__(self, **how: Any) -> str:
        return f"DeviceTensor({self.cpu_values!r})"

    def tolist(self) -> Any:
        return self.cpu_values.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        return _computed(function, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Factories(TorchDispatchMode):
    """Tensors that are created on `DEVICE` become `DeviceTensor`s."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        return _computed(function, args, kwargs or {})


class _Values(TorchFunctionMode):
    """torch.tensor and its like put values on a device without a dispatched operation."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function not in (torch.tensor, torch.as_tensor, torch.asarray):
            return function(*args, **kwargs)
        given = kwargs.get("device")
        wanted = torch.get_default_device() if given is None else torch.device(given)
        if wanted.type != DEVICE.type:
            return function(*args, **kwargs)
        return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


@contextmanager
def no_float64() -> Iterator[torch.device]:
    """Within it, the pretend device exists. Raises TypeError where float64 reaches it."""
    with _Factories(), _Values():
        yield DEVICE


def _computed(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    given = list(_tensors((*args, *kwargs.values())))
    here = [one for one in given if isinstance(one, DeviceTensor)]
    target = kwargs.get("device")
    target = None if target is None else torch.device(target)
    copies = function in _COPIES
    if here and not copies:
        strangers = [one for one in given if not isinstance(one, DeviceTensor) and one.ndim]
        if strangers and function not in _INDEXES:
            raise RuntimeError(f"{function} mixes the CPU and {DEVICE}")
    if target is not None and target.type == DEVICE.type:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain = {name: _mapped(_plain, value) for name, value in kwargs.items()}
    result = function(*_mapped(_plain, args), **plain)
    if target is not None:
        there = target.type == DEVICE.type
    elif copies:
        there = isinstance(args[0], DeviceTensor)
    else:
        there = bool(here)
    if not there or function in _READS:
        return result
    if function._schema.name.endswith("_") and isinstance(args[0], DeviceTensor):
        return args[0]
    return _mapped(_placed, result)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in an operation's arguments. PyTorch's own search takes most of a test's time."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """A value, or a list or tuple of values, after a function."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(function, one) for one in value)
    return function(value)


def _plain(value: Any) -> Any:
    return value.cpu_values if isinstance(value, DeviceTensor) else value


def _placed(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dtype in (torch.float64, torch.complex128):
        raise TypeError(f"{DEVICE} has no float64")
    return DeviceTensor(value)


aten = torch.ops.aten
_COPIES = (aten.copy_.default, aten._to_copy.default)
_READS = (aten._local_scalar_dense.default, aten.equal.default)
_INDEXES = (aten.index.Tensor, aten.index_put_.default)
