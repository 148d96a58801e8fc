"""How sensitive the network is to its input, g(t) = ‖∂ε/∂x‖ (Eq 8): two estimators, and the profile that keeps what was measured."""

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
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from asddim_lib.errors import check
from asddim_lib.files import write_whole
from asddim_lib.noise import NoiseSchedule

SCHEMA = 1
#: Network evaluations that one probe costs; a backward pass counts as two.
COST = {"vjp": 3, "difference": 2}


def gradient_norm(
    eps: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    t: Tensor,
    *,
    estimator: str = "vjp",
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The Frobenius norm of ∂ε/∂x at each sample (Eq 8), and its standard error; both of shape (n,), float64.

    `eps(x, t)` maps samples (n × …) to noise of the same shape, each sample on its own. With random signs v, E‖Jᵀv‖² = E‖Jv‖² = ‖J‖_F²
    (Hutchinson). `vjp` takes Jᵀv from one backward pass; `difference` takes Jv from a central difference along v. The error is infinite
    for a single probe. Raises ValueError for an unknown estimator, and when the network returns a number that is not finite.
    """
    check(estimator in COST, "estimator", estimator, f"use one of {', '.join(COST)}")
    check(probes >= 1, "probes", probes, "give at least 1")
    squares = []
    for _ in range(probes):
        v = (torch.randint(0, 2, x.shape, generator=generator, device="cpu", dtype=torch.int8) * 2 - 1).to(x)
        product = _vjp(eps, x, t, v) if estimator == "vjp" else _difference(eps, x, t, v)
        squares.append(product.double().square().flatten(1).sum(1))
    found = torch.stack(squares)
    check(bool(found.isfinite().all()), "eps", "not finite", f"the network failed at timestep {t.flatten()[0].item()}; look at x there")
    mean = found.mean(0)
    spread = found.std(0) / probes**0.5 if probes > 1 else torch.full_like(mean, torch.inf)
    value = mean.sqrt()
    return value, spread / (2 * value)


def _vjp(eps: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    # Fused attention has no reliable second use of its backward on every device; the math kernel has.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(eps(leaf, t), leaf, v)[0]


def _difference(eps: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    # The cube root of the machine's precision balances truncation against rounding in a central difference.
    h = torch.finfo(x.dtype).eps ** (1 / 3) * max(1.0, float(x.abs().max()))
    with torch.no_grad():
        return (eps(x + h * v, t) - eps(x - h * v, t)) / (2 * h)


@dataclass(frozen=True)
class SensitivityProfile:
    """g(t) as measured on a model's own sampling path: values and standard errors at some timesteps, and how they were made."""

    timesteps: list[int]
    g: list[float]
    stderr: list[float]
    estimator: str
    probes: int
    samples: int
    seed: int
    guidance_scale: float
    model: str
    schedule: str
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as a scheduler's config holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SensitivityProfile:
        """The profile of a dict made by `to_dict`; raises ValueError that names missing or foreign keys."""
        check(isinstance(values, dict), "profile", type(values).__name__, "give a profile made by calibrate")
        wrong = set(values) ^ set(cls.__dataclass_fields__)
        check(not wrong, "profile keys", f"missing or unknown: {', '.join(sorted(wrong))}", "give a profile made by calibrate")
        return cls(**values)

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON, whole or not at all."""
        path = Path(path)
        write_whole(path, lambda part: part.write_text(json.dumps(self.to_dict(), indent=1) + "\n"))

    @classmethod
    def load(cls, path: str | os.PathLike) -> SensitivityProfile:
        """Reads what `save` wrote; raises ValueError when it is no profile."""
        try:
            values = json.loads(Path(path).read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"profile {path} is no whole JSON file ({error}); calibrate again") from error
        return cls.from_dict(values)


def fingerprint(schedule: NoiseSchedule) -> str:
    """A short name of a noise schedule: equal for equal betas."""
    return hashlib.sha256(np.round(schedule.betas, 12).tobytes()).hexdigest()[:16]
