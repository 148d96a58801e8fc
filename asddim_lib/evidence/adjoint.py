"""The adjoint sweep: how an error made along the path arrives at its end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def carry_back(sigmas: Tensor, transpose: Callable[[int, Tensor], Tensor], probe: Tensor) -> Tensor:
    """What the path's end, seen along `probe` (n × d, or more of them, … × n × d), feels of a nudge to y at each of its N points: N × … n × d.

    `sigmas` (N + 1) are the path's; `transpose(k, v)` is (∂ε/∂x)ᵀ v at point k. One sweep against the path's direction: the adjoint of DDIM's
    own steps, y_{k+1} = y_k + (σ_{k+1} − σ_k) ε(y_k / √(1 + σ_k²)).
    """
    felt, found = probe, []
    for k in reversed(range(len(sigmas) - 1)):
        change = float((sigmas[k + 1] - sigmas[k]) / (1 + sigmas[k] ** 2).sqrt())
        felt = felt + change * transpose(k, felt)
        found.append(felt)
    return torch.stack(found[::-1])
