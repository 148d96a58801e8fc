"""The spread between noises of one text, and recall, against plain loops and known cases."""

import numpy as np
import pandas as pd
import torch

from experiments.diversity import covered, spreads


def test_a_picture_is_compared_with_the_others_of_its_text():
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    features[4] = torch.nan  # a picture that failed
    texts = pd.Series(list("abaacbb"), index=range(10, 17))
    found = spreads(features, texts)
    points = features.double().numpy()
    for i, text in enumerate(texts):
        others = [
            np.linalg.norm(points[i] - points[j])
            for j, other in enumerate(texts)
            if other == text and j != i and np.isfinite(points[j]).all()
        ]
        expected = np.mean(others) if others and i != 4 else np.nan
        np.testing.assert_allclose(found[i], expected, rtol=1e-12)


def test_a_real_picture_is_covered_within_a_drawn_ones_third_neighbour():
    draw = torch.Generator().manual_seed(1)
    drawn, real = torch.randn(40, 3, generator=draw), 2 * torch.randn(60, 3, generator=draw)
    points, goals = drawn.double().numpy(), real.double().numpy()
    radius = [sorted(np.linalg.norm(points - one, axis=1))[3] for one in points]
    expected = [
        any(np.linalg.norm(goal - one) <= r for one, r in zip(points, radius, strict=True))
        for goal in goals
    ]
    assert 0 < sum(expected) < len(expected)
    assert covered(drawn, real).tolist() == expected


def test_drawn_pictures_cover_themselves_and_nothing_far_away():
    drawn = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    assert covered(drawn, drawn).all()
    assert not covered(drawn, drawn + 100).any()
