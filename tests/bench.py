"""Prints what things cost, each beside what a user would pick instead, in one run: python -m tests.bench"""

import subprocess
import sys
import time
import timeit

import torch
from diffusers import DDIMScheduler

from asddim_lib import ASDDIMScheduler, calibrate, load_pipeline
from asddim_lib.experiment import draw
from asddim_lib.prompts import load_prompts
from asddim_lib.sensitivity import COST


def imports() -> None:
    def seconds(statement: str) -> float:
        return min(
            float(subprocess.check_output([sys.executable, "-c", f"import time; b = time.perf_counter(); {statement}; print(time.perf_counter() - b)"])) for _ in range(3)
        )

    bare, ours, whole = map(seconds, ("import torch", "import torch, asddim_lib", "from asddim_lib import ASDDIMScheduler"))
    print(f"import torch {bare:.2f} s; asddim_lib adds {ours - bare:.2f} s, its scheduler and diffusers {whole - bare:.2f} s")


def step() -> None:
    x = torch.randn(2, 4, 64, 64)
    for scheduler in (DDIMScheduler(), ASDDIMScheduler(allocation="uniform"), DDIMScheduler(), ASDDIMScheduler(allocation="uniform")):
        scheduler.set_timesteps(50)
        seconds = min(timeit.repeat(lambda s=scheduler: s.step(x, s.timesteps[20], x), number=300, repeat=5)) / 300
        print(f"{type(scheduler).__name__:16s} {seconds * 1e6:7.1f} µs a step")


def estimators(pipe) -> None:
    prompts = list(load_prompts("bundled-tune", 8)["prompt"])
    spent = {}
    for estimator, norm in (("path", "frobenius"), ("difference", "frobenius"), ("vjp", "frobenius"), ("jvp", "frobenius"), ("power", "spectral")):
        begun = time.perf_counter()
        calibrate(pipe, prompts, num_steps=20, estimator=estimator, norm=norm)
        spent[estimator] = time.perf_counter() - begun
        probe = (spent[estimator] - spent["path"]) / spent["path"]  # the path estimator is the sampling itself: one evaluation a step
        counted = COST[norm].get(estimator, 0)
        print(f"calibrate, {estimator:10s} {spent[estimator]:7.1f} s for 8 prompts at 20 timesteps; a probe costs {probe:4.1f} evaluations, counted as {counted}")


def images(pipe, count: int = 1000) -> None:
    prompts = list(load_prompts("bundled", count)["prompt"])
    own = pipe.scheduler
    draw(pipe, prompts[:50], list(range(50)), num_inference_steps=1, guidance_scale=3.0)
    for scheduler in (own, ASDDIMScheduler.from_config(own.config, allocation="noise")):
        pipe.scheduler = scheduler
        seconds = draw(pipe, prompts, list(range(count)), num_inference_steps=20, guidance_scale=3.0).seconds
        print(f"{type(scheduler).__name__:16s} {seconds * count:7.1f} s for {count} images at 20 steps with guidance, {torch.get_num_threads()} threads")
    pipe.scheduler = own


if __name__ == "__main__":
    imports()
    step()
    bundled = load_pipeline()
    estimators(bundled)
    images(bundled)
