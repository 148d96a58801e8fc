"""How many different pictures are drawn: the spread between noises, and recall."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

#: The neighbour whose distance is the radius of a drawn picture, as in the paper's experiments.
NEIGHBOUR = 3


def spreads(features: Tensor, texts: pd.Series) -> np.ndarray:
    """Each picture's mean distance from the others of the same text: (n,), float64.

    `features` are n × d. NaN where a picture is alone, or has no features.
    """
    values = features.double()
    sound = values.isfinite().all(1).numpy()
    means = np.full(len(values), np.nan)
    labels = np.where(sound, texts, None)
    for text in pd.unique(texts):
        same = np.flatnonzero(labels == text)
        if len(same) > 1:
            means[same] = torch.cdist(values[same], values[same]).sum(1) / (len(same) - 1)
    return means


def covered(features: Tensor, reference: Tensor) -> np.ndarray:
    """Which real pictures the drawn ones cover: (m,), bool. Their share is recall.

    A real picture is covered if it is no farther from a drawn one than that one's third nearest
    drawn neighbour (Kynkäänniemi et al. 2019, arXiv 1904.06991). `features` are n × d, `reference`
    m × d. Recall rises with n, so that only equal numbers of pictures can be compared.
    """
    drawn, real = features.double(), reference.double()
    radius = torch.cdist(drawn, drawn).kthvalue(NEIGHBOUR + 1).values  # the nearest is itself
    return (torch.cdist(real, drawn) <= radius).any(1).numpy()
