"""A step's guided output as a function of the sample: the recorded network call, made again.

Only g(t) and the adjoint sweep need it. What a pipeline does between its network and its scheduler
is not guessed: a known way of guiding must give back what arrived at the scheduler, or the pipeline
is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.measure.guidance import combination, guidance_scales
from asddim_lib.models.load import Pipeline, networks
from asddim_lib.schedulers.recorder import Visit

#: ε from a sample as the pipeline has it, and the guided output of the network.
Noise = Callable[[Tensor, Tensor], Tensor]
REMEDY = "measure without the network's derivative: estimator='path', adjoint_probes=0"


def check_derivatives(pipe: Pipeline, estimator: str) -> None:
    """Raises WrongUse for a network whose weights can have no derivative taken through them."""
    locked = any(p.is_inference() for part in networks(pipe) for p in part.parameters())
    remedy = "load the pipeline outside torch.inference_mode, or use difference or path"
    what = f"{estimator}, of weights loaded under torch.inference_mode"
    check(not locked, "estimator", what, remedy)


class Capture:
    """Keeps the network's calls since the last visit; while `busy` is true, none."""

    def __init__(self, pipe: Pipeline, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        control = getattr(pipe, "controlnet", None)
        what = f"{type(pipe).__name__}, whose ControlNet sees the sample too"
        check(control is None, "pipe", what, REMEDY)
        self.calls: list[tuple[nn.Module, tuple, dict[str, Any], Tensor]] = []
        self.busy, self.pipe, self.options = False, pipe, options
        self._handles = [
            part.register_forward_hook(self._keep, with_kwargs=True) for part in networks(pipe)
        ]

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if not self.busy:
            self.calls.append((module, args, kwargs, _tensor(output, self.pipe)))

    def remove(self) -> None:
        """Takes the hooks off the networks."""
        for handle in self._handles:
            handle.remove()


class Replay:
    """ε at one recorded visit, as a function of samples (n × …) of the visit's own prompts.

    The samples are `scaled`, as the variance-preserving model with the same σ has them: `factor`
    times them are the pipeline's own. `noise` gives ε. Raises WrongUse for a pipeline whose
    guidance does not come out again.
    """

    def __init__(self, capture: Capture, visit: Visit, noise: Noise, factor: float = 1.0) -> None:
        self._capture, self._visit, self._noise, self._factor = capture, visit, noise, factor
        self._calls, capture.calls = capture.calls, []
        pipe, kind = capture.pipe, type(capture.pipe).__name__
        check(bool(self._calls), "pipe", f"{kind}, without a network call", REMEDY)
        for _, args, kwargs, _ in self._calls:
            self._check_input(kind, _input(args, kwargs))
        outputs = [part for *_, output in self._calls for part in self._parts(output)]
        scales = guidance_scales(pipe, capture.options)
        self._combine = combination(pipe, scales, outputs, visit.model_output, REMEDY)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """ε (the shape of x) at the visit's timestep."""
        sample = x if self._factor == 1 else self._factor * x
        return self._noise(sample, self._combine(list(self._again(sample))))

    def _again(self, sample: Tensor) -> Iterator[Tensor]:
        """The network's outputs for another sample, one for each kind of guidance."""
        self._capture.busy = True
        try:
            for module, args, kwargs, _ in self._calls:
                given = self._filled(sample, _input(args, kwargs))
                args, kwargs = _with_input(args, kwargs, given)
                yield from self._parts(_tensor(module(*args, **kwargs), self._capture.pipe))
        finally:
            self._capture.busy = False

    def _filled(self, x: Tensor, old: Tensor) -> Tensor:
        """The network's input for x: a copy for each kind of guidance, other channels as before."""
        copies = torch.cat([x] * (len(old) // len(x))).to(old.dtype)
        rest = old[:, x.shape[1] :]
        return torch.cat([copies, rest], 1) if rest.shape[1] else copies

    def _parts(self, output: Tensor) -> list[Tensor]:
        """One output for each kind of guidance, without what the pipeline cuts off.

        That is a learned variance, or the tokens of a picture that is edited.
        """
        sample = self._visit.sample
        if output.ndim == sample.ndim:
            output = output[:, : sample.shape[1]]
        return list(output.chunk(max(1, len(output) // len(sample))))

    def _check_input(self, kind: str, given: Any) -> None:
        sample = self._visit.sample
        alike = isinstance(given, Tensor) and given.ndim == sample.ndim
        alike = alike and len(given) % len(sample) == 0
        alike = alike and torch.equal(given, self._filled(sample, given))
        what = f"{kind}, whose network is given other samples than its scheduler"
        check(alike, "pipe", what, REMEDY)


def _input(args: tuple, kwargs: dict[str, Any]) -> Any:
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else kwargs["sample"]


def _with_input(args: tuple, kwargs: dict[str, Any], given: Tensor) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (given, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else "sample"
    return args, {**kwargs, name: given}


def _tensor(output: Any, pipe: Pipeline) -> Tensor:
    """The network's prediction."""
    found = output[0] if isinstance(output, tuple) else output.sample
    what = f"{type(pipe).__name__}, whose network gives back {type(found).__name__}s"
    check(isinstance(found, Tensor), "pipe", what, REMEDY)
    return found
