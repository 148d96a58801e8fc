"""Prints what things cost, each beside what a user would pick instead, in one run: python -m tests.bench"""

import time
import timeit

import torch
from diffusers import DDIMScheduler

from asddim_lib import ASDDIMScheduler, calibrate, load_pipeline
from asddim_lib.experiment import draw
from asddim_lib.prompts import load_prompts


def step() -> None:
    x = torch.randn(2, 4, 64, 64)
    for scheduler in (DDIMScheduler(), ASDDIMScheduler(allocation="uniform"), DDIMScheduler(), ASDDIMScheduler(allocation="uniform")):
        scheduler.set_timesteps(50)
        seconds = min(timeit.repeat(lambda s=scheduler: s.step(x, s.timesteps[20], x), number=300, repeat=5)) / 300
        print(f"{type(scheduler).__name__:16s} {seconds * 1e6:7.1f} µs a step")


def estimators(pipe) -> None:
    prompts = list(load_prompts("bundled-tune", 8)["prompt"])
    for estimator in ("vjp", "difference"):
        begun = time.perf_counter()
        calibrate(pipe, prompts, num_steps=20, estimator=estimator)
        print(f"calibrate, {estimator:10s} {time.perf_counter() - begun:7.1f} s for 8 prompts at 20 timesteps")


def images(pipe, count: int = 1000) -> None:
    prompts = list(load_prompts("bundled", count)["prompt"])
    own = pipe.scheduler
    draw(pipe, prompts[:50], list(range(50)), num_inference_steps=1, guidance_scale=3.0)
    for scheduler in (own, ASDDIMScheduler.from_config(own.config, allocation="noise")):
        pipe.scheduler = scheduler
        _, seconds = draw(pipe, prompts, list(range(count)), num_inference_steps=20, guidance_scale=3.0)
        print(f"{type(scheduler).__name__:16s} {seconds * count:7.1f} s for {count} images at 20 steps with guidance, {torch.get_num_threads()} threads")
    pipe.scheduler = own


if __name__ == "__main__":
    step()
    bundled = load_pipeline()
    estimators(bundled)
    images(bundled)
