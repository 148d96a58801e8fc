"""FID, KID and CLIP score (Eqs 14–16) against closed forms and their definitions."""

import numpy as np
import pytest
import torch

from asddim_lib import metrics
from asddim_lib.metrics import clip
from asddim_lib.metrics.kid import kid
from asddim_lib.models.prompts import load_prompts
from experiments import attributes
from experiments.fid import fid_infinity, fid_interval


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pictures(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)


def test_fid_equals_closed_form():  # Eq 14
    a = normal(4000, 8)
    b = 2 * a + 3
    mean, cov = (b.mean(0) - a.mean(0)).square().sum(), torch.cov(a.T)
    # The covariances commute: tr(C + 4C − 2·2C) = tr C.
    assert metrics.fid(b, a) == pytest.approx(float(mean + cov.trace()), rel=1e-6)


def test_the_interval_of_fid_is_that_of_torchmetrics_over_resamples():
    reference, features = normal(300, 6), 1.3 * normal(80, 6, seed=1) + 0.2
    rng = np.random.default_rng(3)
    values = [metrics.fid(features[rng.integers(0, 80, 80)], reference) for _ in range(5)]
    half = fid_interval(features, reference, 5, 3)[1]
    quantile = 2.776445  # Student's t with four degrees of freedom
    assert half == pytest.approx(quantile * np.std(values, ddof=1), rel=1e-6)


def test_fid_extrapolated_to_infinitely_many_pictures_is_near_the_closed_form():
    generator = torch.Generator().manual_seed(4)
    reference = torch.randn(50_000, 16, generator=generator, dtype=torch.float64)
    plain, infinite = [], []
    for _ in range(20):
        features = torch.randn(200, 16, generator=generator, dtype=torch.float64)
        plain.append(metrics.fid(1.5 * features + 0.5, reference))
        infinite.append(fid_infinity(1.5 * features + 0.5, reference))
    known = 16 * (0.5**2 + (1.5 - 1) ** 2)  # of N(0.5, 1.5²) from N(0, 1)
    tolerance = 3 * np.std(infinite) / np.sqrt(20) + 0.02 * known
    assert np.mean(plain) > 1.05 * known
    assert np.mean(infinite) == pytest.approx(known, abs=tolerance)
    assert abs(np.mean(infinite) - known) < abs(np.mean(plain) - known) / 3


def test_the_extrapolation_needs_enough_pictures():
    message = "features is 33 × 16; the extrapolation needs more than twice as many images as"
    with pytest.raises(ValueError, match=message):
        fid_infinity(normal(33, 16), normal(40, 16, seed=1))


def test_the_interval_of_kid_covers():
    """95 % is meant; of 60, fewer than 85 % would come by chance once in 500 times."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    intervals = []
    for _ in range(60):
        features = torch.randn(100, 8, generator=generator, dtype=torch.float64)
        intervals.append(kid(1.1 * features + 0.2, reference))
    values, halves = torch.tensor(intervals).T
    covered = ((values - values.mean()).abs() < halves).double().mean()
    assert 0.85 <= covered <= 1
    assert halves.mean() < 2.5 * values.std()


def test_kid_equals_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.2, 1.1, (150, 8)), rng.normal(size=(150, 8))
    own, other, cross = ((a @ b.T / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum((k.sum() - np.trace(k)) / (150 * 149) for k in (own, other))
    value = kid(torch.from_numpy(x), torch.from_numpy(y))[0]
    assert value == pytest.approx(within - 2 * cross.mean(), rel=1e-6)


@torch.no_grad()
def test_clip_cosine_is_that_of_the_embeddings():  # Eq 15
    images, prompts = pictures(5, seed=1), list(load_prompts("bundled", 5)["prompt"])
    model, processor = metrics.load_clip()
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    seen = model.visual_projection(model.vision_model(pixels).pooler_output)
    words = processor.tokenizer(prompts, padding=True, return_tensors="pt")
    read = model.text_projection(model.text_model(**words).pooler_output)
    a, b = seen.double().numpy(), read.double().numpy()
    cosine = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    assert metrics.clip_cosine(images, prompts).numpy() == pytest.approx(cosine, rel=1e-6)


def test_clip_score_equals_mean_cosine():  # Eqs 15–16
    images, prompts = pictures(8), list(load_prompts("bundled", 8)["prompt"])
    mean = float(metrics.clip_cosine(images, prompts).mean())
    assert metrics.clip_score(images, prompts) == pytest.approx(mean, abs=1e-5)


def test_a_network_is_loaded_once_however_it_is_named():
    model = metrics.load_clip()
    assert metrics.load_clip(None, "cpu") is model
    assert metrics.load_clip("bundled", device="cpu") is model
    assert (
        attributes.load_judge()
        is attributes.load_judge("cpu")
        is attributes.load_judge(device="cpu")
    )


def test_clip_sees_what_its_processor_makes():
    images, (model, processor) = pictures(3), metrics.load_clip()
    expected = processor(images=list(images), return_tensors="pt")["pixel_values"]
    pixels = clip._pixels(model, processor, images)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)
