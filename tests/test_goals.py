"""Goals: each one's defining property against an independent reckoning, and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from asddim_lib import ASDDIMScheduler, DPMSolverGridScheduler
from asddim_lib.errors import WrongUse
from asddim_lib.metrics.encoders import load_encoder
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.draw import SMALLEST, Setup
from asddim_lib.tuning.goals import GOALS, Embedding, Latents, embedded, goal_of
from tests.refusals import refuses
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
    run = Run(small, PROMPTS, (3, 4, 9), 2.0, batch_size=2)
    return replace(run, scheduler=ASDDIMScheduler.from_config(small.scheduler.config, grid=GRID))


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
    seen = goal.look(run, 3)["seen"]
    own = drawn(small, run.seeds, GRID, output_type="latent").flatten(1)
    torch.testing.assert_close(seen, own, rtol=1e-4, atol=1e-4)
    even = [999, 832, 666, 499, 332, 166]
    fine = drawn(small, run.seeds, even, output_type="latent").flatten(1)
    spread = np.sqrt(np.mean(np.sum((fine - fine.mean(0)).numpy() ** 2, 1)))
    expected = np.linalg.norm((own - fine).numpy(), axis=1) / spread
    np.testing.assert_allclose(goal.losses(seen, fine), expected, rtol=1e-3)


def test_distances_are_compared_by_their_logarithms(run, small):
    setup = Setup(replace(run, scheduler=None), 3, Latents(), reference_steps=6)
    trials, goal = setup.trials(range(3)), setup.goal
    fine = goal.look(replace(run, scheduler=setup.reference.scheduler), 6)["seen"]
    distances = goal.losses(goal.look(run, 3)["seen"], fine)
    found = trials.losses(setup.sampler(GRID))
    torch.testing.assert_close(found, distances.double().log(), rtol=1e-5, atol=1e-5)
    assert (trials.losses(setup.reference).exp() <= SMALLEST * 1.01).all(), "the fine ones"
    part = trials.losses(setup.sampler(GRID), 1)
    assert torch.equal(part, found[:2]), "the first batch's, over the spread of all"


def test_an_embedding_is_of_the_very_pictures_and_the_second_encoder_sees_them_too(
    run, small, encoders
):
    goal = goal_of("embedding", small, *encoders)
    seen = goal.look(run, 3)
    pictures = bytes_of(drawn(small, run.seeds, GRID, output_type="np"))
    for name, encoder in zip(("seen", "checked"), encoders, strict=True):
        torch.testing.assert_close(seen[name], encoder(pictures), rtol=1e-3, atol=1e-3)
    alone = Embedding(encoders[0]).look(run, 3)
    assert torch.equal(alone["seen"], seen["seen"])
    assert set(alone) == {"seen"}
    assert goal.identity != Embedding(encoders[0]).identity


@pytest.mark.parametrize("goal", [Latents(), Embedding(encoder=None)], ids=lambda g: g.name)
def test_a_picture_s_loss_does_not_depend_on_how_many_are_looked_at(goal):
    fine, seen = rows(8), rows(8, seed=2)
    for count in (1, 3, 8):
        part = goal.losses(seen[:count], fine)
        torch.testing.assert_close(part, goal.losses(seen, fine)[:count])


def test_a_picture_that_failed_is_no_black_one(run, small, encoders):
    plain = small.unet.forward
    small.unet.forward = lambda x, *a, **k: (plain(x, *a, **k)[0] * torch.nan,)
    try:
        # ASDDIM refuses such a number itself
        kind = DPMSolverGridScheduler.from_config(small.scheduler.config, grid=GRID)
        assert Embedding(encoders[0]).look(replace(run, scheduler=kind), 3)["seen"].isnan().all()
    finally:
        del small.unet.forward  # the class's again, which other tests replace


@pytest.mark.parametrize(
    ("name", "encoder", "second", "argument"),
    [
        ("beauty", None, None, "goal is beauty"),
        ("embedding", "nowhere", None, "encoder is 'nowhere'"),
        ("latents", None, 1, "check_encoder"),
        ("latents", "nowhere", None, "encoder is nowhere"),
        (Latents(), "nowhere", None, "encoder is nowhere"),
        (Embedding(None), 0, None, "encoder"),
        ("embedding", 0, 0, "check_encoder"),
    ],
)
def test_what_is_no_goal_is_refused(name, encoder, second, argument, small, encoders):
    first, other = (encoders[n] if isinstance(n, int) else n for n in (encoder, second))
    with pytest.raises(WrongUse, match=f"^{argument}"):
        goal_of(name, small, first, other)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_an_encoder_that_the_memory_does_not_hold_is_named(error, encoders):
    def full(pictures):
        raise error

    large = replace(encoders[0], prepare=full)
    with refuses("encoder"):
        embedded(large, torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_every_goal_has_its_name(pipe):
    assert [goal_of(name, pipe).name for name in GOALS] == list(GOALS)
