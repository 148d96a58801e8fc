"""Prints costs, each beside that of the alternative, measured in one run.

python -m tests.bench [imports step flow estimators grids models guidance quick images]
"""

import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, calibrate, load_pipeline, timesteps
from asddim_lib.cache import write_whole
from asddim_lib.calibration import record
from asddim_lib.grids.searched import gits
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.guidance.rows import Guided, guided_by
from asddim_lib.levels import Levels
from asddim_lib.models.load import Pipeline
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.run import Run
from asddim_lib.sensitivity import COST
from experiments import clock
from experiments.dmn import dmn, least_bound
from experiments.pictures import draw
from experiments.quick import quicken
from experiments.searches import dual_path, oracle

RECORDS = Path(__file__).parents[1] / "results"
SIDES = ("", "negative_")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def write(name: str, rows: list[dict], folder: str = "compare") -> None:
    (RECORDS / folder).mkdir(exist_ok=True)
    write_whole(RECORDS / folder / name, lambda part: pd.DataFrame(rows).to_csv(part, index=False))


def imports() -> None:
    def seconds(statement: str) -> float:
        code = f"import time; b = time.perf_counter(); {statement}; print(time.perf_counter() - b)"
        return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))

    torch_alone = seconds("import torch")
    ours = seconds("import torch, asddim_lib") - torch_alone
    scheduler = seconds("from asddim_lib import ASDDIMScheduler") - torch_alone
    print(f"import torch {torch_alone:.2f} s; asddim_lib adds {ours:.2f} s,")
    print(f"its scheduler and diffusers add {scheduler:.2f} s")


def step() -> None:
    x = torch.randn(2, 4, 64, 64)
    for kind in (DDIMScheduler, ASDDIMScheduler) * 2:
        scheduler = kind()
        if kind is ASDDIMScheduler:
            scheduler = kind(allocation="uniform")
        scheduler.set_timesteps(50)
        call = partial(scheduler.step, x, scheduler.timesteps[20], x)
        seconds = min(timeit.repeat(call, number=300, repeat=5)) / 300
        print(f"{kind.__name__:16s} {seconds * 1e6:7.1f} µs per step")


def flow(steps: int = 20, repeat: int = 15) -> None:
    """A picture by our flow scheduler beside diffusers' own: all of it, and the scheduler's part.

    Writes results/compare/flow.csv.
    """
    pipe, rows = load_pipeline("bundled-flow"), []
    own = pipe.scheduler
    ours = ASFlowScheduler.from_config(own.config, allocation="trailing")
    run = Run(pipe, list(load_prompts("bundled", 1)["prompt"]), [0], 3.0)
    seconds: dict[str, list[float]] = {type(scheduler).__name__: [] for scheduler in (own, ours)}
    for _ in range(repeat):
        for scheduler in (own, ours):
            drawn = replace(run, scheduler=scheduler).pictures(num_inference_steps=steps)
            seconds[type(scheduler).__name__].append(drawn.seconds)
    x = torch.randn(1, 4, 16, 16)
    for scheduler in (own, ours):
        name = type(scheduler).__name__
        alone = min(timeit.repeat(partial(_walk, scheduler, steps, x), number=20, repeat=5)) / 20
        picture = statistics.median(seconds[name])
        rows.append({"scheduler": name, "picture, s": picture, "its own part, s": alone})
    table = pd.DataFrame(rows)
    table["its own part, %"] = 100 * table["its own part, s"] / table["picture, s"]
    print(f"{steps} steps under guidance, medians of {repeat} pictures in turn")
    print(table.to_string(index=False))
    write("flow.csv", table.to_dict("records"))


def _walk(scheduler: Any, steps: int, x: torch.Tensor) -> None:
    """All that a scheduler does for a picture."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x, return_dict=False)[0]


def models() -> None:
    """A calibration's cost beside a guided picture's of 50 steps, on both bundled models.

    Writes results/compare/models.csv.
    """
    rows, prompts = [], list(load_prompts("bundled-tune", 16)["prompt"])
    for model, options in (("bundled", {}), ("bundled-flow", {"max_sequence_length": 1})):
        pipe = load_pipeline(model)
        run = Run(pipe, prompts[:1], [0], 3.0, 1, options)
        run.pictures(num_inference_steps=2)
        times = [run.pictures(num_inference_steps=50).seconds for _ in range(5)]
        picture = statistics.median(times)
        for grid, count, how in (
            ("equidistributed, quick", 1, {"num_steps": 32, "estimator": "path"}),
            ("gradient (Eq 8)", 1, {"num_steps": 20}),
            ("dual-weighted", 16, {"num_steps": 64, "estimator": "path", "adjoint_probes": 2}),
        ):
            given = {"guidance_scale": 3.0, "batch_size": 16, **how, **options}
            profile, seconds = timed(partial(calibrate, pipe, prompts[:count], **given))
            row = {"model": model, "picture, s": picture, "grid": grid, "prompts": count}
            row |= {"evaluations": profile.evaluations, "seconds": seconds}
            rows.append({**row, "pictures": seconds / picture})
            print(f"{model:13s} {grid:24s} {seconds:6.1f} s, {seconds / picture:6.2f} pictures")
    write("models.csv", rows)


def estimators(pipe: Pipeline) -> None:
    prompts = list(load_prompts("bundled-tune", 8)["prompt"])
    norms = dict.fromkeys(("path", "difference", "vjp", "jvp"), "frobenius") | {"power": "spectral"}
    along = 0.0
    for estimator, norm in norms.items():
        how = {"num_steps": 20, "estimator": estimator, "norm": norm}
        _, seconds = timed(partial(calibrate, pipe, prompts, **how))
        # The path estimator is the sampling itself: one evaluation per step.
        along = along or seconds
        probe, counted = (seconds - along) / along, COST[norm].get(estimator, 0)
        print(f"calibrate, {estimator:10s} {seconds:7.1f} s for 8 prompts at 20 timesteps;")
        print(f"    a probe costs {probe:4.1f} evaluations, counted as {counted}")


class Costs:
    """What it takes to get a grid for a model, and one for another step count after that."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe, self.own, self.rows = pipe, pipe.scheduler, []
        self.schedule = Levels.from_diffusers(self.own)
        self.prompts = list(load_prompts("bundled-tune")["prompt"])

    def add(self, name: str, evaluations: int, seconds: float, again: Callable[[], object]) -> None:
        then = min(timeit.repeat(again, number=1, repeat=3))
        row = {"grid": name, "evaluations": evaluations, "seconds": seconds}
        self.rows.append({**row, "seconds for another K": then})
        print(f"{name:42s} {evaluations:7d} evaluations {seconds:7.1f} s;", end=" ")
        print(f"then {then * 1e3:8.1f} ms for each step count", flush=True)

    def profiles(self) -> None:
        """Grids from a profile."""
        for name, count, how in (
            ("equidistributed, quick (1 prompt, 32 steps)", 1, {"num_steps": 32}),
            ("equidistributed (16, 64)", 16, {"num_steps": 64}),
            ("dual-weighted (16, 64, 2 probes)", 16, {"num_steps": 64, "adjoint_probes": 2}),
        ):
            measure = partial(calibrate, self.pipe, self.prompts[:count], estimator="path", **how)
            profile, seconds = timed(measure)
            kind = name.split()[0].strip(",")
            again = partial(timesteps, self.own, 10, allocation=kind, profile=profile)
            self.add(name, profile.evaluations, seconds, again)

    def searches(self) -> None:
        """Grids from a recorded path, and the one that needs no model."""
        for searches, count, probes in (((dual_path,), 32, 2), ((gits, oracle), 256, 0)):
            how = {"adjoint_probes": probes, "batch_size": 16}
            path, seconds = timed(partial(record, self.pipe, self.prompts[:count], **how))
            evaluations = count * len(path) * 2 * (1 + 3 * probes)
            for search in searches:
                label = f"{search.__name__} ({count}, 60{f', {probes} probes' if probes else ''})"
                again = partial(search, path, self.schedule, 10)
                self.add(label, evaluations, seconds, again)

        def fresh() -> list[int]:
            least_bound.cache_clear()
            return dmn(self.schedule, 10)

        self.add("dmn (the noise schedule alone)", 0, 0.0, fresh)


def grids(pipe: Pipeline) -> None:
    """Writes results/compare/cost.csv."""
    costs = Costs(pipe)
    costs.profiles()
    costs.searches()
    write("cost.csv", costs.rows)


class _Timed(Guided):
    """A plan on a pipeline, and the processor's seconds of its own work."""

    seconds = 0.0

    def begin(self) -> None:
        start = time.thread_time()
        super().begin()
        self.seconds += time.thread_time() - start

    def answer(self, module: Any, run: Callable, args: tuple, kwargs: dict) -> Any:
        def network(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            output = run(*args, **kwargs)
            self.seconds -= time.thread_time() - start
            return output

        start = time.thread_time()
        output = super().answer(module, network, args, kwargs)
        self.seconds += time.thread_time() - start
        return output

    def arrived(self, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        start = time.thread_time()
        output = super().arrived(model_output, sample)
        self.seconds += time.thread_time() - start
        return output


def _network(name: str) -> tuple[Pipeline, dict]:
    """A pipeline whose network has its full size, with random weights, and how it is called."""
    if name == "bundled":
        return load_pipeline(), {"prompt": "a red boot"}
    config, scheduler = clock.CONFIGS[name]["unet"], DDIMScheduler(**clock.NOISE)
    kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    sizes = {"prompt_embeds": (1, 77, config["cross_attention_dim"])}
    if name == "sdxl":
        sizes["pooled_prompt_embeds"] = (1, 1280)
        more: dict[str, Any] = {"text_encoder_2": None, "tokenizer_2": None}
    else:
        more = {"safety_checker": None, "feature_extractor": None}
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    unet = UNet2DConditionModel(**config).eval()
    unet.to(memory_format=torch.channels_last)
    pipe = kind(**parts, unet=unet, scheduler=scheduler, **more)
    pipe.set_progress_bar_config(disable=True)
    texts = {f"{side}{one}": torch.randn(size) for one, size in sizes.items() for side in SIDES}
    return pipe, {**texts, "height": 512, "width": 512}


def _drawn(pipe: Pipeline, call: dict, steps: int, scale: float = 7.5) -> None:
    pipe(**call, num_inference_steps=steps, guidance_scale=scale, output_type="latent")


def _evaluated(pipe: Pipeline, call: dict, repeat: int) -> tuple[dict[int, float], torch.Tensor]:
    """The least seconds of the network with one row and with two, and its output of two."""
    network, spent, made = pipe.unet.forward, dict[int, float](), []

    def forward(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        start = time.thread_time()
        output = network(sample, *args, **kwargs)
        seconds = time.thread_time() - start
        spent[len(sample)] = min(spent.get(len(sample), seconds), seconds)
        made.append(output[0])
        return output

    pipe.unet.forward = forward
    for _ in range(repeat):
        for scale in (1.0, 7.5):
            _drawn(pipe, call, 1, scale)
    pipe.unet.forward = network
    return spent, made[-1]


def _overhead(name: str, steps: int, repeat: int) -> list[dict]:
    pipe, call = _network(name)
    spent, made = _evaluated(pipe, call, repeat)
    pipe.unet.forward = lambda sample, *_, **__: (made[: len(sample)],)
    rows = []
    for plan in ("constant", "capped", "interval-sdxl"):
        guided, own = _Timed(pipe, GuidancePlan.named(plan)), []
        for _ in range(1 + repeat):
            skipped, before = guided.rows.skipped, guided.seconds
            with guided_by(guided):
                _drawn(pipe, call, steps)
            own.append(guided.seconds - before)
        skipped, work = guided.rows.skipped - skipped, min(own[1:]) / steps
        saved = skipped * (spent[2] - spent[1]) - steps * work
        row = {"network": name, "millions": pipe.unet.num_parameters() / 1e6, "plan": plan}
        row |= {"guided step, s": spent[2], "unguided step, s": spent[1], "steps": steps}
        row |= {"own work, ms": 1e3 * work, "own work, %": 100 * work / spent[2]}
        row |= {"first run, ms": 1e3 * (own[0] - min(own[1:])), "rows": 2 * steps - skipped}
        row |= {"rows saved, %": 50 * skipped / steps}
        rows.append({**row, "seconds saved, %": 100 * saved / (steps * spent[2])})
        print({key: round(v, 3) if isinstance(v, float) else v for key, v in rows[-1].items()})
    return rows


def guidance(steps: int = 20, repeat: int = 2) -> None:
    """A guidance plan's own work beside a step of the network, and what skipped rows save.

    In the processor's seconds, on one thread, for pictures of 512 pixels (64 of the bundled model).
    The network is timed with one row and with two; the plan's own work over `steps` steps, in which
    one tensor of the network's size stands for all its outputs. The first run also learns how the
    pipeline guides. Writes results/guidance-plans/overhead.csv.
    """
    torch.set_num_threads(1)
    rows = [row for name in ("bundled", "sd15", "sdxl") for row in _overhead(name, steps, repeat)]
    write("overhead.csv", rows, "guidance-plans")


def quick(count: int = 100) -> None:
    """Plain diffusers one image at a time, a batch at once, and in bfloat16.

    20 steps under guidance; writes results/compare/speed.csv.
    """
    prompts = list(load_prompts("bundled", count)["prompt"])
    how = {"num_inference_steps": 20, "guidance_scale": 7.5}

    def speed(pipe: Pipeline, texts: list[str], batch_size: int) -> tuple[float, torch.Tensor]:
        seeds, warm_up = list(range(len(texts))), {**how, "num_inference_steps": 2}
        draw(pipe, texts[:batch_size], seeds[:batch_size], **warm_up)
        result = draw(pipe, texts, seeds, batch_size=batch_size, **how)
        return result.seconds, result.images

    alone, _ = speed(load_pipeline(), prompts[:20], 1)
    together, exact = speed(load_pipeline(), prompts, 50)
    rows = [
        {"network": "float32, one at a time", "images a second": 1 / alone},
        {"network": "float32", "images a second": 1 / together},
    ]
    for compiled in (False, True):
        start = time.perf_counter()
        pipe = quicken(load_pipeline(), compiled=compiled)
        speed(pipe, prompts[:50], 50)
        ready = time.perf_counter() - start
        seconds, images = speed(pipe, prompts, 50)
        error = (images.double() - exact).div(255).square().flatten(1).mean(1)
        row = {"network": f"bfloat16{', compiled' * compiled}", "images a second": 1 / seconds}
        psnr = {"PSNR, dB": float(-10 * error.mean().log10())}
        psnr["worst, dB"] = float(-10 * error.max().log10())
        rows.append({**row, "seconds to get ready": ready, **psnr})
    print(pd.DataFrame(rows).to_string(index=False), f"\n{torch.get_num_threads()} threads")
    write("speed.csv", rows)


def images(pipe: Pipeline, count: int = 1000) -> None:
    prompts, own = list(load_prompts("bundled", count)["prompt"]), pipe.scheduler
    draw(pipe, prompts[:50], list(range(50)), num_inference_steps=1, guidance_scale=3.0)
    how = {"num_inference_steps": 20, "guidance_scale": 3.0}
    for scheduler in (own, ASDDIMScheduler.from_config(own.config, allocation="noise")):
        pipe.scheduler = scheduler
        seconds = draw(pipe, prompts, list(range(count)), **how).seconds
        print(f"{type(scheduler).__name__:16s} {seconds * count:7.1f} s for {count} images", end="")
        print(f" at 20 steps with guidance, {torch.get_num_threads()} threads")
    pipe.scheduler = own


if __name__ == "__main__":
    bundled = load_pipeline()
    parts = {
        "imports": imports,
        "step": step,
        "flow": flow,
        "estimators": lambda: estimators(bundled),
        "grids": lambda: grids(bundled),
        "models": models,
        "guidance": guidance,
        "quick": quick,
        "images": lambda: images(bundled),
    }
    for part in sys.argv[1:] or parts:
        parts[part]()
