"""A tuning that is stopped: it goes on to the same grid, and finds what was damaged."""

import random
from dataclasses import replace

import pytest
import torch

from asddim_lib import tune
from asddim_lib.tuning.goals import Embedding
from tests.planted import SMALL, WORDS
from tests.runs import flip
from tests.test_goals import encoders as encoders

PLAN = replace(SMALL, baselines=("trailing", "gits"), path_prompts=2, trials=16)
KILLS = 4


class Killed(BaseException):
    """As a signal would: no handler of errors stops it."""


@pytest.fixture
def find(small, encoders):
    """Tunes, and lists what progress was told."""

    def run(folder, told=None, goal="embedding"):
        told = [] if told is None else told
        how = {"steps": 2, "guidance_scale": 1.0, "plan": PLAN, "goal": goal, "folder": folder}
        how |= {"encoder": encoders[0]} if goal == "embedding" else {}
        how |= {"progress": lambda *what: told.append(what)}
        return tune(small, WORDS[:14], **how)

    return run


def test_killed_at_random_moments_it_ends_at_the_same_grid(find, small, tmp_path):
    """Each kill is within a network call: of the profile, the path, a trial or the sheet."""
    calls, told, killed = [], [], []
    hook = small.unet.register_forward_hook(lambda *_: calls.append(1))
    whole = find(tmp_path / "whole", told, "latents")
    hook.remove()
    rng = random.Random(5)
    for number in range(KILLS):
        moment, seen = rng.randrange(len(calls)), []

        def kill(*_, moment=moment, seen=seen):
            seen.append(1)
            if len(seen) > moment:
                raise Killed

        folder, again = tmp_path / str(number), []
        hook = small.unet.register_forward_pre_hook(kill)
        with pytest.raises(Killed):
            find(folder, killed, "latents")
        hook.remove()
        assert find(folder, again, "latents") == whole  # grid, verdicts, evaluations, sheet and all
        assert again == told
    assert "moving timesteps" in {doing for doing, *_ in killed}


def test_what_was_drawn_is_not_drawn_again(find, tmp_path, monkeypatch):
    whole, looks = find(tmp_path), []
    monkeypatch.setattr(Embedding, "look", lambda *_: looks.append(1))
    assert find(tmp_path) == whole
    assert not looks


def test_each_damaged_file_is_named_and_made_again(find, tmp_path, warnings_of_the_library):
    whole = find(tmp_path)
    files = sorted(tmp_path.glob("drawn/*.safetensors"))
    rng = random.Random(2)
    damaged = rng.sample(files, 6)
    for file in damaged:
        flip(file, rng.randrange(file.stat().st_size))
    assert find(tmp_path) == whole
    for file in damaged:
        assert f"{file} is damaged" in warnings_of_the_library.text
    warnings_of_the_library.clear()
    assert find(tmp_path) == whole
    assert not warnings_of_the_library.text


def test_another_model_s_pictures_are_drawn_anew_in_the_same_folder(find, small, tmp_path):
    before = find(tmp_path / "both")
    weight = small.unet.conv_out.weight
    with torch.no_grad():
        weight.mul_(1.5)
    try:
        again = find(tmp_path / "both")
        assert again == find(tmp_path / "alone")
        assert again.decision != before.decision
    finally:
        with torch.no_grad():
            weight.div_(1.5)
