"""A step's guided output as a function of the sample: the recorded network calls, made again.

Only g(t) and the adjoint sweep need it. A known formula of guidance must give back what arrived at
the scheduler from the network's outputs; where none does, the pipeline is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from asddim_lib.errors import check
from asddim_lib.guidance.formula import formula_of, guidance_scales, near, predictions
from asddim_lib.models.load import Pipeline, device_of, networks

#: ε from a sample as the pipeline has it, and the guided output of the network.
Noise = Callable[[Tensor, Tensor], Tensor]
REMEDY = "measure without the network's derivative: estimator='path', adjoint_probes=0"
#: How far a repeated call may lie from the first, relative: guidance enlarges rounding.
TOLERANCE = {torch.float64: 1e-2, torch.float32: 1e-2}


class Visit(NamedTuple):
    """One step of a run.

    `timestep` is the number of its level, `sigma` the ratio of noise to signal there. `sample` and
    the guided `model_output` are as the pipeline has them; `epsilon` is the noise in the sample.
    `scaled` is the sample of the variance-preserving model with the same σ.
    """

    timestep: int
    sigma: float
    sample: Tensor
    model_output: Tensor
    epsilon: Tensor
    scaled: Tensor


def check_replay(pipe: Pipeline, estimator: str) -> None:
    """Raises WrongUse, before any work, where an estimator cannot repeat the network's calls.

    `estimator` is one of calibrate's, or adjoint for the sweeps, which take derivatives backward.
    """
    parts = replayed(pipe)
    layers = [layer for part in parts for layer in part.modules()]
    # diffusers' caches answer by the calls before, in a context that only a pipeline opens.
    cached = any(getattr(h, "_is_stateful", False) for one in layers for h in _hooks(one).values())
    remedy = f"switch it off (pipe.transformer.disable_cache()), or {REMEDY}"
    check(
        not cached, "estimator", f"{estimator}, of a network with one of diffusers' caches", remedy
    )
    if estimator == "difference":
        return
    locked = any(p.is_inference() for part in parts for p in part.parameters())
    remedy = "load the pipeline outside torch.inference_mode, or use difference or path"
    what = f"{estimator}, of weights loaded under torch.inference_mode"
    check(not locked, "estimator", what, remedy)
    device = device_of(pipe).type
    cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    remedy = f"leave autocast and load the dtype that it gives, or {REMEDY}"
    check(not cast, "estimator", f"{estimator}, under torch.autocast", remedy)
    stored = any(isinstance(one, _ConvNd) and "layerwise_casting" in _hooks(one) for one in layers)
    what = f"{estimator}, through convolutions whose weights are stored in another dtype"
    remedy = "use the estimator jvp or difference without adjoint_probes and feature_probes"
    check(not stored or estimator == "jvp", "estimator", what, f"{remedy}, or {REMEDY}")


def _hooks(layer: nn.Module) -> Mapping[str, Any]:
    """diffusers' hooks on a layer, by name."""
    return getattr(vars(layer).get("_diffusers_hook"), "hooks", {})


def replayed(pipe: Pipeline) -> list[Any]:
    """All modules that see the sample in a step: the networks, and a ControlNet."""
    control = getattr(pipe, "controlnet", None)
    return [*networks(pipe), *([] if control is None else [control])]


class Call(NamedTuple):
    """A call of a network or a ControlNet, and its output.

    `answers` names the arguments that are outputs of the ControlNet's call `control`, with their
    places there.
    """

    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    output: Any
    control: Call | None = None
    answers: Mapping[str, int] = MappingProxyType({})

    @property
    def sample(self) -> Any:
        """The sample that the module was given."""
        return self.args[0] if self.args else self.kwargs[self._name]

    def again(self, sample: Any, **changes: Any) -> Any:
        """The module's output for another sample, and with other arguments."""
        kwargs = {**self.kwargs, **changes}
        if self.args:
            return self.module(sample, *self.args[1:], **kwargs)
        return self.module(**{**kwargs, self._name: sample})

    @property
    def _name(self) -> str:
        return "hidden_states" if "hidden_states" in self.kwargs else "sample"


class Capture:
    """Keeps the network's calls since the last visit; while `busy` is true, none."""

    def __init__(self, pipe: Pipeline, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.calls: list[Call] = []
        self.busy, self.pipe, self.options = False, pipe, options
        self._control: Call | None = None
        self._handles = [
            part.register_forward_hook(self._keep, with_kwargs=True) for part in replayed(pipe)
        ]

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self.busy:
            return
        call = Call(module, args, kwargs, output)
        if module is getattr(self.pipe, "controlnet", None):
            self._control = call
            return
        if self._control is not None:
            call = call._replace(control=self._control, answers=self._answers(kwargs))
        self.calls.append(call._replace(output=_tensor(output, self.pipe)))

    def _answers(self, kwargs: dict[str, Any]) -> dict[str, int]:
        """Which arguments of the network are the ControlNet's outputs. Raises unless all are."""
        assert self._control is not None
        given = [(n, part) for n, part in enumerate(self._control.output) if part is not None]
        found = {name: n for name, value in kwargs.items() for n, part in given if part is value}
        what = f"{type(self.pipe).__name__}, which changes what its ControlNet answers"
        check(len(found) == len(given), "pipe", what, REMEDY)
        return found

    def take(self) -> list[Call]:
        """The calls since the last visit, which are then forgotten."""
        calls, self.calls, self._control = self.calls, [], None
        return calls

    def remove(self) -> None:
        """Takes the hooks off the networks."""
        for handle in self._handles:
            handle.remove()


class Replay:
    """ε at one recorded visit, as a function of samples (n × …) of the visit's prompts.

    The samples are `scaled`, as the variance-preserving model with the same σ has them: `factor`
    times them are the pipeline's own. `noise` gives ε, and `formula` is that of the guidance.
    Raises WrongUse for a pipeline whose guidance is not known, or whose network's output differs
    when it is called again.
    """

    def __init__(self, capture: Capture, visit: Visit, noise: Noise, factor: float = 1.0) -> None:
        self._capture, self._visit, self._noise, self._factor = capture, visit, noise, factor
        pipe, self._calls = capture.pipe, capture.take()
        self._kind = type(pipe).__name__
        # That of the weights: a quick network's samples are in float32 all the same.
        self._dtype = next(networks(pipe)[0].parameters()).dtype
        check(bool(self._calls), "pipe", f"{self._kind}, without a network call", REMEDY)
        controls = [call.control for call in self._calls if call.control is not None]
        for call in (*self._calls, *controls):
            what = f"{self._kind}, whose network is given other samples than its scheduler"
            check(self._was_given(call.sample), "pipe", what, REMEDY)
        outputs = [p for call in self._calls for p in predictions(call.output, visit.sample)]
        scales = guidance_scales(pipe, capture.options)
        self.formula = formula_of(pipe, scales, outputs, visit.model_output, REMEDY)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """ε (the shape of x) at the visit's timestep."""
        sample = x if self._factor == 1 else self._factor * x
        noise = self._noise(sample, self.formula.combine(list(self._again(sample))))
        known = self._visit
        if torch.equal(x.detach(), known.scaled):
            same = near(noise.detach(), known.epsilon, TOLERANCE.get(self._dtype, 0.5))
            what = f"{self._kind}, whose network answers otherwise when it is asked again"
            check(same, "pipe", what, REMEDY)
        return noise

    def _again(self, sample: Tensor) -> Iterator[Tensor]:
        """The network's outputs for another sample, one for each kind of guidance."""
        self._capture.busy = True
        try:
            for call in self._calls:
                changes = {}
                if call.control is not None:
                    answer = call.control.again(self._filled(sample, call.control.sample))
                    changes = {name: answer[place] for name, place in call.answers.items()}
                output = call.again(self._filled(sample, call.sample), **changes)
                yield from predictions(_tensor(output, self._capture.pipe), self._visit.sample)
        finally:
            self._capture.busy = False

    def _filled(self, x: Tensor, old: Any) -> Any:
        """The network's input for x: a copy for each kind of guidance, other channels as before.

        Z-Image's is a list of pictures, each with a dimension for frames.
        """
        copies = torch.cat([x] * (len(old) // len(x)))
        if isinstance(old, list):
            return [one.reshape(like.shape).to(like) for one, like in zip(copies, old, strict=True)]
        rest = old[:, x.shape[1] :]
        return torch.cat([copies.to(old.dtype), rest], 1) if rest.shape[1] else copies.to(old.dtype)

    def _was_given(self, given: Any) -> bool:
        """Whether a network's input is the visit's sample, in copies."""
        sample = self._visit.sample
        if isinstance(given, list):
            fits = all(isinstance(p, Tensor) and p.numel() == sample[0].numel() for p in given)
        else:
            fits = isinstance(given, Tensor) and given.ndim == sample.ndim
        if not fits or len(given) % len(sample) != 0:
            return False
        pairs = zip(given, self._filled(sample, given), strict=True)
        return all(torch.equal(old, new) for old, new in pairs)


def _tensor(output: Any, pipe: Pipeline) -> Tensor:
    """The network's prediction; a list of pictures as one tensor."""
    found = output[0] if isinstance(output, tuple) else output.sample
    if isinstance(found, list) and found and all(isinstance(part, Tensor) for part in found):
        found = torch.stack(found)
    what = f"{type(pipe).__name__}, whose network gives back {type(found).__name__}s"
    check(isinstance(found, Tensor), "pipe", what, REMEDY)
    return found
