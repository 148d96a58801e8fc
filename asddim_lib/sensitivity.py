"""How sensitive the network is to its input: ‖∂ε/∂x‖ (Eq 8), and its largest eigenvalue."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from asddim_lib.errors import WrongUse, check

#: The estimators of each norm, with the network evaluations that one probe costs. A backward pass
#: or a forward derivative counts as two.
COST = {"frobenius": {"vjp": 3, "jvp": 3, "difference": 2}, "spectral": {"power": 6}}
Network = Callable[[Tensor, Tensor], Tensor]
#: One generator for all samples, or one per sample, so that a sample's probes do not depend on the
#: rest of the batch.
Generator = torch.Generator | list[torch.Generator] | None


def gradient_norm(
    eps: Network,
    x: Tensor,
    t: Tensor | float,
    *,
    norm: str = "frobenius",
    estimator: str | None = None,
    probes: int = 1,
    generator: Generator = None,
    batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The norm of ∂ε/∂x at each sample (Eq 8), and its standard error: (n,), float64, on the CPU.

    `eps(x, t)` maps samples (n × …) and timesteps to noise of the samples' shape, each sample
    independently. `t` is one number for all samples, or n of them. At most `batch_size` samples
    are passed to `eps` at once.

    The Frobenius norm uses `probes` random sign vectors v, since E‖Jᵀv‖² = E‖Jv‖² = ‖J‖_F²
    (Hutchinson). `vjp`, the default, computes Jᵀv by a backward pass; `jvp` computes Jv by a
    forward derivative; `difference` approximates Jv by a central difference. The standard error
    of a single probe is infinite. The spectral norm uses `probes` rounds of power iteration
    (`power`), which approach it from below; its error is the change in the last round, infinite
    for a single one.

    Raises WrongUse for an unknown norm or estimator, for a number of timesteps that fits neither
    one nor n, and when the network returns a number that is not finite.
    """
    check(norm in COST, "norm", norm, f"use one of {', '.join(COST)}")
    method = estimator or next(iter(COST[norm]))
    remedy = f"for the {norm} norm use one of {', '.join(COST[norm])}"
    check(method in COST[norm], "estimator", method, remedy)
    check(probes >= 1, "probes", probes, "give at least 1")
    remedy = "give at least 1, or None for all samples at once"
    check(batch_size is None or batch_size >= 1, "batch_size", batch_size, remedy)
    t = _timesteps(t, x)
    if batch_size is None or len(x) <= batch_size:
        return _estimate(eps, x, t, method, probes, generator)
    times = t if t.numel() == len(x) else t.expand(len(x))
    batches = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    results = []
    for part in batches:
        own = generator[part] if isinstance(generator, list) else generator
        results.append(_estimate(eps, x[part], times[part], method, probes, own))
    values, errors = zip(*results, strict=True)
    return torch.cat(values), torch.cat(errors)


def largest_eigenvalue(
    eps: Network,
    x: Tensor,
    t: Tensor | float,
    *,
    probes: int = 6,
    generator: Generator = None,
) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue of ∂ε/∂x at each sample, and its direction.

    (n,), real parts in float64 on the CPU; and unit vectors of the samples' shape. Arguments are
    those of `gradient_norm`. From a random vector, J = ∂ε/∂x is applied `probes` times by
    central differences, two network evaluations each, and J is restricted to the space that these
    vectors span (Arnoldi 1951). It is J itself and not JᵀJ, whose eigenvalues are squares: a step
    is unstable in a direction of a large positive eigenvalue, and not in one of a negative one.
    Power iteration finds whichever is larger in size, and needs more products.

    Raises WrongUse for no probe, for a number of timesteps that fits neither one nor n, and when
    the network returns a number that is not finite.
    """
    check(probes >= 1, "probes", probes, "give at least 1")
    t, size = _timesteps(t, x), x[0].numel()
    root = size**0.5  # a central difference takes vectors with entries of about 1
    vector = _unit(_draw(_normal, x, generator).flatten(1).cpu().double())
    basis, images = [], []
    for _ in range(min(probes, size)):
        basis.append(vector)
        asked = torch.where(vector.any(1, keepdim=True), vector, basis[0])
        direction = (root * asked).reshape(x.shape).to(x.dtype).to(x.device)
        images.append(_difference(eps, x, t, direction).flatten(1).cpu().double() / root)
        vector = images[-1]
        for _ in range(2):  # once more, for what rounding has left
            for known in basis:
                vector = vector - (vector * known).sum(1, keepdim=True) * known
        # Where the space is complete the rest is rounding, and 0 marks it.
        rest = _length(vector) > 1e-6 * _length(images[-1])
        vector = torch.where(rest[:, None], _unit(vector), 0.0)
    _check_finite(torch.stack(images), t)
    space = torch.stack(basis, 1)
    restricted = space @ torch.stack(images, 2)
    values, directions = [], []
    for matrix, vectors in zip(restricted, space, strict=True):
        alive = vectors.any(1)
        found, columns = torch.linalg.eig(matrix[alive][:, alive])
        best = int(found.real.argmax())
        values.append(found.real[best])
        directions.append(columns[:, best].real @ vectors[alive])
    return torch.stack(values), _unit(torch.stack(directions)).reshape(x.shape)


def _timesteps(t: Any, x: Tensor) -> Tensor:
    """A number or an array as a tensor on the samples' device; a tensor stays as it is."""
    if not isinstance(t, Tensor):
        t = torch.as_tensor(t, device="cpu")
        # Single precision, as Python's own floats become: some devices have no float64.
        t = (t.float() if t.is_floating_point() else t).to(x.device)
    fits = t.ndim == 0 or (t.ndim == 1 and len(t) in (1, len(x)))
    check(fits, "t", f"of shape {tuple(t.shape)}", f"give one timestep, or {len(x)} of them")
    return t


def _estimate(
    eps: Network, x: Tensor, t: Tensor, method: str, probes: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    try:
        if method == "power":
            value, error = _power(eps, x, t, probes, generator)
        else:
            value, error = _hutchinson(eps, x, t, PRODUCTS[method], probes, generator)
    except RuntimeError as cause:
        if "inference tensor" not in str(cause).lower():
            raise
        reason = f"{method!r}, but eps uses tensors made under torch.inference_mode()"
        remedy = "make them outside of it, or use estimator='difference'"
        raise WrongUse(f"estimator is {reason}; {remedy}") from cause
    _check_finite(value, t)
    return value, error


def _check_finite(values: Tensor, t: Tensor) -> None:
    remedy = f"the network failed at timestep {t.flatten()[0].item():g}; look at x there"
    check(bool(values.isfinite().all()), "eps", "not finite", remedy)


def _hutchinson(
    eps: Network, x: Tensor, t: Tensor, product: Callable, probes: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    squares = torch.stack(
        [_length(product(eps, x, t, _draw(_signs, x, generator))) ** 2 for _ in range(probes)]
    )
    value = squares.mean(0).sqrt()
    # The delta method: the standard error of a root is that of its square over twice the root.
    deviation = squares.std(0) if probes > 1 else torch.full_like(value, torch.inf)
    return value, deviation / probes**0.5 / (2 * value)


def _power(
    eps: Network, x: Tensor, t: Tensor, rounds: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    v = _draw(_normal, x, generator)
    value = before = torch.full((len(x),), torch.inf, dtype=torch.float64, device="cpu")
    for _ in range(rounds):
        before = value
        u = _jvp(eps, x, t, _unit(v))
        value = _length(u)
        v = _vjp(eps, x, t, _unit(u))
    return value, (value - before).abs()


def _signs(shape: Any, generator: torch.Generator | None, device: Any) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8, device=device) * 2 - 1


def _normal(shape: Any, generator: torch.Generator | None, device: Any) -> Tensor:
    return torch.randn(shape, generator=generator, device=device)


def _draw(random: Callable, x: Tensor, generator: Generator) -> Tensor:
    if isinstance(generator, list):
        return torch.cat([_draw(random, x[:1], one) for one in generator])
    return random(x.shape, generator, generator.device if generator else "cpu").to(x)


def _length(v: Tensor) -> Tensor:
    """Each sample's length, on the CPU: some devices have no float64."""
    return v.flatten(1).cpu().double().norm(dim=1)


def _unit(v: Tensor) -> Tensor:
    exact = torch.promote_types(v.dtype, torch.float32)
    length = _length(v).clamp(min=torch.finfo(exact).tiny).to(exact).to(v.device)
    return (v / length.reshape(-1, *[1] * (v.ndim - 1))).to(v.dtype)


def _vjp(eps: Network, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    with _differentiable(), torch.enable_grad():
        x, t, v = (_ordinary(tensor) for tensor in (x, t, v))
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(eps(leaf, t), leaf, v)[0]


def _jvp(eps: Network, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    with _differentiable(), torch.no_grad(), _PlainGroupNorm(), forward_ad.dual_level():
        x, t, v = (_ordinary(tensor) for tensor in (x, t, v))
        return forward_ad.unpack_dual(eps(forward_ad.make_dual(x.detach(), v), t)).tangent


@contextlib.contextmanager
def _differentiable() -> Iterator[None]:
    """Makes every operation differentiable, within inference mode too."""
    clone = _CloneInference() if torch.is_inference_mode_enabled() else contextlib.nullcontext()
    # The math kernel of attention has every derivative on every device; fused kernels have not.
    # sdpa_kernel restores the caller's choice.
    with torch.inference_mode(False), sdpa_kernel(SDPBackend.MATH), clone:
        yield


def _ordinary(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


class _CloneInference(TorchFunctionMode):
    """Clones tensors made in inference mode, such as text embeddings, before autograd uses them."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        args, kwargs = tree_map_only(Tensor, _ordinary, (args, kwargs or {}))
        return func(*args, **kwargs)


class _PlainGroupNorm(TorchFunctionMode):
    """Makes the input of a group norm contiguous.

    PyTorch's forward derivative takes a view that channels-last activations do not allow.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in (torch.group_norm, nn.functional.group_norm):
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def _difference(eps: Network, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    # The cube root of the machine precision balances truncation against rounding. A quarter of it
    # also keeps half precision right to a hundredth at low noise.
    exact = torch.promote_types(x.dtype, torch.float32)
    size = max(1.0, float(x.to(exact).square().mean().sqrt()))
    h = torch.finfo(x.dtype).eps ** (1 / 3) / 4 * size
    ahead, behind = x + h * v, x - h * v
    # Rounding has changed the step: the divisor is its actual length.
    length = (ahead.to(exact) - behind.to(exact)).square().mean().sqrt()
    with torch.no_grad():
        return (eps(ahead, t).to(exact) - eps(behind, t).to(exact)) / length


PRODUCTS = {"vjp": _vjp, "jvp": _jvp, "difference": _difference}
