"""Prints the time of step() beside diffusers' DDIM, in one run: python -m tests.bench"""

import timeit

import torch
from diffusers import DDIMScheduler

from asddim_lib import ASDDIMScheduler

x = torch.randn(2, 4, 64, 64)
for scheduler in (DDIMScheduler(), ASDDIMScheduler(allocation="uniform"), DDIMScheduler(), ASDDIMScheduler(allocation="uniform")):
    scheduler.set_timesteps(50)
    seconds = min(timeit.repeat(lambda s=scheduler: s.step(x, s.timesteps[20], x), number=300, repeat=5)) / 300
    print(f"{type(scheduler).__name__:16s} {seconds * 1e6:7.1f} µs a step")
