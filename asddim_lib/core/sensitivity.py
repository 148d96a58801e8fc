"""How sensitive the network is to its input, g(t) = ‖∂ε/∂x‖ (Eq 8): the estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from asddim_lib.errors import check

#: The estimators of each norm, and the network evaluations that one probe costs; a backward or forward derivative counts as two.
COST = {"frobenius": {"vjp": 3, "jvp": 3, "difference": 2}, "spectral": {"power": 6}}
Network = Callable[[Tensor, Tensor], Tensor]
#: One generator for all samples, or one a sample: then a sample's probes do not depend on what else is in the batch.
Generator = torch.Generator | list[torch.Generator] | None


def gradient_norm(
    eps: Network,
    x: Tensor,
    t: Tensor,
    *,
    norm: str = "frobenius",
    estimator: str | None = None,
    probes: int = 1,
    generator: Generator = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The norm of ∂ε/∂x at each sample (Eq 8), and its standard error; both of shape (n,), float64.

    `eps(x, t)` maps samples (n × …) and timesteps (n, or one for all) to noise of the samples' shape, each sample on its own; no more than
    `batch_size` samples are given to it at once. The Frobenius norm comes from `probes` random sign vectors v, since E‖Jᵀv‖² = E‖Jv‖² =
    ‖J‖_F² (Hutchinson): `vjp` (the default) takes Jᵀv from a backward pass, `jvp` takes Jv from a forward derivative, `difference` takes Jv
    from a central difference. Its error is infinite for a single probe. The spectral norm comes from `probes` rounds of power iteration
    (`power`), which approach it from below; its error is what the last round still changed, infinite for a single one.
    Raises ValueError for an unknown norm or estimator, and when the network returns a number that is not finite.
    """
    check(norm in COST, "norm", norm, f"use one of {', '.join(COST)}")
    chosen = estimator or next(iter(COST[norm]))
    check(
        chosen in COST[norm],
        "estimator",
        estimator or "",
        f"for the {norm} norm use one of {', '.join(COST[norm])}",
    )
    check(probes >= 1, "probes", probes, "give at least 1")
    check(
        batch_size is None or batch_size >= 1,
        "batch_size",
        batch_size,
        "give at least 1, or None for all samples at once",
    )
    if batch_size is not None and len(x) > batch_size:
        times = t.expand(len(x)) if t.ndim == 0 or len(t) == 1 else t
        found = []
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            one = generator[part] if isinstance(generator, list) else generator
            found.append(
                gradient_norm(
                    eps,
                    x[part],
                    times[part],
                    norm=norm,
                    estimator=chosen,
                    probes=probes,
                    generator=one,
                )
            )
        return torch.cat([value for value, _ in found]), torch.cat([error for _, error in found])
    value, error = (
        _power(eps, x, t, probes, generator)
        if chosen == "power"
        else _hutchinson(eps, x, t, PRODUCTS[chosen], probes, generator)
    )
    check(
        bool(value.isfinite().all()),
        "eps",
        "not finite",
        f"the network failed at timestep {t.flatten()[0].item():g}; look at x there",
    )
    return value, error


def _hutchinson(
    eps: Network, x: Tensor, t: Tensor, product: Callable, probes: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    squares = []
    for _ in range(probes):
        v = _draw(
            lambda shape, one: torch.randint(0, 2, shape, generator=one, dtype=torch.int8) * 2 - 1,
            x,
            generator,
        )
        squares.append(_length(product(eps, x, t, v)) ** 2)
    found = torch.stack(squares)
    value = found.mean(0).sqrt()
    spread = found.std(0) / probes**0.5 if probes > 1 else torch.full_like(value, torch.inf)
    return value, spread / (2 * value)


def _power(
    eps: Network, x: Tensor, t: Tensor, rounds: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    v = _draw(lambda shape, one: torch.randn(shape, generator=one), x, generator)
    value = before = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for _ in range(rounds):
        before = value
        u = _jvp(eps, x, t, _unit(v))
        value = _length(u)
        v = _vjp(eps, x, t, _unit(u))
    return value, (value - before).abs()


def _draw(random: Callable, x: Tensor, generator: Generator) -> Tensor:
    if isinstance(generator, list):
        return torch.cat([random((1, *x.shape[1:]), one) for one in generator]).to(x)
    return random(x.shape, generator).to(x)


def _length(v: Tensor) -> Tensor:
    return v.double().flatten(1).norm(dim=1)


def _unit(v: Tensor) -> Tensor:
    return (v / _length(v).clamp(min=1e-300).reshape(-1, *[1] * (v.ndim - 1))).to(v.dtype)


# The math kernel of attention has every derivative on every device; fused ones have not. sdpa_kernel restores what was chosen before.


def _vjp(eps: Network, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(eps(leaf, t), leaf, v)[0]


def _jvp(eps: Network, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _PlainGroupNorm(), forward_ad.dual_level():
        return forward_ad.unpack_dual(eps(forward_ad.make_dual(x.detach(), v), t)).tangent


class _PlainGroupNorm(TorchFunctionMode):
    """PyTorch's forward derivative of group norm takes a view that channels-last activations do not allow: they are laid out plainly."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in (torch.group_norm, nn.functional.group_norm):
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def _difference(eps: Network, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    # The cube root of the machine's precision balances truncation against rounding; a quarter of it is where half precision, too, is right
    # to a hundredth at low noise. What is divided by is the step that was really made, which rounding has changed.
    h = torch.finfo(x.dtype).eps ** (1 / 3) / 4 * max(1.0, float(x.double().square().mean().sqrt()))
    exact = torch.promote_types(x.dtype, torch.float32)
    ahead, behind = x + h * v, x - h * v
    made = (ahead.to(exact) - behind.to(exact)).square().mean().sqrt()
    with torch.no_grad():
        return (eps(ahead, t).to(exact) - eps(behind, t).to(exact)) / made


PRODUCTS = {"vjp": _vjp, "jvp": _jvp, "difference": _difference}
