"""A run of a pipeline: the one thing that calls it."""

from __future__ import annotations

import copy
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from asddim_lib.configs import completed, with_fixed_shift
from asddim_lib.errors import WrongUse, check, check_scale, check_whole
from asddim_lib.evidence.path import Trajectory
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.guidance.rows import Guided, Rows, guided_by
from asddim_lib.levels import Levels
from asddim_lib.metrics.distance import images_to_uint8
from asddim_lib.models import calls
from asddim_lib.models.load import Pipeline, check_seeds, network
from asddim_lib.models.prompts import check_prompts, listed
from asddim_lib.pipeline import manifest
from asddim_lib.pipeline.recording import Measure, record_path
from asddim_lib.schedulers.place import counterpart, drawing, hold, intercepted, with_grid

log = logging.getLogger(__name__)

#: What a run itself gives the pipeline, and what to do instead of naming it as an option.
OWN = {
    "num_images_per_prompt": "give a prompt several times",
    "generator": "give seeds",
    "prompt": "give prompts",
    "output_type": "leave it out",
    "return_dict": "leave it out",
    "num_inference_steps": "give it to path, ends or pictures",
    "timesteps": "give the grid to ends or pictures",
    "sigmas": "give the grid to ends or pictures",
    "callback": "leave it out: the run watches the steps itself",
    "callback_steps": "leave it out: the run watches the steps itself",
    "callback_on_step_end": "leave it out: the run watches the steps itself",
    "callback_on_step_end_tensor_inputs": "leave it out: the run watches the steps itself",
    "denoising_end": "leave it out: grids that are cut end at different levels",
}


class Drawn(NamedTuple):
    """Pictures (n × 3 × h × w, uint8), the latents they were decoded from, and how it went.

    A video's are n × frames × 3 × h × w. `seconds` is the time per picture. `finite` (n, bool) is
    false where the network gave a number that is not: such a picture is black. `at_once` pictures
    were drawn together. Under a guidance plan, they took `rows` of network evaluations in all,
    without those that were made to learn how the pipeline guides.
    """

    images: Tensor
    latents: Tensor
    seconds: float
    finite: Tensor
    at_once: int
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """Prompts, each with a seed of its own, through a pipeline at one guidance scale.

    `options` go to the pipeline as they are; one `negative_prompt` serves all prompts. No more than
    `batch_size` prompts are run at once. `scheduler` draws, by default the pipeline's own; `end` is
    where its last step leads, "zero" or "sigma_min", by default as its config says: `prepared_with`
    and `path` keep to it, so that candidates and reference end at the same σ. `shift_steps` is the
    number of steps that a dynamic shift is for, by default the pipeline's: FLUX.2's depends on it.
    Pictures and ends are drawn with a `guidance_plan`, if there is one; a path is recorded without.
    The pipeline comes back as it was. Raises WrongUse for wrong prompts (too long ones, unless
    `truncate`), seeds, guidance, or an option that the run itself sets.
    """

    pipe: Pipeline
    prompts: Sequence[str]
    seeds: Sequence[int] | None = None
    guidance_scale: float | None = None
    batch_size: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)
    truncate: bool = False
    scheduler: Any = None
    end: str | None = None
    shift_steps: int | None = None
    guidance_plan: GuidancePlan | None = None

    def __post_init__(self) -> None:
        prompts = tuple(listed(self.prompts))
        check(len(prompts) > 0, "prompts", list(prompts), "give at least one")
        seeds = check_seeds(range(len(prompts)) if self.seeds is None else self.seeds)
        same = len(seeds) == len(prompts)
        check(same, "seeds", f"{len(seeds)} for {len(prompts)} prompts", "give one per prompt")
        scale = self.guidance_scale
        check_scale(scale)
        check_whole("batch_size", self.batch_size, 1)
        for name, remedy in OWN.items():
            check(name not in self.options, name, self.options.get(name), remedy)
        twice = scale is not None and "guidance_scale" in self.options
        what = f"{scale}, and {self.options.get('guidance_scale')} in options"
        check(not twice, "guidance_scale", what, "give it once: in options only beside None")
        calls.check_options(self.pipe, self.options)
        calls.check_guidance(self.pipe, scale)
        if scale is None and "guidance_scale" not in self.options:
            object.__setattr__(self, "guidance_scale", calls.default_scale(self.pipe))
        check_prompts(self.pipe, list(prompts), truncate=self.truncate)
        object.__setattr__(self, "prompts", prompts)
        object.__setattr__(self, "seeds", seeds)

    @property
    def inputs(self) -> list[Any]:
        """What the results depend on beside the pipeline."""
        scheduler = self.scheduler or self.pipe.scheduler
        settings = type(scheduler).__name__, manifest.scheduler_settings(scheduler)
        given = [self.prompts, self.seeds, self.guidance_scale, dict(self.options), self.truncate]
        plan = [] if self.guidance_plan is None else [self.guidance_plan.to_dict()]
        return [*given, self.batch_size, self.end, self.shift_steps, *settings, *plan]

    @cached_property
    def _guided(self) -> Guided | None:
        return None if self.guidance_plan is None else Guided(self.pipe, self.guidance_plan)

    @property
    def rows(self) -> Rows | None:
        """The rows of network evaluations so far, counted under a guidance plan alone."""
        return self._guided.rows if self._guided else None

    @property
    def evaluations_per_step(self) -> int:
        """Network evaluations of one step for all prompts: mostly two per prompt under guidance."""
        return len(self.prompts) * calls.rows(self.pipe, self.guidance_scale, self.options)

    @property
    def mu(self) -> float | None:
        """`mu_at` `shift_steps`, by default the pipeline's number of steps."""
        known = calls.parameters(self.pipe)
        default = known["num_inference_steps"].default if "num_inference_steps" in known else None
        return self.mu_at(self.shift_steps or default or 50)

    def mu_at(self, steps: int) -> float | None:
        """What the pipeline computes a flow scheduler's shift from, at K steps.

        None where the shift is fixed.
        """
        if not completed(self.pipe.scheduler).get("use_dynamic_shifting"):
            return None
        return self._arguments(self.pipe.scheduler, steps)[1].get("mu")

    def asked(self, scheduler: Any, steps: int) -> Any:
        """A copy of a scheduler as the pipeline sets it for K steps. Nothing is drawn."""
        args, kwargs = self._arguments(scheduler, steps)
        alone = copy.deepcopy(scheduler)
        alone.set_timesteps(*args, **kwargs)
        return alone

    def _arguments(self, scheduler: Any, steps: int) -> tuple[tuple, dict[str, Any]]:
        """Those with which the pipeline sets K steps of such a scheduler."""
        key, first = (type(scheduler).__name__, steps), slice(0, 1)
        if key not in self._asked:
            self._asked[key] = calls.asked(
                scheduler,
                lambda s: self.call(first, s, self.generators(first), num_inference_steps=steps),
            )
        return self._asked[key]

    @cached_property
    def _asked(self) -> dict[tuple[str, int], tuple[tuple, dict[str, Any]]]:
        return {}

    def check_grid_used(self, scheduler: Any, steps: int) -> None:
        """Raises WrongUse where the pipeline sets other levels than the scheduler's grid of K."""
        alone = copy.deepcopy(scheduler)
        mu = self.mu_at(steps)
        alone.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
        try:
            used = self.asked(scheduler, steps).timesteps.tolist() == alone.timesteps.tolist()
        except WrongUse:  # levels that the scheduler refuses, as Cosmos 2's, which rise
            used = False
        remedy = "it sets levels of its own, whatever its scheduler's grid: no grid can be drawn"
        check(used, "pipe", type(self.pipe).__name__, remedy)

    def on_grid(self, grid: Any) -> tuple[Any, int]:
        """The run's scheduler on a grid of K steps, as `with_grid` returns it, and K.

        Where no class of ours is the same method, it cannot be saved (`hold`). Raises WrongUse for
        what is no grid, and for a pipeline that sets levels of its own.
        """
        scheduler, steps = self.scheduler or self.pipe.scheduler, self._steps(grid)
        if counterpart(scheduler) is None:
            return hold(scheduler, grid), steps
        made = with_grid(scheduler, grid, self.mu_at(steps))
        self.check_grid_used(made, steps)
        return made, steps

    def _steps(self, grid: Any) -> int:
        """K, the number of steps of a grid; sigmas may state its end as well."""
        return len(self.schedule.grid_of(grid)) - 1

    @cached_property
    def schedule(self) -> Levels:
        """The noise schedule of the pipeline's own scheduler, at these pictures' size."""
        return Levels.from_diffusers(self.config)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config of the pipeline's own scheduler, with the shift for these pictures' size."""
        return with_fixed_shift(completed(self.pipe.scheduler), self.mu)

    def part(self, places: slice | Sequence[int]) -> Run:
        """The run of some of the prompts, with their own seeds and options."""
        assert self.seeds is not None
        chosen = range(len(self.prompts))[places] if isinstance(places, slice) else list(places)
        options = {name: self._cut(name, value, chosen) for name, value in self.options.items()}
        prompts, seeds = [self.prompts[n] for n in chosen], [self.seeds[n] for n in chosen]
        part = replace(self, prompts=prompts, seeds=seeds, options=options)
        vars(part)["_asked"] = self._asked  # asking again would encode the prompts again
        vars(part)["_guided"] = self._guided
        return part

    def prepared_with(self, kind: Any) -> Run:
        """The same run, drawn by a scheduler class that takes any grid as it is given."""
        return replace(self, scheduler=drawing(kind, self.pipe.scheduler, self.end))

    def path(
        self,
        steps: int = 64,
        adjoint_probes: int = 0,
        also: Measure | None = None,
        directions: Tensor | None = None,
        spent: Callable[[int], None] | None = None,
    ) -> Trajectory:
        """DDIM's path over `steps` evenly spaced timesteps and timestep 0, where it ends.

        One evaluation per point, and sweeps back over it, three more each: `adjoint_probes` along
        random directions of the end, then one along each of `directions` (count × n × d). `also` is
        called with every point, and `spent` with the network evaluations just made. Latents come
        flattened, d numbers each. Raises WrongUse for a pipeline or options whose samples follow
        another path.
        """
        return record_path(self, steps, adjoint_probes, also, directions, spent)

    @torch.no_grad()
    def ends(self, grid: Any) -> Tensor:
        """The final latents (n × d, float32) of the run's scheduler on a grid.

        The grid is of whole timesteps or of sigmas, as `Levels.grid_of` reads them. Raises WrongUse
        where scheduler or pipeline takes none (`on_grid`).
        """
        scheduler, steps = self.on_grid(grid)
        ends = [
            self._drawn(batch, scheduler, num_inference_steps=steps, output_type="latent")[1]
            for batch in self.batches()
        ]
        return torch.cat([latents.flatten(1) for latents in ends]).float().cpu()

    def pictures(self, grid: Any = None, **steps: Any) -> Drawn:
        """Pictures on a grid, as `ends` takes it.

        Or with what `steps` says: num_inference_steps, or the pipeline's own timesteps or sigmas.

        Where memory runs out, half as many are drawn at once, with a warning: each picture has its
        own noise, so that it stays the same up to the rounding of sums. Raises WrongUse where the
        memory does not suffice for a single picture, or for no steps.
        """
        check_whole("num_inference_steps", steps.get("num_inference_steps", 1), 1)
        remedy = "take a smaller dtype or another device"
        return within_memory(self, lambda run: run._pictures(grid, steps), "drawing", remedy)

    @torch.no_grad()
    def _pictures(self, grid: Any, steps: dict[str, Any]) -> Drawn:
        scheduler = self.scheduler or self.pipe.scheduler
        if grid is not None:
            scheduler, count = self.on_grid(grid)
            steps = {**steps, "num_inference_steps": count}
        images, latents, finite, begun = [], [], [], time.perf_counter()
        before = self._needed()
        for batch in self.batches():
            drawn, last = self._drawn(batch, scheduler, **steps, output_type="np")
            sound = torch.from_numpy(np.isfinite(drawn).reshape(len(drawn), -1).all(1))
            if len(last) == len(drawn):
                sound &= last.isfinite().flatten(1).all(1).cpu()
            shown = np.where(sound.reshape(-1, *[1] * (drawn.ndim - 1)), drawn, 0)
            images.append(images_to_uint8(shown))
            latents.append(last.float().cpu())
            finite.append(sound)
        seconds = (time.perf_counter() - begun) / len(self.prompts)
        at_once = min(self.batch_size, len(self.prompts))
        made = (torch.cat(images), torch.cat(latents), seconds, torch.cat(finite), at_once)
        return Drawn(*made, None if self.rows is None else self._needed() - before)

    def _needed(self) -> int:
        """The rows so far, without those that were made to learn how the pipeline guides."""
        return 0 if self.rows is None else self.rows.count - self.rows.learned

    def _drawn(self, batch: slice, scheduler: Any, **how: Any) -> tuple[Any, Tensor]:
        """What the pipeline returns of a batch, and the latents after its last step.

        They are as the scheduler has them: some pipelines unpack and rescale those they return.
        """
        latents = torch.empty(0)

        def keep(pipe: Pipeline, step: int, timestep: Tensor, values: dict) -> dict:
            nonlocal latents
            latents = values["latents"]
            return values

        kind = type(scheduler)

        @functools.wraps(kind.step)
        def step(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal latents
            result = kind.step(self, *args, **options)
            latents = result[0]
            return result

        if "callback_on_step_end" in calls.parameters(self.pipe):
            how["callback_on_step_end"] = keep
        else:
            scheduler = intercepted(scheduler, "watched by a run", step=step)
        return self.call(batch, scheduler, self.generators(batch), **how), latents

    def batches(self) -> Iterator[slice]:
        """The prompts' numbers, no more than `batch_size` at once."""
        for start in range(0, len(self.prompts), self.batch_size):
            yield slice(start, min(start + self.batch_size, len(self.prompts)))

    def generators(self, batch: slice) -> list[torch.Generator]:
        """One per prompt, so that a picture does not depend on its batch."""
        assert self.seeds is not None
        return [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds[batch]]

    def call(self, batch: slice, scheduler: Any, generators: list, **how: Any) -> Any:
        """The pipeline's images, or frames, of a batch, drawn by a scheduler."""
        prompts = list(self.prompts[batch])
        options = {name: self._given(name, value, batch) for name, value in self.options.items()}
        if self.guidance_scale is not None:
            options["guidance_scale"] = self.guidance_scale
        guided = nullcontext() if self._guided is None else guided_by(self._guided)
        with calls.swapped(self.pipe, scheduler=scheduler), guided:
            result = self.pipe(prompt=prompts, generator=generators, **options, **how)
        return calls.pictures_of(result)

    def _cut(self, name: str, value: Any, places: Sequence[int]) -> Any:
        """Some prompts' part of an option."""
        if not calls.per_prompt(self.pipe, name, value, len(self.prompts)):
            return value
        several = isinstance(value, list)
        return [value[n] for n in places] if several else value[list(places)]

    def _given(self, name: str, value: Any, batch: slice) -> Any:
        """A batch's part of an option, as the pipeline takes it."""
        size = batch.stop - batch.start
        if name.startswith("negative_prompt") and isinstance(value, str):
            return [value] * size
        if name == "latents" and len(value) == 1:
            return value.to(network(self.pipe).dtype).repeat(size, *[1] * (value.ndim - 1))
        return self._cut(name, value, range(batch.start, batch.stop))


Result = TypeVar("Result")


def within_memory(run: Run, work: Callable[[Run], Result], doing: str, remedy: str) -> Result:
    """`work` of a run; where memory runs out, of half as many prompts at once, with a warning.

    Raises WrongUse with the remedy where it does not suffice for one prompt.
    """
    size = min(run.batch_size, len(run.prompts))
    try:
        return work(run)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
    why = f"the device has no memory for {doing} one prompt ({reason})"
    check(size > 1, "batch_size", size, f"{why}; {remedy}")
    half = size // 2
    log.warning("no memory for %d prompts at once (%s); %s %d at once", size, reason, doing, half)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return within_memory(replace(run, batch_size=half), work, doing, remedy)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device's memory did not suffice."""
    known = ("out of memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in known)
