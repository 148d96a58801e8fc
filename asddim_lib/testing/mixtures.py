"""Models whose every answer is known: the exact noise predictor of Gaussians and their mixtures. The tests' oracle and the reader's first model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.errors import check


class GaussianMixture:
    """Data drawn from Σ w_i N(μ_i, c_i² I) in d dimensions: exact ε, its exact Jacobian, and the path that leads from noise to data.

    `means` is m × d, `stds` (c_i) and `weights` (w_i, of sum 1) have m entries. Computes in float64. One component is a Gaussian.
    """

    def __init__(self, means: Any, stds: Any, weights: Any = None) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        check(
            self.means.ndim == 2, "means", tuple(self.means.shape), "give components × dimensions"
        )
        count = len(self.means)
        self.stds = torch.as_tensor(stds, dtype=torch.float64).expand(count)
        self.weights = (
            torch.full((count,), 1 / count, dtype=torch.float64)
            if weights is None
            else torch.as_tensor(weights, dtype=torch.float64)
        )
        check(bool((self.stds > 0).all()), "stds", stds, "give positive numbers")
        check(
            len(self.weights) == count and bool((self.weights > 0).all()),
            "weights",
            weights,
            f"give {count} positive numbers",
        )
        check(abs(float(self.weights.sum()) - 1) < 1e-9, "weights", weights, "make them sum to 1")

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Clean data: count × d."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.stds[chosen, None] * noise

    def _parts(self, x: Tensor, alpha: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Of each component at each x (n × d): its share in the density (n × m), its pull (n × m × d), its variance (n × m)."""
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
        """E[ε | x] (n × d) for noisy x (n × d) and ᾱ, a number or one a sample: −√(1 − ᾱ) times the score."""
        share, pull, _ = self._parts(x, alpha)
        noise = (1 - torch.as_tensor(alpha, dtype=torch.float64, device=x.device)).sqrt()
        return -noise.expand(len(x))[:, None] * (share[..., None] * pull).sum(1)

    def jacobian(self, x: Tensor, alpha: Tensor | float) -> Tensor:
        """∂ε/∂x (n × d × d), the matrix whose norm is Eq 8's."""
        share, pull, variance = self._parts(x, alpha)
        score = (share[..., None] * pull).sum(1)
        identity = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        hessian = (
            torch.einsum("nm,nmi,nmj->nij", share, pull, pull) - score[:, :, None] * score[:, None]
        )
        hessian = hessian - (share / variance).sum(1)[:, None, None] * identity
        noise = (1 - torch.as_tensor(alpha, dtype=torch.float64, device=x.device)).sqrt()
        return -noise.expand(len(x))[:, None, None] * hessian

    def solve(self, x: Tensor, alpha: float, alpha_next: float) -> Tensor:
        """Where the probability-flow ODE takes x (n × d) from ᾱ to another ᾱ: exact for a Gaussian, to 1e-10 by SciPy for a mixture."""
        if len(self.means) == 1:
            mean, c2 = self.means[0], self.stds[0] ** 2
            scale = ((alpha_next * c2 + 1 - alpha_next) / (alpha * c2 + 1 - alpha)).sqrt()
            return alpha_next**0.5 * mean + scale * (x.double() - alpha**0.5 * mean)
        from scipy.integrate import solve_ivp

        def slope(
            s: float, y: np.ndarray
        ) -> np.ndarray:  # with σ = √((1 − ᾱ)/ᾱ), x = √ᾱ y and s = log σ: dy/ds = σ ε
            bar = 1 / (1 + np.exp(2 * s))
            return (
                np.exp(s)
                * self.eps(bar**0.5 * torch.from_numpy(y).reshape(x.shape), bar).numpy().ravel()
            )

        start, stop = (np.log(max((1 - a) / a, 1e-24)) / 2 for a in (alpha, alpha_next))
        begun = (x.double() / alpha**0.5).numpy().ravel()
        found = solve_ivp(slope, (start, stop), begun, method="DOP853", rtol=1e-12, atol=1e-12)
        return alpha_next**0.5 * torch.from_numpy(found.y[:, -1]).reshape(x.shape)


class AnalyticUNet(nn.Module):
    """A mixture in a UNet's place: takes samples (n × channels × side × side) and diffusers' timesteps, and returns ε as a UNet does.

    What else a pipeline passes (text, time ids) is ignored. `schedule` says what ᾱ a timestep stands for.
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
        check(
            channels * side * side == size,
            "channels × side × side",
            f"{channels} × {side} × {side}",
            f"make it the mixture's {size} dimensions",
        )
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
        """The mixture's ε at samples (n × channels × side × side), as a UNet gives it; all but timesteps is ignored."""
        alpha = self.alphas_cumprod[torch.as_tensor(timestep, device=sample.device).long()]
        result = self.mixture.eps(sample.flatten(1), alpha).reshape(sample.shape).to(sample.dtype)
        return UNet2DConditionOutput(sample=result) if return_dict else (result,)
