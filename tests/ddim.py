"""diffusers' own trial of DDIM, for the tests: its settings, sample, network and step."""

import torch

from asddim_lib import ASDDIMScheduler

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": True,
}


def make(kind=ASDDIMScheduler, **changes):
    return kind(**CONFIG | changes)


def deterministic(reverse=False):
    """diffusers' deterministic sample of 4 × 3 × 8 × 8, or its noise (reversed)."""
    values = torch.arange(4 * 3 * 8 * 8) / (4 * 3 * 8 * 8)
    return (values.flip(0) if reverse else values).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


def model(x, t):
    """diffusers' dummy network."""
    return x * torch.as_tensor(t) / (t + 1)


def run(scheduler, steps=10, start=0):
    """The sample after the grid's steps from `start` on; before a later start, noise is added."""
    x = deterministic()
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[start:]
    if start:
        x = scheduler.add_noise(x, deterministic(reverse=True), timesteps[:1])
    for t in timesteps:
        x = scheduler.step(model(x, t), t, x, 0.0).prev_sample
    return x


def step(scheduler, t, steps=50, eta=0.0, **options):
    """One step of diffusers' kind: the network's output is a tenth of the sample."""
    scheduler.set_timesteps(steps)
    x, generator = deterministic(), torch.Generator().manual_seed(0)
    return scheduler.step(0.1 * x, t, x, eta, generator=generator, **options)


def reloaded(scheduler, folder):
    scheduler.save_pretrained(folder)
    return type(scheduler).from_pretrained(folder)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
