"""The DDIM update between any two timesteps (Eq 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from asddim_lib.errors import check

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def predict(
    sample: Tensor, model_output: Tensor, alpha: Tensor, prediction_type: str = "epsilon"
) -> tuple[Tensor, Tensor]:
    """Converts a network's output to the clean picture x̂_0 and the noise ε.

    `alpha` is ᾱ at the sample's timestep: a scalar, or a tensor that broadcasts with the sample.
    Both results have the sample's shape. Raises WrongUse for an unknown `prediction_type`.
    """
    known = prediction_type in PREDICTION_TYPES
    remedy = f"use one of {', '.join(PREDICTION_TYPES)}"
    check(known, "prediction_type", prediction_type, remedy)
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    if prediction_type == "epsilon":
        return (sample - noise * model_output) / signal, model_output
    if prediction_type == "sample":
        return model_output, (sample - signal * model_output) / noise
    return signal * sample - noise * model_output, signal * model_output + noise * sample


def ddim_step(
    sample: Tensor,
    model_output: Tensor,
    alpha: Tensor,
    alpha_next: Tensor,
    *,
    prediction_type: str = "epsilon",
    eta: float = 0.0,
    noise: Tensor | None = None,
    clean: Callable[[Tensor], Tensor] | None = None,
    keep_epsilon: bool = True,
) -> tuple[Tensor, Tensor]:
    """One DDIM update to any less noisy timestep (Eq 3): the next sample and x̂_0.

    Both have the sample's shape. `alpha` and `alpha_next` are ᾱ at the two timesteps. η > 0 adds
    η times DDPM's noise and requires `noise`, standard normal. `clean` edits x̂_0 (clipping,
    thresholding); `keep_epsilon=False` then recomputes ε from the edited x̂_0. The operations and
    their order are those of diffusers, so float32 results agree bit for bit. Raises WrongUse for
    η outside [0, 1], for η > 0 without `noise`, and for an unknown `prediction_type`.
    """
    x0, epsilon = predict(sample, model_output, alpha, prediction_type)
    if clean is not None:
        x0 = clean(x0)
    if not keep_epsilon:
        epsilon = (sample - alpha**0.5 * x0) / (1 - alpha) ** 0.5
    if eta == 0:
        return alpha_next**0.5 * x0 + (1 - alpha_next) ** 0.5 * epsilon, x0
    check(0 < eta <= 1, "eta", eta, "give a number from 0 (deterministic) to 1 (DDPM's noise)")
    remedy = "eta > 0 needs standard normal noise of the sample's shape"
    check(noise is not None, "noise", noise, remedy)
    variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    deviation = eta * variance**0.5
    # The direction's variance is 0 where η = 1 and ᾱ = 0; rounding can make it negative.
    direction = (1 - alpha_next - deviation**2).clamp(min=0)
    return alpha_next**0.5 * x0 + direction**0.5 * epsilon + deviation * torch.as_tensor(noise), x0
