"""A profile in a file, and wrong arguments of `timesteps`."""

import pytest

from asddim_lib import SensitivityProfile, timesteps
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.evidence.profile import fingerprint
from tests.tiny import SD

SCHEDULE = NoiseSchedule.from_config(SD)
LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
PROFILE = SensitivityProfile(
    timesteps=[900, 50],
    g=[1.0, 4.0],
    stderr=[0.1, 0.1],
    norm="frobenius",
    estimator="vjp",
    probes=1,
    samples=4,
    seed=0,
    guidance_scale=7.5,
    model="test",
    schedule=fingerprint(SCHEDULE),
    evaluations=100,
)


@pytest.fixture
def file(tmp_path):
    PROFILE.save(tmp_path / "p.json")
    return tmp_path / "p.json"


def test_a_profile_survives_its_file(file):
    assert SensitivityProfile.load(file) == PROFILE


def test_a_damaged_file_is_refused(file):
    file.write_text('{"timesteps": [1')
    with pytest.raises(ValueError, match="calibrate again"):
        SensitivityProfile.load(file)


def test_a_profile_of_another_noise_schedule_is_refused():
    with pytest.raises(ValueError, match="another noise schedule"):
        timesteps(LINEAR, 10, allocation="combined", profile=PROFILE)


def test_a_profile_for_the_same_use_loads(file):
    how = {"model": "test", "schedule": SCHEDULE, "guidance_scale": 7.5}
    assert SensitivityProfile.load(file, **how) == PROFILE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "sd15"),
        ("schedule", NoiseSchedule.from_config(LINEAR)),
        ("guidance_scale", 3.0),
    ],
)
def test_a_profile_for_another_use_is_refused_unless_overridden(file, name, value):
    with pytest.raises(ValueError, match=f"override '{name}'"):
        SensitivityProfile.load(file, **{name: value})
    assert SensitivityProfile.load(file, **{name: value}, override=(name,)) == PROFILE


def test_only_what_is_checked_can_be_overridden(file):
    with pytest.raises(ValueError, match="override is steps"):
        SensitivityProfile.load(file, override=("steps",))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"allocation": "magic"}, "allocation is magic"),
        ({"allocation": "noise", "p": -1.0}, "p is -1.0"),
        ({"allocation": "combined"}, "profile is None"),
        ({"allocation": "combined", "profile": PROFILE, "lam": -1.0}, "lam is -1.0"),
        ({"allocation": "combined", "profile": PROFILE, "reading": "free"}, "reading is free"),
    ],
)
def test_a_wrong_argument_is_named(how, message):
    with pytest.raises(ValueError, match=message):
        timesteps(SD, **{"num_inference_steps": 10, **how})
