"""Pictures against the same model's pictures of many steps, so that only the sampler is judged."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from asddim_lib.metrics.distance import relative_distance
from asddim_lib.metrics.kid import kid_shares


class Observed(NamedTuple):
    """Latents, embeddings and features of n pictures. Rows of failed pictures are NaN.

    `latents` are n × …; `embeddings` (n × e) are the image encoder's; `features` (n × d) are the
    judge's, or a second encoder's where the judge cannot read the prompts. The last two have no
    columns without such an encoder.
    """

    latents: Tensor
    embeddings: Tensor
    features: Tensor


def concatenated(parts: list[Observed]) -> Observed:
    """Concatenates a cell's batches.

    A batch whose pictures all failed has no feature columns; they are filled with NaN.
    """
    return Observed(*(_stacked(tensors) for tensors in zip(*parts, strict=True)))


def _stacked(tensors: tuple[Tensor, ...]) -> Tensor:
    shape = max((part.shape[1:] for part in tensors), key=lambda sizes: sizes.numel())
    full = [part if part.shape[1:] == shape else _unknown(len(part), shape) for part in tensors]
    return torch.cat(full)


def _alike(fine: Tensor, seen: Tensor) -> Tensor:
    """Fine pictures' values; NaN in the shape of `seen` where all fine pictures failed."""
    return fine if fine.shape[1:] == seen.shape[1:] else _unknown(len(fine), seen.shape[1:])


def _unknown(count: int, shape: torch.Size) -> Tensor:
    return torch.full((count, *shape), torch.nan, dtype=torch.float64)


def beside_fine(seen: Observed, fine: Observed) -> pd.DataFrame:
    """A row per picture: its distance from the fine one of the same prompt and noise.

    `distance` is between latents, `embedding` between embeddings and `looks` between the judge's
    features, which served no choice of a grid. Each is over the spread of the fine pictures. The
    mean of `own_kid_share` is the KID from fine pictures of other prompts and noise.
    Raises WrongUse for pictures of one prompt, which have no spread.
    """
    fine = Observed(*(_alike(*pair) for pair in zip(fine, seen, strict=True)))
    columns = {"distance": _distances(seen.latents, fine.latents)}
    for name, which in (("embedding", "embeddings"), ("looks", "features")):
        values = getattr(seen, which)
        if values.shape[1]:
            columns[name] = _distances(values, getattr(fine, which))
    if seen.features.shape[1]:
        columns["own_kid_share"] = own_kid_shares(seen.features, fine.features)
    return pd.DataFrame(columns)


def _distances(values: Tensor, goal: Tensor) -> np.ndarray:
    """Relative distances (n,), NaN where either failed, or fewer than 2 pairs are left."""
    values, goal = values.flatten(1), goal.flatten(1)
    finite = values.isfinite().all(1) & goal.isfinite().all(1)
    distances = np.full(len(goal), np.nan)
    if len(goal) < 2 or finite.sum() >= 2:  # of one prompt, relative_distance says what to do
        distances[finite.numpy()] = relative_distance(values[finite], goal[finite]).numpy()
    return distances


def own_kid_shares(features: Tensor, fine: Tensor) -> np.ndarray:
    """Each prompt's share in the KID of samples from fine pictures (both n × d) of other noise.

    Samples of even prompts are compared with fine pictures of odd prompts, and samples of odd ones
    with fine ones of even ones, so that no picture meets its double and nothing more is drawn. The
    mean over prompts is the KID. A share has the influence of both pictures of its prompt: the
    fine ones are as few as the samples, and to take them as fixed would give an interval too
    narrow for one method and too wide for the difference of two. NaN where either picture failed,
    or fewer than 2 of a half are left.
    """
    shares = torch.full((len(features),), torch.nan, dtype=torch.float64)
    finite = features.isfinite().all(1) & fine.isfinite().all(1)
    halves = [torch.nonzero(finite)[:, 0]] * 2
    halves = [rows[rows % 2 == odd] for odd, rows in enumerate(halves)]
    if min(map(len, halves)) < 2:
        return shares.numpy()
    for here, there in (halves, halves[::-1]):
        as_reference = kid_shares(fine[here], features[there])
        influence = as_reference - as_reference.mean()
        shares[here] = kid_shares(features[here], fine[there]) + influence
    return shares.numpy()
