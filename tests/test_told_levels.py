"""Decoupled time: the levels of the steps, and all that goes by them, stay what they are."""

import inspect
import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from asddim_lib import (
    ASDDIMInverseScheduler,
    ASDDIMScheduler,
    ASFlowScheduler,
    UniPCGridScheduler,
)
from asddim_lib.errors import WrongUse
from asddim_lib.pipeline.recorder import FlowRecorderScheduler, RecorderScheduler
from asddim_lib.schedulers.place import check_laid, hold, lay, prepared
from experiments.online import OnlineScheduler
from experiments.stopping import stopped

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PLAIN = {**SD, "clip_sample": False}
KINDS = [ASDDIMScheduler, ASFlowScheduler, UniPCGridScheduler]


def noise():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("share", [-0.6, 0.3, 1.0])
def test_noise_is_added_at_the_level_of_the_step(share):
    """Image-to-image and inpainting give one of `timesteps`, training gives whole numbers."""
    ours, plain = ASDDIMScheduler(**PLAIN, look_ahead=share), DDIMScheduler(**PLAIN)
    grid, (x, z) = [981, 500, 499, 20, 0], torch.randn(2, 5, 3)
    ours.set_timesteps(timesteps=grid)
    for name in ("add_noise", "get_velocity"):
        meant = getattr(plain, name)(x, z, torch.tensor(grid))
        assert torch.equal(getattr(ours, name)(x, z, ours.timesteps), meant)
        assert torch.equal(getattr(ours, name)(x, z, torch.tensor(grid)), meant)
    assert ours.scale_model_input(x, ours.timesteps[0]) is x


@pytest.mark.parametrize("kind", [ASFlowScheduler, UniPCGridScheduler])
@pytest.mark.parametrize("share", [-0.6, 0.3, 1.0])
@pytest.mark.parametrize("begin", [None, 2])
def test_the_others_add_noise_at_the_level_of_the_step(kind, share, begin):
    x, z = torch.randn(2, 5, 3)
    noisy = []
    for scheduler in (kind(look_ahead=share), kind()):
        scheduler.set_timesteps(5)
        if begin is not None:
            scheduler.set_begin_index(begin)
        times = scheduler.timesteps
        if kind is ASFlowScheduler:
            noisy.append(scheduler.scale_noise(x, times, z))
        else:
            noisy.append(scheduler.add_noise(x, z, times))
    assert torch.equal(*noisy)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [-0.6, 0.3, 1.0])
def test_a_grid_is_laid_and_looked_at_by_its_levels(kind, share):
    scheduler = kind(look_ahead=share)
    flow = kind is ASFlowScheduler
    for grid in ([900, 500, 100, 0], [999, 0], [3]):
        lay(scheduler, grid)
        check_laid(scheduler, grid)
        with pytest.raises(WrongUse, match="and not those of the grid"):
            check_laid(scheduler, [*grid[:-1], grid[-1] + 1])
        held = hold(scheduler, grid)
        held.set_timesteps(len(grid))
        assert torch.equal(held.timesteps, scheduler.timesteps)
        assert not torch.equal(held.timesteps, torch.tensor(grid) + (1.0 if flow else 0.0))


@pytest.mark.parametrize("kind", KINDS)
def test_measurements_and_recorders_know_nothing_of_it(kind):
    source = kind(look_ahead=0.3)
    assert prepared(kind, source).config["look_ahead"] == 0
    recorder = FlowRecorderScheduler if kind is ASFlowScheduler else RecorderScheduler
    assert prepared(recorder, source).config["look_ahead"] == 0
    if kind is UniPCGridScheduler:
        return
    with pytest.raises(WrongUse, match=r"^look_ahead is 0.3; a path is recorded at its own times"):
        recorder.from_config(source.config).set_timesteps(4)


def test_a_run_may_stop_below_its_last_level_and_not_above():
    """Timestep 500 has σ = 1.6, and the time that is told there 0.04."""
    scheduler = ASDDIMScheduler(**PLAIN, look_ahead=0.9)
    stopped(scheduler, 1.0).set_timesteps(timesteps=[900, 500])
    with pytest.raises(WrongUse, match=r"sigma is 2\.0; the last step begins below it"):
        stopped(scheduler, 2.0).set_timesteps(timesteps=[900, 500])


def test_online_mode_refuses_it():
    scheduler = OnlineScheduler(look_ahead=0.3)
    with pytest.raises(WrongUse, match=r"^look_ahead is 0.3; online mode"):
        scheduler.set_timesteps(4)


@pytest.mark.parametrize("share", [-0.6, 0.3, 1.0])
def test_inversion_undoes_each_step(share):
    forward = ASDDIMScheduler(**PLAIN, look_ahead=share)
    inverse = ASDDIMInverseScheduler.from_config(forward.config)
    for scheduler in (forward, inverse):
        scheduler.set_timesteps(6)
    assert inverse.timesteps.tolist() == forward.timesteps.tolist()[::-1]
    x = noise()
    for t in forward.timesteps[:-1]:  # clean data says nothing of the noise
        answer = torch.cos(x)
        landed = forward.step(answer, t, x).prev_sample
        back = inverse.step(answer, t, landed).prev_sample
        torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)
        x = landed


def test_a_batch_may_be_at_several_steps():
    scheduler = ASDDIMScheduler(**PLAIN, look_ahead=0.3)
    scheduler.set_timesteps(4)
    x, times = noise(), scheduler.timesteps
    rows = [scheduler.step(x[i : i + 1], t, x[i : i + 1])[0] for i, t in enumerate(times)]
    assert torch.equal(scheduler.step(x, times, x).prev_sample, torch.cat(rows))
    assert torch.equal(scheduler.step(x, times[2].item(), x)[0], scheduler.step(x, times[2], x)[0])


def test_no_step_waits_for_a_device():
    """Meta tensors have no values: what waits for one raises."""
    scheduler, x = ASDDIMScheduler(**PLAIN, look_ahead=0.3), torch.empty(2, 4, device="meta")
    scheduler.set_timesteps(6, device="meta")
    times = scheduler.timesteps
    for t in (times[1], times[1].expand(2), times[:2]):
        assert scheduler.step(x, t, x).prev_sample.dtype == torch.float32
        scheduler.add_noise(x, x, t.reshape(-1))


# what is kept, and what is refused


@pytest.mark.parametrize("kind", [*KINDS, ASDDIMInverseScheduler])
def test_the_number_is_saved(kind, tmp_path):
    assert kind().config["look_ahead"] == 0
    kind.from_config(kind().config, look_ahead=-0.25).save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert again.config["look_ahead"] == -0.25
    assert kind.from_config(again.config).config["look_ahead"] == -0.25


def test_unipc_has_diffusers_settings_and_two_more():
    own = {"look_ahead", "grid"}
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (UniPCGridScheduler, UniPCMultistepScheduler)
    )
    assert {name: p.default for name, p in ours.items() if name not in own} == {
        name: p.default for name, p in theirs.items()
    }
    config = DPMSolverMultistepScheduler(**SD, solver_order=3, solver_type="heun").config
    made = [k.from_config(config) for k in (UniPCGridScheduler, UniPCMultistepScheduler)]
    keys = [key for key in made[1].config if key[:1] != "_"]
    assert all(made[0].config[key] == made[1].config[key] for key in keys)
    assert made[0].config["solver_type"] == "bh2"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.5, -1.001, math.nan, math.inf, "0.5", None, True])
def test_a_wrong_number_is_one_line(kind, share):
    with pytest.raises(WrongUse, match=r"^look_ahead is .*; give a share of a step, −1 to 1; .*$"):
        kind(look_ahead=share)


def test_what_is_no_told_time_is_refused():
    scheduler, x = ASDDIMScheduler(**PLAIN, look_ahead=0.3), noise()
    with pytest.raises(WrongUse, match="num_inference_steps is None; call set_timesteps first"):
        scheduler.add_noise(x, x, torch.tensor([900.5]))
    scheduler.set_timesteps(4)
    t = scheduler.timesteps[1]
    for wrong in (int(t), t.long(), 750):
        with pytest.raises(WrongUse, match="timestep is a whole number; with look_ahead give one"):
            scheduler.step(x, wrong, x)
    with pytest.raises(
        WrongUse, match=r"; with look_ahead give one of scheduler\.timesteps, as it is"
    ):
        scheduler.step(x, t + 0.01, x)
    scheduler.step(x, t, x)


def test_flow_matching_refuses_what_would_be_told_twice():
    scheduler, x = ASFlowScheduler(look_ahead=0.3), torch.ones(1, 2, 3)
    with pytest.raises(WrongUse, match="timesteps is given; the network is told these times"):
        scheduler.set_timesteps(timesteps=[900.0, 400.0])
    with pytest.raises(WrongUse, match=r"sigmas is .*; give strictly falling sigmas"):
        scheduler.set_timesteps(sigmas=[0.5, 0.9])
    scheduler.set_timesteps(2)
    with pytest.raises(WrongUse, match="per_token_timesteps is given; they are taken for levels"):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=torch.ones(1, 2))
    with pytest.raises(WrongUse, match="invert_sigmas is True; its levels are turned round"):
        ASFlowScheduler(look_ahead=0.3, invert_sigmas=True).set_timesteps(2)
