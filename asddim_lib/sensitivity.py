"""How sensitive the network is to its input, g(t) = ‖∂ε/∂x‖ (Eq 8): estimators, and the profile that keeps what was measured."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from asddim_lib.allocation import fit_paper
from asddim_lib.errors import check
from asddim_lib.files import write_whole
from asddim_lib.noise import NoiseSchedule
from asddim_lib.path import spread

SCHEMA = 3
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
    check(chosen in COST[norm], "estimator", estimator or "", f"for the {norm} norm use one of {', '.join(COST[norm])}")
    check(probes >= 1, "probes", probes, "give at least 1")
    check(batch_size is None or batch_size >= 1, "batch_size", batch_size, "give at least 1, or None for all samples at once")
    if batch_size is not None and len(x) > batch_size:
        times = t.expand(len(x)) if t.ndim == 0 or len(t) == 1 else t
        found = []
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            one = generator[part] if isinstance(generator, list) else generator
            found.append(gradient_norm(eps, x[part], times[part], norm=norm, estimator=chosen, probes=probes, generator=one))
        return torch.cat([value for value, _ in found]), torch.cat([error for _, error in found])
    value, error = _power(eps, x, t, probes, generator) if chosen == "power" else _hutchinson(eps, x, t, PRODUCTS[chosen], probes, generator)
    check(bool(value.isfinite().all()), "eps", "not finite", f"the network failed at timestep {t.flatten()[0].item():g}; look at x there")
    return value, error


def _hutchinson(eps: Network, x: Tensor, t: Tensor, product: Callable, probes: int, generator: Generator) -> tuple[Tensor, Tensor]:
    squares = []
    for _ in range(probes):
        v = _draw(lambda shape, one: torch.randint(0, 2, shape, generator=one, dtype=torch.int8) * 2 - 1, x, generator)
        squares.append(_length(product(eps, x, t, v)) ** 2)
    found = torch.stack(squares)
    value = found.mean(0).sqrt()
    spread = found.std(0) / probes**0.5 if probes > 1 else torch.full_like(value, torch.inf)
    return value, spread / (2 * value)


def _power(eps: Network, x: Tensor, t: Tensor, rounds: int, generator: Generator) -> tuple[Tensor, Tensor]:
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

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
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


@dataclass(frozen=True)
class SensitivityProfile:
    """g(t) as measured on a model's own sampling path: values and standard errors at some timesteps, how they were made, and how many network
    evaluations that cost (a derivative counts as two, guidance doubles).

    `local_error`, where it was measured, has the path's N timesteps and, by a solver's order, how many steps each of the N − 1 stretches
    between them deserves: `made` for the error as it is made, `carried` for what of it reaches the picture.
    """

    timesteps: list[int]
    g: list[float]
    stderr: list[float]
    norm: str
    estimator: str
    probes: int
    samples: int
    seed: int
    guidance_scale: float
    model: str
    schedule: str
    evaluations: int
    local_error: dict[str, Any] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        g = np.asarray(self.g, np.float64)
        check(self.schema == SCHEMA, "profile schema", self.schema, f"this version reads {SCHEMA}; calibrate again")
        check(len(self.timesteps) == len(g) == len(self.stderr) > 0, "profile", "uneven or empty lists", "calibrate again")
        check(bool(np.all(np.isfinite(g) & (g > 0))), "profile g", "not all finite and positive", "calibrate again")
        check(list(self.timesteps) == sorted(set(self.timesteps), reverse=True), "profile timesteps", "unsorted", "calibrate again")

    def at(self, schedule: NoiseSchedule) -> np.ndarray:
        """g at every training timestep, log-linear between the measured ones and constant beyond them.

        Raises ValueError when the profile was made on another noise schedule.
        """
        check(self.schedule == fingerprint(schedule), "profile", "made on another noise schedule", "calibrate on this scheduler")
        known = np.asarray(self.timesteps[::-1])
        return np.exp(np.interp(np.arange(len(schedule)), known, np.log(self.g[::-1])))

    def density(self, schedule: NoiseSchedule, order: int = 1, carried: bool = False) -> np.ndarray:
        """How many steps a solver of this order should take at every training timestep, up to a factor, by its local error.

        Raises ValueError when that was not measured, or on another noise schedule.
        """
        check(self.schedule == fingerprint(schedule), "profile", "made on another noise schedule", "calibrate on this scheduler")
        kind = "carried" if carried else "made"
        measured = self.local_error or {}
        known = measured.get(kind, {})
        check(str(order) in known, "profile", f"without the error {kind} at order {order}", f"calibrate again{', with adjoint_probes' if carried else ''}")
        return spread(known[str(order)], measured["timesteps"])

    def fit(self, schedule: NoiseSchedule, order: int = 1, carried: bool = True) -> tuple[float, float, float]:
        """The paper's p and λ that come nearest to `density`, and by what factor their error still exceeds its own (`allocation.fit_paper`)."""
        return fit_paper(schedule.variance, self.at(schedule), self.density(schedule, order, carried), order)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as a scheduler's config holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SensitivityProfile:
        """The profile of a dict made by `to_dict`; raises ValueError that names missing or foreign keys."""
        check(isinstance(values, dict), "profile", type(values).__name__, "give a profile made by calibrate")
        wrong = (set(values) | {"local_error"}) ^ set(cls.__dataclass_fields__)
        check(not wrong, "profile keys", f"missing or unknown: {', '.join(sorted(wrong))}", "give a profile made by calibrate")
        return cls(**values)

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON, whole or not at all."""
        path = Path(path)
        write_whole(path, lambda part: part.write_text(json.dumps(self.to_dict(), indent=1) + "\n"))

    @classmethod
    def load(
        cls, path: str | os.PathLike, *, model: str | None = None, schedule: NoiseSchedule | None = None, guidance_scale: float | None = None,
        override: tuple[str, ...] = (),
    ) -> SensitivityProfile:  # fmt: skip
        """Reads what `save` wrote, for the model, noise schedule and guidance scale that are given.

        Raises ValueError when it is no profile, or was made for others, unless `override` names what may differ: "model", "schedule",
        "guidance_scale".
        """
        try:
            values = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"profile {path} is no whole JSON file ({error}); calibrate again") from error
        found = cls.from_dict(values)
        wanted = {"model": model, "schedule": schedule and fingerprint(schedule), "guidance_scale": guidance_scale}
        foreign = set(override) - set(wanted)
        check(not foreign, "override", ", ".join(sorted(foreign)), f"use some of {', '.join(wanted)}")
        for name, value in wanted.items():
            same = value is None or name in override or getattr(found, name) == value
            check(same, f"profile {path}", f"made for {name} {getattr(found, name)}, not {value}", f"calibrate again, or override {name!r}")
        return found


def fingerprint(schedule: NoiseSchedule) -> str:
    """A short name of a noise schedule: equal for equal betas."""
    return hashlib.sha256(np.round(schedule.betas, 12).tobytes()).hexdigest()[:16]
