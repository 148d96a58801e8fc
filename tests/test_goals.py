"""Goals: each one's defining property against an independent reckoning, and what they refuse."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from asddim_lib import ASDDIMScheduler, DPMSolverGridScheduler
from asddim_lib.metrics.clip import clip_cosine
from asddim_lib.metrics.encoders import load_encoder
from asddim_lib.metrics.kid import kid
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.goals import (
    GOALS,
    OTHER_SEEDS,
    Distribution,
    Embedding,
    Latents,
    Score,
    goal_of,
)
from asddim_lib.tuning.trials import LEAST, Trials
from tests.test_encoders import clip, dinov2

PROMPTS = ["a red boot", "a blue bag", "a pink dress"]
GRID = [900, 500, 20]


def rows(count, size=6, seed=0, shift=0.7):
    """Embeddings: rows of length 1, of a cloud that is not centred."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, size, generator=generator).double() + shift, dim=1)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A tiny CLIP and a tiny DINOv2."""
    found = []
    for make in (clip, dinov2):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(make.__name__)
        make(folder)
        found.append(load_encoder(str(folder)))
    return found


@pytest.fixture
def run(small):
    return Run(small, PROMPTS, (3, 4, 9), 2.0, batch_size=2).prepared_with(ASDDIMScheduler)


def drawn(pipe, seeds, timesteps, **how):
    """The pipeline's own pictures of the prompts, by DDIM on a grid."""
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config)
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    call = {"timesteps": timesteps, "guidance_scale": 2.0, "generator": noise, **how}
    return pipe(PROMPTS, **call).images


def bytes_of(pictures):
    return torch.from_numpy((255 * pictures).round().astype(np.uint8)).permute(0, 3, 1, 2)


def test_latents_are_the_pipeline_s_and_their_loss_is_the_distance_over_the_spread(run, small):
    goal = Latents()
    seen, wanted = goal.look(run, GRID)["seen"], goal.wanted(run, 6)
    own = drawn(small, run.seeds, GRID, output_type="latent").flatten(1)
    torch.testing.assert_close(seen, own, rtol=1e-4, atol=1e-4)
    even = [999, 832, 666, 499, 332, 166]
    fine = drawn(small, run.seeds, even, output_type="latent").flatten(1).numpy()
    spread = np.sqrt(np.mean(np.sum((fine - fine.mean(0)) ** 2, 1)))
    expected = np.linalg.norm(own.numpy() - fine, axis=1) / spread
    np.testing.assert_allclose(goal.losses(seen, wanted), expected, rtol=1e-3)
    assert goal.evaluations(run, 6) == 6 * 3 * 2


def test_distances_are_compared_by_their_logarithms_and_other_losses_as_they_are(run):
    trials, goal = Trials(run, Latents(), 6), Latents()
    distances = goal.losses(goal.look(run, GRID)["seen"], goal.wanted(run, 6))
    torch.testing.assert_close(trials(GRID), distances.double().log(), rtol=1e-5, atol=1e-5)
    even = [999, 832, 666, 499, 332, 166]
    assert (trials(even).exp() <= LEAST * 1.01).all(), "the fine pictures themselves"
    relative = {name: kind.relative for name, kind in GOALS.items()}
    assert relative == {
        "latents": True,
        "embedding": True,
        "embedding+distribution": False,
        "score": False,
    }


def test_an_embedding_is_of_the_very_pictures_and_the_second_encoder_sees_them_too(
    run, small, encoders
):
    goal = goal_of("embedding", small, *encoders)
    seen = goal.look(run, GRID)
    pictures = bytes_of(drawn(small, run.seeds, GRID, output_type="np"))
    for name, encoder in zip(("seen", "checked"), encoders, strict=True):
        torch.testing.assert_close(seen[name], encoder(pictures), rtol=1e-3, atol=1e-3)
    alone = Embedding(encoders[0]).look(run, GRID)
    assert torch.equal(alone["seen"], seen["seen"])
    assert set(alone) == {"seen"}
    assert goal.identity != Embedding(encoders[0]).identity


def test_other_fine_pictures_come_from_other_noise(run, small, encoders):
    wanted = Distribution(encoders[0]).wanted(run, 4)
    even, seeds = [999, 749, 499, 249], [seed + OTHER_SEEDS for seed in run.seeds]
    for name, from_ in (("seen", run.seeds), ("others", seeds)):
        pictures = bytes_of(drawn(small, from_, even, output_type="np"))
        torch.testing.assert_close(wanted[name], encoders[0](pictures), rtol=1e-3, atol=1e-3)
    assert Distribution(encoders[0]).evaluations(run, 4) == 2 * 4 * 3 * 2


@pytest.mark.parametrize("kind", [Latents, Embedding, Score])
def test_a_picture_s_loss_does_not_depend_on_how_many_are_looked_at(kind):
    goal = kind() if kind is Latents else kind(encoder=None)
    wanted = {"seen": rows(8), "text": rows(8, seed=1)}
    all_ = goal.losses(rows(8, seed=2), wanted)
    for count in (1, 3, 8):
        part = goal.losses(rows(8, seed=2)[:count], wanted)
        torch.testing.assert_close(part, all_[:count])


def test_a_distribution_s_shares_add_up_to_kid(run):
    """Their mean is the paired one and `weight` times torchmetrics' KID, in the fine ones' unit."""
    seen, fine, others = rows(20), rows(20, seed=1), rows(20, seed=2)
    wanted = {"seen": fine, "others": others}
    goal, paired = Distribution(None, weight=3.0), Embedding(None).losses(seen, wanted)
    value, _ = kid(6**0.5 * seen, 6**0.5 * others)  # its kernel divides by d
    unit = np.mean([[8 - (a @ b + 1) ** 3 for b in fine] for a in fine]) * 20 / 19
    mean = float(goal.losses(seen, wanted).mean())
    assert mean == pytest.approx(float(paired.mean()) + 3 * value / unit, rel=1e-9)
    assert value != pytest.approx(0, abs=1e-4)


def test_the_spread_of_the_shares_is_the_standard_error_of_kid():
    """Over many sets of another distribution, KID scatters as the shares of any one of them say."""
    others, count, values, errors = rows(400, seed=5), 40, [], []
    for seed in range(300):
        seen = rows(count, seed=100 + seed, shift=0.5)
        wanted = {"seen": seen, "others": others}  # the paired part is 0
        shares = Distribution(None, weight=1.0).losses(seen, wanted)
        kernel = (seen @ seen.T + 1) ** 3
        among = (kernel.sum() - kernel.trace()) / (count * (count - 1))
        unit = kernel.diagonal().mean() - among
        values.append(float(shares.mean() * unit))
        errors.append(float(shares.std() * unit) / count**0.5)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=0.12)


def test_the_score_is_clip_s_cosine_with_the_prompt(run, small):
    goal = goal_of("score", small, "bundled")
    seen, wanted = goal.look(run, GRID)["seen"], goal.wanted(run, 4)
    pictures = bytes_of(drawn(small, run.seeds, GRID, output_type="np"))
    expected = -clip_cosine(pictures, PROMPTS)
    torch.testing.assert_close(goal.losses(seen, wanted).double(), expected, rtol=0, atol=1e-4)
    assert goal.evaluations(run, 9) == 0
    assert set(wanted) == {"text"}
    checked = replace(goal, check=goal.encoder)  # which needs fine pictures after all
    assert set(checked.wanted(run, 4)) == {"seen", "checked", "text"}
    assert checked.evaluations(run, 9) == 9 * 3 * 2


@pytest.mark.parametrize("truncate", [False, True])
def test_the_score_refuses_a_prompt_too_long_for_clip_or_cuts_it_as_told(small, truncate):
    goal, long = goal_of("score", small, "bundled"), "a red boot " * 40
    run = SimpleNamespace(prompts=(long, "a blue bag"), truncate=truncate)
    if not truncate:
        for reads in (goal.check_prompts, lambda run: goal.wanted(run, 4)):
            with pytest.raises(ValueError, match=r"^prompt is .* tokens; shorten it to"):
                reads(run)
        return
    cut, pictures = goal.wanted(run, 4), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    expected = -clip_cosine(pictures, list(run.prompts), truncate=True)
    found = goal.losses(goal.embedded(pictures), cut).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_picture_that_failed_is_no_black_one(run, small, encoders):
    plain = small.unet.forward
    small.unet.forward = lambda x, *a, **k: (plain(x, *a, **k)[0] * torch.nan,)
    try:
        run = run.prepared_with(DPMSolverGridScheduler)  # ASDDIM refuses such a number itself
        assert Embedding(encoders[0]).look(run, GRID)["seen"].isnan().all()
    finally:
        small.unet.forward = plain


@pytest.mark.parametrize(
    ("name", "encoder", "second", "words"),
    [
        ("beauty", None, None, "goal is beauty; use one of latents, embedding"),
        ("embedding", "nowhere", None, "encoder is 'nowhere', which could not be loaded"),
        ("latents", None, 1, "check_encoder is .*; goal latents sees no pictures"),
        ("latents", "nowhere", None, "encoder is nowhere; goal latents sees no pictures: leave it"),
        (Latents(), "nowhere", None, "encoder is nowhere; goal latents sees no pictures: leave it"),
        (Embedding(None), 0, None, "encoder is .*; the goal that is given has one: leave it out"),
        ("embedding", 0, 0, "check_encoder is .*; it is the goal's own"),
        ("score", 1, None, "encoder is .*; goal score compares pictures with words: give a CLIP"),
    ],
)
def test_what_is_no_goal_is_refused_in_one_line(name, encoder, second, words, small, encoders):
    first, other = (encoders[n] if isinstance(n, int) else n for n in (encoder, second))
    with pytest.raises(ValueError, match=f"^{words}[^\n]*$"):
        goal_of(name, small, first, other)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_an_encoder_that_the_memory_does_not_hold_is_named(error, encoders):
    def full(pictures):
        raise error

    goal = Embedding(replace(encoders[0], network=torch.nn.Linear(1, 1)))
    object.__setattr__(goal.encoder, "_prepared", full)
    with pytest.raises(ValueError, match=r"^encoder is '.*', for which the memory does not suffi"):
        goal.embedded(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_every_goal_has_its_name():
    assert list(GOALS) == ["latents", "embedding", "embedding+distribution", "score"]
