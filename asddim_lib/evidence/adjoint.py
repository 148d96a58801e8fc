"""The adjoint sweep: how an error made along the path arrives at its end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def carry_back(sigmas: Tensor, transpose: Callable[[int, Tensor], Tensor], probe: Tensor) -> Tensor:
    """The gradient of ⟨probe, y_end⟩ with respect to y at each point of the path: N × … n × d.

    `sigmas` (N + 1) are the path's noise levels, and `transpose(k, v)` is (∂ε/∂x)ᵀ v at point k.
    `probe` is n × d, or … × n × d for several at once. One sweep against the path's direction: the
    adjoint of DDIM's own steps, y_{k+1} = y_k + (σ_{k+1} − σ_k) ε(y_k / √(1 + σ_k²)).
    """
    adjoint, reverse = probe, []
    for k in reversed(range(len(sigmas) - 1)):
        change = float((sigmas[k + 1] - sigmas[k]) / (1 + sigmas[k] ** 2).sqrt())
        adjoint = adjoint + change * transpose(k, adjoint)
        reverse.append(adjoint)
    return torch.stack(reverse[::-1])
