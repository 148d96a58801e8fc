"""A step's guided output as a function of the sample: the recorded network call, made again.

Only g(t) and the adjoint sweep need it. What a pipeline does between its network and its scheduler
is not guessed: a known way of guiding must give back what arrived at the scheduler, or the pipeline
is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from asddim_lib.core.step import predict
from asddim_lib.errors import WrongUse, check
from asddim_lib.models.load import Pipeline, network
from asddim_lib.schedulers.recorder import Visit

Combine = Callable[[list[Tensor]], Tensor]
REMEDY = "measure without the network's derivative: estimator='path', adjoint_probes=0"


def check_derivatives(pipe: Pipeline, estimator: str) -> None:
    """Raises WrongUse for a network whose weights can have no derivative taken through them."""
    locked = any(p.is_inference() for p in network(pipe).parameters())
    remedy = "load the pipeline outside torch.inference_mode, or use difference or path"
    what = f"{estimator}, of weights loaded under torch.inference_mode"
    check(not locked, "estimator", what, remedy)


class Capture:
    """Keeps the network's calls since the last visit; while `busy` is true, none."""

    def __init__(self, pipe: Pipeline) -> None:
        control = getattr(pipe, "controlnet", None)
        what = f"{type(pipe).__name__}, whose ControlNet sees the sample too"
        check(control is None, "pipe", what, REMEDY)
        self.calls: list[tuple[tuple, dict[str, Any], Tensor]] = []
        self.busy = False
        self._handle = network(pipe).register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if not self.busy:
            self.calls.append((args, kwargs, _tensor(output)))

    def remove(self) -> None:
        """Takes the hook off the network."""
        self._handle.remove()


class Replay:
    """ε at one recorded visit, as a function of samples (n × …) of the visit's own prompts.

    Raises WrongUse for a pipeline whose guidance does not come out again.
    """

    def __init__(self, pipe: Pipeline, capture: Capture, visit: Visit, alpha: Tensor) -> None:
        self._capture, self._visit, self._alpha = capture, visit, alpha
        self._network, self._calls = network(pipe), capture.calls
        self._kind = pipe.scheduler.config["prediction_type"]
        capture.calls = []
        check(bool(self._calls), "pipe", f"{type(pipe).__name__}, without a network call", REMEDY)
        for args, kwargs, _ in self._calls:
            self._check_input(pipe, _input(args, kwargs))
        outputs = [part for *_, output in self._calls for part in self._parts(output)]
        self._combine = _combination(pipe, outputs, visit.model_output)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """ε (the shape of x) at the visit's timestep."""
        self._capture.busy = True
        try:
            parts = []
            for args, kwargs, _ in self._calls:
                args, kwargs = _with_input(args, kwargs, self._filled(x, _input(args, kwargs)))
                parts += self._parts(_tensor(self._network(*args, **kwargs)))
            output = self._combine(parts)
        finally:
            self._capture.busy = False
        if self._kind == "epsilon":
            return output
        return predict(x, output, self._alpha, self._kind)[1]

    def _filled(self, x: Tensor, old: Tensor) -> Tensor:
        """The network's input for x: a copy for each kind of guidance, other channels as before."""
        copies = torch.cat([x] * (len(old) // len(x))).to(old.dtype)
        rest = old[:, x.shape[1] :]
        return torch.cat([copies, rest], 1) if rest.shape[1] else copies

    def _parts(self, output: Tensor) -> list[Tensor]:
        sample = self._visit.sample
        if output.shape[1] == 2 * sample.shape[1]:  # a learned variance follows the prediction
            output = output[:, : sample.shape[1]]
        return list(output.chunk(len(output) // len(sample)))

    def _check_input(self, pipe: Pipeline, given: Tensor) -> None:
        sample = self._visit.sample
        alike = given.ndim == sample.ndim and len(given) % len(sample) == 0
        alike = alike and torch.equal(given, self._filled(sample, given))
        what = f"{type(pipe).__name__}, whose network is given other samples than its scheduler"
        check(alike, "pipe", what, REMEDY)


def _combination(pipe: Pipeline, parts: list[Tensor], arrived: Tensor) -> Combine:
    """The way of guiding that gives what arrived at the scheduler."""
    scale = float(getattr(pipe, "guidance_scale", 1.0) or 0.0)
    known: list[Combine] = [lambda p: p[0]] if len(parts) == 1 else []
    if len(parts) == 2:
        rescale = float(getattr(pipe, "guidance_rescale", 0.0) or 0.0)
        known.append(lambda p: p[0] + scale * (p[1] - p[0]))
        known.append(lambda p: rescale_noise_cfg(known[0](p), p[1], rescale))
    if len(parts) == 3 and hasattr(pipe, "image_guidance_scale"):  # InstructPix2Pix
        image = float(pipe.image_guidance_scale)
        known.append(lambda p: p[2] + scale * (p[0] - p[1]) + image * (p[1] - p[2]))
    for combine in known:
        if _near(combine(parts), arrived):
            return combine
    kind = type(pipe).__name__
    raise WrongUse(f"pipe is {kind}, whose way of guiding is not known here; {REMEDY}")


def _near(output: Tensor, arrived: Tensor) -> bool:
    if output.shape != arrived.shape:
        return False
    rounding = 1e-4 if arrived.dtype == torch.float32 else 2e-2
    apart = (output.double() - arrived.double()).norm()
    return bool(apart <= rounding * arrived.double().norm())


def _input(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else kwargs["sample"]


def _with_input(args: tuple, kwargs: dict[str, Any], given: Tensor) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (given, *args[1:]), kwargs
    name = "hidden_states" if "hidden_states" in kwargs else "sample"
    return args, {**kwargs, name: given}


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.sample
