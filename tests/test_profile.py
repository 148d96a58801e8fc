"""A profile in a file, and wrong arguments of `timesteps`."""

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, Profile, calibrate, timesteps
from asddim_lib.digest import of_values
from asddim_lib.errors import WrongUse
from asddim_lib.evidence.path import spread
from asddim_lib.evidence.profile import FEW
from asddim_lib.levels import fingerprint, noise_schedule
from tests.refusals import refuses
from tests.tiny import SD

SCHEDULE = noise_schedule(SD)
LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
PROFILE = Profile(
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
    assert Profile.load(file) == PROFILE


def test_a_damaged_file_is_refused(file):
    file.write_text('{"timesteps": [1')
    with refuses("profile"):
        Profile.load(file)


LOCAL = {"timesteps": [900, 400, 0], "local": {"1": [1.0, 2.0]}, "feature": {"1": [3.0, 0.5]}}
WHOLE = PROFILE.to_dict() | {"local_error": {**LOCAL, "encoder": "clip"}}


def places(value, at=()):
    """Where each value of a JSON object stands, the containers' own places among them."""
    yield at
    parts = value.items() if isinstance(value, dict) else []
    parts = enumerate(value) if isinstance(value, list) else parts
    for key, part in parts:
        yield from places(part, (*at, key))


def replaced(place, new):
    """The whole profile with another value at one place."""
    if not place:
        return new
    changed = copy.deepcopy(WHOLE)
    *way, last = place
    part = changed
    for key in way:
        part = part[key]
    part[last] = new
    return changed


OTHER = st.none() | st.text(max_size=3) | st.lists(st.none() | st.floats() | st.text(), max_size=4)


@given(st.sampled_from(list(places(WHOLE))), OTHER)
def test_a_file_with_a_wrong_value_loads_or_is_refused_in_one_line(place, new):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p.json"
        file.write_text(json.dumps(replaced(place, new)))
        try:
            profile = Profile.load(file)
        except WrongUse:
            return
    if place[:1] not in (("local_error",), ("schedule",)):  # it serves as before
        assert profile.at(SCHEDULE).shape == (1000,)
        assert profile.density(SCHEDULE, kind="feature").shape == (901,)


@pytest.mark.parametrize("place", [("timesteps",), ("local_error", "timesteps"), ("g", 0)])
def test_a_null_in_the_file_is_named(place, file):
    file.write_text(json.dumps(replaced(place, None)))
    with pytest.raises(WrongUse, match=f"^profile {' '.join(place[:1])}.*; calibrate again$"):
        Profile.load(file)


@pytest.mark.parametrize("profile", ["p.json", Path("p.json"), [1.0]])
def test_what_is_no_profile_is_refused_where_it_is_given(profile):
    gradient = {"allocation": "gradient", "profile": profile}
    line = r"^profile is \w.*; give Profile.load\(file\).to_dict\(\)$"
    with pytest.raises(WrongUse, match=line):
        ASDDIMScheduler.from_config(DDIMScheduler(**SD).config, **gradient)
    with pytest.raises(WrongUse, match=line):
        ASFlowScheduler.from_config(FlowMatchEulerDiscreteScheduler().config, **gradient)
    with pytest.raises(WrongUse, match=line):
        timesteps(SD, 10, **gradient)


def test_a_profile_of_another_noise_schedule_is_refused():
    with refuses("profile"):
        timesteps(LINEAR, 10, allocation="combined", profile=PROFILE)


def test_a_profile_for_the_same_use_loads(file):
    how = {"model": "test", "schedule": SCHEDULE, "guidance_scale": 7.5}
    assert Profile.load(file, **how) == PROFILE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "sd15"),
        ("schedule", noise_schedule(LINEAR)),
        ("guidance_scale", 3.0),
    ],
)
def test_a_profile_for_another_use_is_refused_unless_overridden(file, name, value):
    with refuses("profile"):
        Profile.load(file, **{name: value})
    assert Profile.load(file, **{name: value}, override=(name,)) == PROFILE


def test_only_what_is_checked_can_be_overridden(file):
    with refuses("override"):
        Profile.load(file, override=("steps",))


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


def test_a_profile_names_what_it_was_measured_on(small):
    """Prompts, options and dtype are in it, and in its line."""
    how = {"estimator": "path", "num_steps": 2, "guidance_scale": 2.0, "progress": False}
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    options = {"height": 64, "negative_prompt": "dull", "latents": latents}
    texts = [f"boot {n}" for n in range(FEW)]
    few = calibrate(small, texts, **how, **options)
    assert few.prompts == texts
    assert few.options == {**options, "latents": of_values(latents)}
    assert few.dtype == "float32"
    many = calibrate(small, [*texts, "another"], **how)
    assert many.prompts == of_values((*texts, "another"))
    assert (many.samples, many.options) == (FEW + 1, {})
    for profile, parts in ((few, ["height 64", "dull"]), (many, [many.prompts])):
        line = profile.described()
        assert "\n" not in line
        assert all(part in line for part in [*parts, "float32", f"prompts {profile.samples}", "2"])
        assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@pytest.mark.parametrize("schema", [3, 4])
def test_a_profile_from_before_its_prompts_were_named_loads(schema, file):
    new = {"prompts", "options", "dtype"}
    old = {key: value for key, value in PROFILE.to_dict().items() if key not in new}
    file.write_text(json.dumps({**old, "schema": schema}))
    loaded = Profile.load(file, model="test", schedule=SCHEDULE, guidance_scale=7.5)
    assert (loaded.prompts, loaded.options, loaded.dtype) == ("", {}, "")
    assert loaded == PROFILE
    for missing in (*(set(old) - {"local_error", "schema"}), "schema"):
        with pytest.raises(WrongUse, match=rf"profile keys .*{missing}"):
            Profile.from_dict({k: v for k, v in old.items() if k != missing})
    with pytest.raises(WrongUse, match=r"profile keys .*colour"):
        Profile.from_dict({**PROFILE.to_dict(), "colour": 1})


OLD = {"timesteps": [900, 400, 0], "made": {"1": [1.0, 2.0]}, "carried": {"2": [0.5, 4.0]}}


@pytest.mark.parametrize("more", [{}, {"seen": {"1": [3.0, 0.5]}, "encoder": "bundled"}])
def test_a_profile_of_0_2_means_the_same(tmp_path, more):
    """Schema 3 names the three errors otherwise, in a file and in a scheduler's config."""
    fresh = Profile(**WHOLE)
    old = {**fresh.to_dict(), "schema": 3, "local_error": {**OLD, **more}}
    (tmp_path / "old.json").write_text(json.dumps(old))
    for loaded in (Profile.load(tmp_path / "old.json"), Profile.from_dict(old)):
        loaded.save(tmp_path / "new.json")
        assert Profile.load(tmp_path / "new.json") == loaded
        assert loaded.g == fresh.g
        names = {"made": "local", "carried": "adjoint", "seen": "feature"}
        for name, kind in names.items():
            assert loaded.local_error.get(kind) == {**OLD, **more}.get(name)
        expected = spread([1.0, 2.0], OLD["timesteps"])
        np.testing.assert_array_equal(loaded.density(SCHEDULE, kind="local"), expected)
    how = {"allocation": "equidistributed", "begin": 900}
    before, now = (timesteps(SD, 5, profile=p, **how) for p in (old, loaded.to_dict()))
    assert before == now
