"""The exact noise predictor of Gaussians and their mixtures, and DDIM's path along any predictor.

These models have known answers: the oracle of the tests, and a reader's first model.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.levels import Levels, fingerprint
from asddim_lib.paper import NoiseSchedule, ddim_step


def follow(
    eps: Callable[[Tensor, int], Tensor],
    x: Tensor,
    levels: Levels | NoiseSchedule,
    timesteps: list[int],
) -> Trajectory:
    """The path of DDIM from x (n × d) over `timesteps`, with one call of `eps(x, t)` at each.

    A fine grid gives a reference path.
    """
    bars = levels.alphas_cumprod
    alphas = torch.tensor([*bars[timesteps], 1.0], dtype=torch.float64)
    samples, noises = [], []
    for k, t in enumerate(timesteps):
        samples.append(x)
        noises.append(eps(x, t))
        x, _ = ddim_step(x, noises[-1], alphas[k], alphas[k + 1])
    points = torch.stack(samples), torch.stack(noises), x
    return Trajectory(list(timesteps), *points, schedule=fingerprint(levels))


class GaussianMixture:
    """Data from Σ w_i N(μ_i, c_i² I) in d dimensions: exact ε, Jacobian and ODE solution.

    `means` is m × d; `stds` (c_i) is one number or m of them; `weights` (w_i) are m numbers that
    sum to 1, equal by default. Computes in float64. One component is a Gaussian. Raises WrongUse
    for wrong shapes, and for numbers that are not positive.
    """

    def __init__(self, means: Any, stds: Any, weights: Any = None) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        shape = tuple(self.means.shape)
        check(self.means.ndim == 2, "means", shape, "give components × dimensions")
        count = len(self.means)
        given = torch.as_tensor(stds, dtype=torch.float64)
        check(given.shape in ((), (1,), (count,)), "stds", stds, f"give one number, or {count}")
        self.stds = given.expand(count)
        weights = [1 / count] * count if weights is None else weights
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        check(bool((self.stds > 0).all()), "stds", stds, "give positive numbers")
        positive = self.weights.shape == (count,) and bool((self.weights > 0).all())
        check(positive, "weights", weights, f"give {count} positive numbers")
        check(abs(float(self.weights.sum()) - 1) < 1e-9, "weights", weights, "make them sum to 1")

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Clean data: count × d."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[component] + self.stds[component, None] * noise

    def _parts(self, x: Tensor, alpha: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Each component's share of the density, its score and its variance, at each x (n × d).

        n × m, n × m × d and n × m.
        """
        bar = torch.as_tensor(alpha, dtype=torch.float64, device=x.device).expand(len(x))[:, None]
        variance = bar * self.stds.to(x.device) ** 2 + 1 - bar
        pull = bar.sqrt()[..., None] * self.means.to(x.device) - x.double()[:, None]
        log_density = (
            -pull.square().sum(2) / (2 * variance)
            - x.shape[1] / 2 * variance.log()
            + self.weights.to(x.device).log()
        )
        return log_density.softmax(1), pull / variance[..., None], variance

    def eps(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        """E[ε | x] (n × d) at noisy x (n × d): −√(1 − ᾱ) times the score.

        `alpha` is ᾱ, one number or n of them.
        """
        share, scores, _ = self._parts(x, alpha)
        noise = (1 - torch.as_tensor(alpha, dtype=torch.float64, device=x.device)).sqrt()
        return -noise.expand(len(x))[:, None] * (share[..., None] * scores).sum(1)

    def jacobian(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        """∂ε/∂x (n × d × d), the matrix in Eq 8."""
        share, scores, variance = self._parts(x, alpha)
        score = (share[..., None] * scores).sum(1)
        identity = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        second = torch.einsum("nm,nmi,nmj->nij", share, scores, scores)
        hessian = second - score[:, :, None] * score[:, None]
        hessian = hessian - (share / variance).sum(1)[:, None, None] * identity
        noise = (1 - torch.as_tensor(alpha, dtype=torch.float64, device=x.device)).sqrt()
        return -noise.expand(len(x))[:, None, None] * hessian

    def solve(self, x: Tensor, alpha: float, alpha_next: float) -> Tensor:
        """The probability-flow ODE's solution at `alpha_next`, from x (n × d) at `alpha`.

        Exact for a Gaussian; to 1e-10, by SciPy, for a mixture.
        """
        if len(self.means) == 1:
            mean, c2 = self.means[0], self.stds[0] ** 2
            scale = ((alpha_next * c2 + 1 - alpha_next) / (alpha * c2 + 1 - alpha)).sqrt()
            return alpha_next**0.5 * mean + scale * (x.double() - alpha**0.5 * mean)
        from scipy.integrate import solve_ivp

        def slope(s: float, y: np.ndarray) -> np.ndarray:
            # With σ = √((1 − ᾱ)/ᾱ), x = √ᾱ y and s = log σ: dy/ds = σ ε.
            bar = 1 / (1 + np.exp(2 * s))
            eps = self.eps(bar**0.5 * torch.from_numpy(y).reshape(x.shape), bar)
            return np.exp(s) * eps.numpy().ravel()

        start, stop = (np.log(max((1 - a) / a, 1e-24)) / 2 for a in (alpha, alpha_next))
        initial = (x.double() / alpha**0.5).numpy().ravel()
        exact = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}
        end = solve_ivp(slope, (start, stop), initial, **exact).y[:, -1]
        return alpha_next**0.5 * torch.from_numpy(end).reshape(x.shape)


class AnalyticUNet(nn.Module):
    """A mixture in place of a UNet.

    Takes samples (n × channels × side × side) and the timesteps of diffusers, and returns ε as a
    UNet does. `schedule` gives ᾱ at each timestep. Other inputs (text, time ids) are ignored.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        mixture: GaussianMixture,
        schedule: NoiseSchedule,
        channels: int = 1,
        side: int | None = None,
    ) -> None:
        super().__init__()
        size = mixture.means.shape[1]
        side = side or round((size / channels) ** 0.5)
        given = f"{channels} × {side} × {side}"
        remedy = f"make it the mixture's {size} dimensions"
        check(channels * side * side == size, "channels × side × side", given, remedy)
        self.mixture = mixture
        self.register_buffer("alphas_cumprod", torch.from_numpy(schedule.alphas_cumprod))
        self.config = SimpleNamespace(
            in_channels=channels, out_channels=channels, sample_size=side, time_cond_proj_dim=None
        )

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        *ignored: Any,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The mixture's ε at samples (n × channels × side × side), as a UNet returns it."""
        alpha = self.alphas_cumprod[torch.as_tensor(timestep, device=sample.device).long()]
        result = self.mixture.eps(sample.flatten(1), alpha).reshape(sample.shape).to(sample.dtype)
        return UNet2DConditionOutput(sample=result) if return_dict else (result,)
