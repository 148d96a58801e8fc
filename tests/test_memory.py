"""Where memory runs out, fewer prompts are measured at once, and it is said."""

import logging

import pytest
import torch

from asddim_lib import calibration as measure
from tests.refusals import refuses
from tests.tiny import sd

PROMPTS = ["a red boot", "a blue bag", "a green coat"]
HOW = {"num_steps": 3, "guidance_scale": 3.0, "height": 32, "width": 32}


@pytest.fixture
def pipe():
    made = sd()[0]
    made.set_progress_bar_config(disable=True)
    return made


def limited(monkeypatch, most):
    """Memory for so many prompts at once."""
    whole = measure._measured_batch

    def measured(run, *more):
        if len(run.prompts) > most:
            raise torch.OutOfMemoryError("out of memory: tried to allocate 2 GiB")
        return whole(run, *more)

    monkeypatch.setattr(measure, "_measured_batch", measured)


def test_fewer_at_once_measure_the_same_prompts_and_noise(pipe, monkeypatch, caplog):
    exact = {**HOW, "estimator": "path"}
    whole = measure.calibrate(pipe, PROMPTS, **exact)
    limited(monkeypatch, 1)
    with caplog.at_level(logging.WARNING):
        halves = measure.calibrate(pipe, PROMPTS, **exact)
    assert halves.g == pytest.approx(whole.g, rel=1e-4)
    assert halves.samples == 3
    for kind, shares in whole.local_error["local"].items():
        assert halves.local_error["local"][kind] == pytest.approx(shares, rel=1e-3)
    assert "no memory for 3 prompts at once" in caplog.text


def test_no_memory_for_one_names_what_needs_none(pipe, monkeypatch):
    limited(monkeypatch, 0)
    with refuses("batch_size"):
        measure.calibrate(pipe, PROMPTS, adjoint_probes=1, **HOW)


def test_another_error_stays_what_it_is(pipe, monkeypatch):
    def broken(run, *more):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(measure, "_measured_batch", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measure.calibrate(pipe, PROMPTS, **HOW)
