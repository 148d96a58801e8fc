"""Prints what things cost, each beside what a user would pick instead, in one run: python -m tests.bench [imports step estimators grids quick images]"""

import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from diffusers import DDIMScheduler

from asddim_lib import ASDDIMScheduler, calibrate, load_pipeline, timesteps
from asddim_lib.core.noise import NoiseSchedule
from asddim_lib.core.sensitivity import COST
from asddim_lib.experiment.setting import FINE_STEPS
from asddim_lib.experiment.store import draw
from asddim_lib.files import write_whole
from asddim_lib.grids.rivals import _least_dmn_bound, dmn
from asddim_lib.grids.searched import SEARCHED
from asddim_lib.measure.calibrate import record
from asddim_lib.models.load import quicken
from asddim_lib.models.prompts import load_prompts
from asddim_lib.tune.search import direct_search, solution

RECORDS = Path(__file__).parents[1] / "results" / "compare"


def imports() -> None:
    def seconds(statement: str) -> float:
        return min(
            float(
                subprocess.check_output(
                    [
                        sys.executable,
                        "-c",
                        f"import time; b = time.perf_counter(); {statement}; print(time.perf_counter() - b)",
                    ]
                )
            )
            for _ in range(3)
        )

    bare, ours, whole = map(
        seconds,
        ("import torch", "import torch, asddim_lib", "from asddim_lib import ASDDIMScheduler"),
    )
    print(
        f"import torch {bare:.2f} s; asddim_lib adds {ours - bare:.2f} s, its scheduler and diffusers {whole - bare:.2f} s"
    )


def step() -> None:
    x = torch.randn(2, 4, 64, 64)
    for scheduler in (
        DDIMScheduler(),
        ASDDIMScheduler(allocation="uniform"),
        DDIMScheduler(),
        ASDDIMScheduler(allocation="uniform"),
    ):
        scheduler.set_timesteps(50)
        seconds = (
            min(
                timeit.repeat(
                    lambda s=scheduler: s.step(x, s.timesteps[20], x), number=300, repeat=5
                )
            )
            / 300
        )
        print(f"{type(scheduler).__name__:16s} {seconds * 1e6:7.1f} µs a step")


def estimators(pipe) -> None:
    prompts = list(load_prompts("bundled-tune", 8)["prompt"])
    spent = {}
    for estimator, norm in (
        ("path", "frobenius"),
        ("difference", "frobenius"),
        ("vjp", "frobenius"),
        ("jvp", "frobenius"),
        ("power", "spectral"),
    ):
        begun = time.perf_counter()
        calibrate(pipe, prompts, num_steps=20, estimator=estimator, norm=norm)
        spent[estimator] = time.perf_counter() - begun
        probe = (spent[estimator] - spent["path"]) / spent[
            "path"
        ]  # the path estimator is the sampling itself: one evaluation a step
        counted = COST[norm].get(estimator, 0)
        print(
            f"calibrate, {estimator:10s} {spent[estimator]:7.1f} s for 8 prompts at 20 timesteps; a probe costs {probe:4.1f} evaluations, counted as {counted}"
        )


def grids(pipe) -> None:
    """What it takes to get a grid for a model, and for another step count once that is done; written to results/compare/cost.csv."""
    own, prompts, rows = pipe.scheduler, list(load_prompts("bundled-tune")["prompt"]), []
    schedule = NoiseSchedule.from_config(own)

    def told(name: str, evaluations: int, seconds: float, again: Callable[[], object]) -> None:
        then = min(timeit.repeat(again, number=1, repeat=3))
        rows.append(
            {
                "grid": name,
                "evaluations": evaluations,
                "seconds": seconds,
                "seconds for another K": then,
            }
        )
        print(
            f"{name:42s} {evaluations:7d} evaluations {seconds:7.1f} s; then {then * 1e3:8.1f} ms for each step count",
            flush=True,
        )

    def timed(make: Callable[[], object]) -> tuple[object, float]:
        begun = time.perf_counter()
        return make(), time.perf_counter() - begun

    for name, count, how in (
        ("equidistributed, quick (1 prompt, 32 steps)", 1, {"num_steps": 32}),
        ("equidistributed (16, 64)", 16, {"num_steps": 64}),
        ("dual-weighted (16, 64, 2 probes)", 16, {"num_steps": 64, "adjoint_probes": 2}),
    ):
        made, seconds = timed(
            lambda count=count, how=how: calibrate(pipe, prompts[:count], estimator="path", **how)
        )
        kind = "dual-weighted" if "adjoint_probes" in how else "equidistributed"
        told(
            name,
            made.evaluations,
            seconds,
            lambda made=made, kind=kind: timesteps(own, 10, allocation=kind, profile=made),
        )
    for names, count, probes in ((("dual-path",), 32, 2), (("gits", "oracle"), 256, 0)):
        path, seconds = timed(
            lambda count=count, probes=probes: record(
                pipe, prompts[:count], adjoint_probes=probes, batch_size=16
            )
        )
        for name in names:
            spent = count * len(path.timesteps) * 2 * (1 + 3 * probes)
            told(
                f"{name} ({count}, 60{f', {probes} probes' if probes else ''})",
                spent,
                seconds,
                lambda name=name, path=path: SEARCHED[name](path, schedule, 10),
            )
    told(
        "dmn (the noise schedule alone)",
        0,
        0.0,
        lambda: (_least_dmn_bound.cache_clear(), dmn(schedule, 10)),
    )
    pipe.scheduler, start = (
        ASDDIMScheduler.from_config(own.config),
        timesteps(own, 10, allocation="dual-weighted", profile=made),
    )
    goal, seconds = timed(lambda: solution(pipe, prompts[:32]))
    told("a solution to try against (32, 200 steps)", 32 * 200 * 2, seconds, lambda: None)
    found, seconds = timed(
        lambda: direct_search(pipe, prompts[:32], [start], budget=FINE_STEPS, goal=goal)
    )
    told(
        "chosen, from one start (32, that solution)",
        found.evaluations,
        seconds,
        lambda: direct_search(pipe, prompts[:32], [start], budget=FINE_STEPS, goal=goal),
    )
    pipe.scheduler = own
    write_whole(RECORDS / "cost.csv", lambda part: pd.DataFrame(rows).to_csv(part, index=False))


def quick(count: int = 100) -> None:
    """The embedded default, 20 steps under guidance: plain diffusers as it comes, a batch at once, and in bfloat16."""
    prompts = list(load_prompts("bundled", count)["prompt"])
    how = {"num_inference_steps": 20, "guidance_scale": 7.5}

    def timed(pipe, texts: list[str], batch_size: int) -> tuple[float, torch.Tensor]:
        draw(pipe, texts[:batch_size], list(range(batch_size)), **how | {"num_inference_steps": 2})
        made = draw(pipe, texts, list(range(len(texts))), batch_size=batch_size, **how)
        return made.seconds, made.images

    alone, _ = timed(load_pipeline(), prompts[:20], 1)
    together, exact = timed(load_pipeline(), prompts, 50)
    print(
        f"float32, one at a time {1 / alone:6.2f} images a second; 50 at once {1 / together:6.2f}; {torch.get_num_threads()} threads"
    )
    rows = [
        {"network": "float32, one at a time", "images a second": 1 / alone},
        {"network": "float32", "images a second": 1 / together},
    ]
    for compiled in (False, True):
        begun = time.perf_counter()
        pipe = quicken(load_pipeline(), compiled=compiled)
        timed(pipe, prompts[:50], 50)
        ready = time.perf_counter() - begun
        seconds, images = timed(pipe, prompts, 50)
        error = (images.double() - exact).div(255).square().flatten(1).mean(1)
        rows.append(
            {
                "network": f"bfloat16{', compiled' * compiled}",
                "images a second": 1 / seconds,
                "seconds to get ready": ready,
                "PSNR, dB": float(-10 * error.mean().log10()),
                "worst, dB": float(-10 * error.max().log10()),
            }
        )
        print(
            f"bfloat16{', compiled' if compiled else '':10s} {1 / seconds:6.2f} images a second after {ready:.0f} s: {alone / seconds:.1f} times one at a time, "
            f"{together / seconds:.1f} times a batch; PSNR {-10 * error.mean().log10():.1f} dB (worst {-10 * error.max().log10():.1f})"
        )

    write_whole(RECORDS / "speed.csv", lambda part: pd.DataFrame(rows).to_csv(part, index=False))


def images(pipe, count: int = 1000) -> None:
    prompts = list(load_prompts("bundled", count)["prompt"])
    own = pipe.scheduler
    draw(pipe, prompts[:50], list(range(50)), num_inference_steps=1, guidance_scale=3.0)
    for scheduler in (own, ASDDIMScheduler.from_config(own.config, allocation="noise")):
        pipe.scheduler = scheduler
        seconds = draw(
            pipe, prompts, list(range(count)), num_inference_steps=20, guidance_scale=3.0
        ).seconds
        print(
            f"{type(scheduler).__name__:16s} {seconds * count:7.1f} s for {count} images at 20 steps with guidance, {torch.get_num_threads()} threads"
        )
    pipe.scheduler = own


if __name__ == "__main__":
    bundled = load_pipeline()
    parts = {
        "imports": imports,
        "step": step,
        "estimators": lambda: estimators(bundled),
        "grids": lambda: grids(bundled),
        "quick": quick,
        "images": lambda: images(bundled),
    }
    for part in sys.argv[1:] or parts:
        parts[part]()
