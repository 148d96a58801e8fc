"""A network that gives NaN, and a device without memory: what fails, and what does not."""

import shutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from experiments import store
from experiments.cli import app
from experiments.contest import paired
from experiments.draw import generate
from experiments.grids import grid_for
from experiments.pictures import draw
from experiments.records import read_records
from experiments.setting import Setting, batches, cells
from tests.runs import COMMAND, TABLE, assert_same, contents

pytestmark = pytest.mark.xdist_group("failures")  # one run is shared by its tests
PROMPTS = list(TABLE["prompt"])


@pytest.fixture(scope="module")
def failed(shared_small, tmp_path_factory):
    """A run in which the prompt of seed 1 becomes NaN: its folder, and what the command returned.

    The text encoder fails, so that the other picture of the same batch is drawn as ever.
    """
    how = {"padding": "max_length", "max_length": shared_small.tokenizer.model_max_length}
    wanted = shared_small.tokenizer(PROMPTS[1], return_tensors="pt", **how).input_ids[0]

    def spoil(encoder, args, out):
        out[0][(args[0].cpu() == wanted).all(1)] = torch.nan

    folder = tmp_path_factory.mktemp("failed")
    handle = shared_small.text_encoder.register_forward_hook(spoil)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("asddim_lib.models.load.load_pipeline", lambda *_, **__: shared_small)
            done = CliRunner().invoke(app, [*COMMAND.split(), "--out", str(folder)])
    finally:
        handle.remove()
    return folder, done


@pytest.fixture
def run(failed):
    return failed[0]


def test_failed_pictures_are_counted_and_end_the_command_with_1(failed):
    _, done = failed
    assert done.exit_code == 1
    assert "4 pictures failed" in done.output


def test_a_failed_picture_has_no_figures(run):
    summary, records = pd.read_csv(run / "summary.csv"), read_records(run)
    assert set(summary["failed"]) == {1}
    assert set(summary["n"]) == {4}
    assert summary["clip"].notna().all()
    assert set(records[records["failed"]]["index"]) == {1}
    assert records[records["failed"]][["clip", "right_all"]].isna().all(axis=None)
    assert paired(records, "ddim", "clip")["difference"].notna().all()


def test_the_other_picture_of_its_batch_is_what_it_was(run, whole):
    (parts, records), (parts_expected, records_expected) = contents(run), contents(whole)
    for name, expected in parts_expected.items():
        finite = parts[name]["finite"]
        assert torch.equal(parts[name]["images"][finite], expected["images"][finite])
    good = ~records["failed"]
    clip = list(records_expected["clip"][good])
    assert list(records["clip"][good]) == pytest.approx(clip, rel=1e-5)


def test_the_next_run_draws_it_again(run, whole, preloaded_small, tmp_path):
    shutil.copytree(run, tmp_path / "again")
    done = CliRunner().invoke(app, [*COMMAND.split(), "--out", str(tmp_path / "again")])
    assert done.exit_code == 0, done.output
    assert_same(tmp_path / "again", whole)


def test_a_failed_picture_is_named(small, tmp_path, monkeypatch, warnings_of_the_library):
    setting = Setting(methods=("ddim",), steps=(1,), guidance_scales=(1.0,))
    forward = type(small.unet).forward

    def spoil(self, sample, *args, **named):
        out = forward(self, sample, *args, **named)
        out[0][1] = torch.nan
        return out

    monkeypatch.setattr(type(small.unet), "forward", spoil)
    grids = {cell: grid_for(small.scheduler, cell, setting) for cell in cells(setting)}
    assert generate(small, PROMPTS[:2], setting, grids, tmp_path) == 1
    text = warnings_of_the_library.text
    assert f"ddim-ddim-g1-k1: not finite for prompt {PROMPTS[1]!r}, seed 1" in text
    assert PROMPTS[0] not in text


def test_a_reference_that_is_not_finite_fails_the_run(preloaded_small, tmp_path, monkeypatch):
    forward = type(preloaded_small.unet).forward

    def spoil(self, sample, timestep, *args, **named):
        """Timestep 749 is one of four trailing steps, and none of two."""
        out = forward(self, sample, timestep, *args, **named)
        return (out[0] * torch.nan,) if int(timestep) == 749 else out

    monkeypatch.setattr(type(preloaded_small.unet), "forward", spoil)
    command = "evaluate --count 2 --steps 2 --methods ddim-trailing --reference-steps 4"
    arguments = [*command.split(), "--guidance-scale", "2", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    assert "2 pictures failed" in done.output


MESSAGES = [
    "CUDA out of memory. Tried to allocate 2.00 GiB",
    "[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory",
]


@pytest.fixture(params=MESSAGES)
def memory(request, small, monkeypatch):
    """A device that holds no more than `limit` samples, and notes what it `refused`."""
    forward, held = type(small.unet).forward, SimpleNamespace(limit=1000, refused=[])

    def full(self, sample, *args, **named):
        if len(sample) > held.limit:
            held.refused.append(len(sample))
            kind = torch.OutOfMemoryError if "CUDA" in request.param else RuntimeError
            raise kind(request.param)
        return forward(self, sample, *args, **named)

    monkeypatch.setattr(type(small.unet), "forward", full)
    return held


def test_where_memory_runs_out_fewer_are_drawn_at_once(
    small, memory, tmp_path, warnings_of_the_library
):
    setting = Setting(methods=("ddim", "noise"), steps=(2,), guidance_scales=(2.0,), batch_size=5)
    grids = {cell: grid_for(small.scheduler, cell, setting) for cell in cells(setting)}
    generate(small, PROMPTS, setting, grids, tmp_path / "free")
    memory.limit = 4
    generate(small, PROMPTS, setting, grids, tmp_path / "full")
    # The untimed first call, and the first that counts; the second method knows already.
    assert memory.refused == [10, 10]
    assert "drawing 2 at once" in warnings_of_the_library.text
    for cell in cells(setting):
        free, full = (
            store.load(batches(cell, 5, setting)[0].file(tmp_path / name))
            for name in ("free", "full")
        )
        assert (int(free["at_once"]), int(full["at_once"])) == (5, 2)
        torch.testing.assert_close(free["latents"], full["latents"], rtol=1e-3, atol=1e-3)
        assert (free["images"].int() - full["images"].int()).abs().max() <= 1


def test_no_memory_for_one_picture_is_named(small, memory):
    memory.limit = 1
    message = "batch_size is 1; the device has no memory for drawing one prompt"
    with pytest.raises(ValueError, match=message):
        draw(small, ["a red boot"], [0], guidance_scale=2.0, num_inference_steps=1)


def test_another_fault_is_not_taken_for_a_full_memory(small, monkeypatch):
    monkeypatch.setattr(type(small.unet), "forward", lambda *_, **__: 1 / torch.zeros(0)[0])
    with pytest.raises(IndexError):
        draw(small, ["a red boot"], [0], guidance_scale=2.0, num_inference_steps=1)
