"""`calibrate` on bundled and tiny pipelines: estimators, parts, a stop, and what it counts."""

from functools import wraps

import pytest
import torch

from asddim_lib import calibrate
from asddim_lib.calibration import record
from asddim_lib.errors import WrongUse
from tests.refusals import refuses

PROMPTS = [
    "a red boot on a white ground",
    "two blue bags on a tan ground",
    "a pink dress above a red bag on a navy ground",
]


SMALL = {"height": 32, "width": 32}


@pytest.fixture
def calls(small, monkeypatch):
    """The batch size of every call of the network so far. A hook would change the fingerprint."""
    sizes, forward = [], type(small.unet).forward

    @wraps(forward)
    def counted(self, sample, *args, **named):
        sizes.append(len(sample))
        return forward(self, sample, *args, **named)

    monkeypatch.setattr(type(small.unet), "forward", counted)
    return sizes


def test_estimators_agree_on_a_real_network(pipe):
    how = {"num_steps": 2, "probes": 4, **SMALL}
    vjp, jvp, difference = (
        calibrate(pipe, PROMPTS[:2], estimator=estimator, **how).g
        for estimator in ("vjp", "jvp", "difference")
    )
    assert jvp == pytest.approx(vjp, rel=0.03)
    assert difference == pytest.approx(vjp, rel=0.03)


def test_the_spectral_norm_is_below_the_frobenius_norm(pipe):
    """The largest singular value against the root of all their squares."""
    spectral = calibrate(pipe, PROMPTS[:2], norm="spectral", num_steps=2, probes=4, **SMALL).g
    frobenius = calibrate(pipe, PROMPTS[:2], num_steps=2, probes=4, **SMALL).g
    assert all(s < f for s, f in zip(spectral, frobenius, strict=True))


def test_the_path_estimator_has_a_value_per_step(small):
    """Three differences lie between three points and timestep 0."""
    assert len(calibrate(small, PROMPTS[:2], estimator="path", num_steps=3).timesteps) == 3


def test_calibration_in_parts_equals_calibration_at_once(small):
    how = {"num_steps": 3, "estimator": "path"}
    whole, parts = (calibrate(small, PROMPTS, batch_size=size, **how).g for size in (3, 2))
    assert parts == pytest.approx(whole, rel=1e-4)


HOW = {"num_steps": 2, "batch_size": 1, "adjoint_probes": 2}


@pytest.fixture(scope="module")
def stopped(shared_small, tmp_path_factory):
    """The cache of a calibration that is stopped after two of three parts, and a whole profile."""
    folder = tmp_path_factory.mktemp("parts")

    def stop(doing, spent, total):
        if spent > 2 * total // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(shared_small, PROMPTS, **HOW, cache=folder, progress=stop)
    assert len(list(folder.iterdir())) == 2
    return folder, calibrate(shared_small, PROMPTS, **HOW)


def test_a_stopped_calibration_goes_on(small, stopped, calls):
    folder, whole = stopped
    file = min(folder.iterdir())
    file.write_bytes(file.read_bytes()[:50])  # damaged: it is measured again
    assert calibrate(small, PROMPTS, **HOW, cache=folder) == whole
    spent = len(calls)
    calls.clear()
    assert calibrate(small, PROMPTS, **HOW, cache=folder) == whole
    assert not calls
    calibrate(small, PROMPTS[:1], **HOW)
    assert spent == 2 * len(calls)  # one part was kept, two were measured


@pytest.mark.parametrize(
    "other", [{"guidance_scale": 3.0}, {"height": 32, "width": 32}, {"seed": 1}]
)
def test_a_cache_serves_no_other_calibration(small, stopped, calls, other):
    folder, whole = stopped
    assert calibrate(small, PROMPTS[:1], **HOW, cache=folder, **other).g != whole.g
    assert calls


def test_a_profile_counts_its_evaluations(small, calls):
    """The path has 5 points; 4 of them have 2 probes each, and 3 sweeps go over all.

    Each probe is a call with its derivative, which counts as two more.
    """
    profile = calibrate(small, PROMPTS[:2], num_steps=4, probes=2, adjoint_probes=3)
    assert profile.evaluations == (5 + 4 * 2 * 3 + 5 * 3 * 3) * 2 * 2
    assert sum(calls) == (5 + 4 * 2 + 5 * 3) * 2 * 2


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("estimator", ["path", "vjp", "difference"])
def test_progress_moves_with_the_network_evaluations(small, calls, batch_size, estimator):
    """Also within a single batch; it ends at what the profile says was spent."""
    told = []

    def progress(doing, spent, total):
        told.append((spent, total, sum(calls)))

    how = {"num_steps": 3, "probes": 2, "adjoint_probes": 1, "batch_size": batch_size}
    profile = calibrate(small, PROMPTS, estimator=estimator, progress=progress, **how)
    spent, total, made = zip(*told, strict=True)
    assert set(total) == {profile.evaluations}
    assert list(spent) == sorted(spent)
    assert spent[-1] == profile.evaluations
    assert made[-1] == sum(calls)
    # What was told never runs ahead, and a derivative counts as two more.
    assert all(one <= 3 * count for one, count in zip(spent, made, strict=True))
    assert len(set(spent)) >= (4 + 4) * len(PROMPTS) // batch_size


def test_record_s_progress_ends_at_what_was_spent(small, calls):
    told = []
    how = {"num_steps": 3, "batch_size": 2, "progress": lambda *what: told.append(what)}
    record(small, PROMPTS, **how)
    spent = [one for _, one, _ in told]
    assert spent == sorted(spent)
    assert spent[-1] == told[-1][2] == sum(calls) == 4 * 2 * len(PROMPTS)
    assert len(told) == 4 * 2


def test_what_a_cache_has_counts_as_spent(small, stopped):
    folder, whole = stopped
    told = []
    calibrate(small, PROMPTS, **HOW, cache=folder, progress=lambda *what: told.append(what[1:]))
    assert told[0] == (whole.evaluations // 3, whole.evaluations)
    assert told[-1] == (whole.evaluations, whole.evaluations)


def test_a_string_is_one_prompt(small):
    how = {"num_steps": 3, "guidance_scale": 3.0}
    one, same = (calibrate(small, p, estimator="path", **how) for p in (PROMPTS[0], PROMPTS[:1]))
    assert one == same
    one, same = (record(small, p, **how) for p in (PROMPTS[0], PROMPTS[:1]))
    assert torch.equal(one.end, same.end)


@pytest.mark.parametrize("estimator", [None, "path"])
@pytest.mark.parametrize(
    ("name", "value"), [("probes", 0), ("adjoint_probes", -1), ("feature_probes", -1)]
)
def test_a_number_of_probes_that_is_none_is_refused(small, calls, estimator, name, value):
    more = {"feature_probes": 1} if name == "adjoint_probes" else {}
    with pytest.raises(WrongUse, match=rf"^{name} is {value}; "):
        calibrate(small, PROMPTS[:1], num_steps=2, estimator=estimator, **more, **{name: value})
    assert not calls


def test_an_encoder_that_nothing_is_shown_to_is_refused(small, calls):
    with refuses("encoder"):
        calibrate(small, PROMPTS[:1], num_steps=2, encoder="no-such")
    assert not calls
