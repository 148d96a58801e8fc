"""Draws a pipeline with a guidance plan, by answering for its network.

A pipeline asks its network for predictions with the prompt (c) and without it (u), and guides with
a scale of its own, g. Where the plan wants another scale w in a step, the answer for u is
u' = c − (w − 1) / (g − 1) · (c − u), so that u' + g (c − u') = u + w (c − u). At w = 1 it is c,
and the network is not asked for u. No pipeline is edited; its rescaling and its formula stay.

How a pipeline guides is found in the first step that it draws: all predictions are made as it asks
for them, and a known formula has to give what arrives at its scheduler (`formula.formula_of`).
The formula then gives that step at w. Further runs with the same number of rows and the same scales
need no such step. Each step is one where g is not known while the network is asked (Ideogram 4's
schedule), or is near 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asddim_lib.configs import is_flow
from asddim_lib.errors import WrongUse, check
from asddim_lib.guidance.formula import Formula, formula_of, guidance_scales, predictions
from asddim_lib.guidance.steps import law_of, steps_of
from asddim_lib.guidance.tree import prediction, replaced, selected
from asddim_lib.models.calls import embeds_guidance
from asddim_lib.models.load import Pipeline, networks
from asddim_lib.schedulers.place import intercepted

if TYPE_CHECKING:
    from asddim_lib.guidance.plan import GuidancePlan

REMEDY = "draw it without a plan"
#: The names of a network's first argument.
SAMPLES = ("hidden_states", "sample", "x")
#: The attribute of a pipeline that has a plan on it, and of its scheduler.
MARK = "_guided"
#: What a module calls, if it has it, in place of its hooks and its `forward`. Whoever changes those
#: (offloading, diffusers' caches) works within it, before and after.
SEAM = "_compiled_call_impl"


@dataclass
class Rows:
    """Rows of network evaluations: one is one picture, at one step, under one kind of guidance.

    `count` were made, and `skipped` were not, since the plan's scale was 1. Of those made,
    `learned` would not have been, had it been known how the pipeline guides. All are made where a
    cache of diffusers keeps states of the rows.
    """

    count: int = 0
    skipped: int = 0
    learned: int = 0


@dataclass(frozen=True)
class Layout:
    """A step of one network: its `calls`, of so many predictions each, and how they are combined.

    `count` pictures are drawn at once. With `skips`, the prediction without the prompt can be left
    out: no more than two are made, and nothing else depends on it.
    """

    formula: Formula
    calls: tuple[int, ...]
    count: int

    def rows(self, call: int) -> int:
        """The rows of a call; 0 of one too many."""
        return self.count * self.calls[call] if call < len(self.calls) else 0

    @property
    def skips(self) -> bool:
        return sum(self.calls) == 2 and not self.formula.moves_prompt


class Guided:
    """A plan on a pipeline: what was learned of the pipeline, and where its run is."""

    def __init__(self, pipe: Pipeline, plan: GuidancePlan) -> None:
        self.pipe, self.plan, self.rows = pipe, plan, Rows()
        self.layouts: dict[nn.Module, Layout] = {}
        self.stated: Any = None  # by the pipeline, when the layouts were learned
        self.fitted = False  # whether it does not state its scale, as PixArt
        self.late = False  # whether this run's scale counts only after the network's calls
        self.begin()

    def begin(self) -> None:
        """A run begins: its scheduler has set its steps."""
        if self.fitted or self.late:  # this run's scale may be another
            self.layouts.clear()
        self.late = False
        self.cached = any(map(_keeps_states, networks(self.pipe)))
        self.evaluation = 0
        self.scales: dict[float, list[float]] = {}  # of each step, by the pipeline's own scale
        self.gated: set[int] = set()  # pictures that are no longer guided
        self._next()

    def _next(self) -> None:
        self.module: nn.Module | None = None  # the first that is called
        self.unguided = False  # the pipeline itself asks for fewer predictions in this step
        self.outputs: list[Tensor] = []  # the predictions of each call of this step
        self.parts: list[Tensor] = []  # one by one, where the layout is known

    # The network's side

    def answer(self, module: nn.Module, run: Callable, args: tuple, kwargs: dict) -> Any:
        """The network's output, for which only the rows are made that the step's scale needs."""
        same = getattr(self.pipe.scheduler, MARK, None) is self
        what = f"another {type(self.pipe.scheduler).__name__} than the plan was put on with"
        check(same, "pipe.scheduler", what, "set it first, and put the plan on after that")
        given = args[0] if args else kwargs[next(n for n in SAMPLES if n in kwargs)]
        total, call = len(given), len(self.outputs)
        if not call and (self.late or self.stated != self._states()):
            self.layouts.clear()
            self.stated = self._states()
        self.module = self.module or module
        if module is not self.module:  # Ideogram 4, whose text stands before the picture in c
            self.outputs = [one[:, -given.shape[1] :] for one in self.outputs]
            self.parts = [one[:, -given.shape[1] :] for one in self.parts]
        layout = self.layouts.get(self.module)
        if layout is not None and not self.evaluation and total != layout.rows(call):
            self.layouts.clear()  # another number of pictures
            layout = None
        self.unguided |= layout is not None and total != layout.rows(call)

        def make(rows: Tensor | None = None) -> Any:
            self.rows.count += total if rows is None else len(rows)
            if rows is None:
                return run(*args, **kwargs)
            return run(*selected(args, total, rows), **selected(kwargs, total, rows))

        if layout is None or self.unguided:
            output = make()
            self.outputs.append(prediction(output))
            return output
        scales, first = self._of_pictures(layout), len(self.parts)
        output = self._made(layout, total, scales, make)
        made = prediction(output)
        self.outputs.append(made)
        self.parts += made.chunk(layout.calls[call])
        free = {layout.formula.scale, 1.0} if self._skips(layout) else {layout.formula.scale}
        moved = self._moved(layout.formula, first, scales) if {*scales} - free else None
        return output if moved is None else replaced(output, moved)

    def _made(self, layout: Layout, total: int, scales: list[float], make: Callable) -> Any:
        """A call's output, in which c stands for u where the scale is 1, and u is not made."""
        formula, count, first = layout.formula, layout.count, len(self.parts)
        begin = (formula.without - first) * count
        here = self._skips(layout) and 0 <= begin < total
        idle = [begin + k for k, scale in enumerate(scales) if scale == 1] if here else []
        self.rows.skipped += len(idle)
        if not idle:
            self.last = make()
            return self.last
        kept = torch.tensor(sorted({*range(total)} - {*idle}), dtype=torch.long, device="cpu")
        if len(kept):
            self.last = make(kept)
            fewer = prediction(self.last)
            made = fewer.new_empty(total, *fewer.shape[1:])
            made[kept.to(made.device)] = fewer
        else:  # c was the call before
            made = torch.empty_like(self.parts[formula.prompt])
        known = [*self.parts, *made.chunk(total // count)]
        for row in idle:
            made[row] = known[formula.prompt][row - begin]
        return replaced(self.last, made)

    def _skips(self, layout: Layout) -> bool:
        return layout.skips and not self.cached and not self.late

    def _moved(self, formula: Formula, first: int, scales: list[float]) -> Tensor | None:
        """The predictions from the number `first` on, one of them changed to give these scales.

        None where that one is not among them, or needs a later one.
        """
        assert formula.scale is not None
        parts = list(self.parts)
        target = formula.prompt if formula.moves_prompt else formula.without
        if max(formula.prompt, formula.without) >= len(parts) or target < first:
            return None
        u, c = parts[formula.without], parts[formula.prompt]
        wanted = _column(scales, u)
        moved = formula.rescaled(u, c, wanted)
        parts[target] = torch.where(wanted == formula.scale, parts[target], moved)
        return torch.cat(parts[first:])

    # The scheduler's side

    def arrived(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """What the scheduler takes in place of the guided prediction that the pipeline made."""
        module = self.module
        kind = type(self.pipe).__name__
        if module is None:
            raise WrongUse(f"pipe is {kind}, which steps without a network call; {REMEDY}")
        layout = self.layouts.get(module)
        same = layout is None or self.stated == self._states()
        check(same, "pipe", kind, f"it changes its scale within a step: {REMEDY}")
        if layout is None:
            layout = self._learn(model_output, sample)
            scales = self._of_pictures(layout)
            self.rows.learned += scales.count(1.0) if self._skips(layout) else 0
            if any(scale != layout.formula.scale for scale in scales):
                guided = layout.formula.guide(self.parts, _column(scales, model_output))
                model_output = guided.to(model_output.dtype)
        if self.plan.gate is not None and not self.unguided:
            self._gate(layout.formula, self._of_pictures(layout))
        if self.evaluation < self.plan.zero_steps:
            model_output = torch.zeros_like(model_output)
        self.evaluation += 1
        self._next()
        return model_output

    def _learn(self, arrived: Tensor, sample: Tensor) -> Layout:
        """How the pipeline guides, by the step that it has just made."""
        assert self.module is not None
        parts = [predictions(one, sample) for one in self.outputs]
        self.parts = flat = [p for some in parts for p in some]
        kind = type(self.pipe).__name__
        distilled = len(flat) == 1 and embeds_guidance(self.pipe)
        remedy = "its guidance is distilled into the network, which makes one prediction"
        check(not distilled, "pipe", kind, f"{remedy}: {REMEDY}")
        remedy = "it is not guided here: give a guidance_scale above 1, or true_cfg_scale and a "
        check(len(flat) > 1, "pipe", kind, f"{remedy}negative_prompt")
        perturbed = len(flat) == 2 and bool(getattr(self.pipe, "pag_scale", 0))
        check(not perturbed, "pipe", kind, f"its guidance is perturbed attention alone: {REMEDY}")
        scales = guidance_scales(self.pipe, {})
        formula = formula_of(self.pipe, scales, flat, arrived, REMEDY)
        remedy = f"its guidance has no scale that a plan could change: {REMEDY}"
        check(formula.scale is not None, "pipe", kind, remedy)
        assert formula.scale is not None
        calls = tuple(len(some) for some in parts)
        # Near 1, another u would have to be very large.
        self.late |= self.stated != self._states() or abs(formula.scale - 1) < 0.1
        if len(calls) > 1 and formula.without < formula.prompt:  # u is given before c is known
            formula = replace(formula, moves_prompt=True)
        layout = Layout(formula, calls, len(sample))
        self.layouts[self.module] = layout
        known = [part for scale in scales for part in (scale, 1 + scale)]
        guider = getattr(self.pipe, "guider", None)
        self.fitted |= guider is None and formula.scale not in known
        return layout

    def _states(self) -> list[Any]:
        """The guidance that the pipeline states now; a callback may change it in a run."""
        names = ("_guidance_scale", "_true_cfg_scale", "_guidance_rescale", "_pag_scale")
        stated = [getattr(self.pipe, name, None) for name in names]
        guider = getattr(self.pipe, "guider", None)
        ours = ("guidance_scale", "guidance_rescale", "_enabled")
        return stated + [getattr(guider, name, None) for name in ours]

    def _of_pictures(self, layout: Layout) -> list[float]:
        """The scale of each picture in this step."""
        own = layout.formula.scale
        assert own is not None
        if own not in self.scales:
            steps = steps_of(self.pipe.scheduler)
            solver = None if self.plan.c is None else law_of(self.pipe.scheduler)
            remedy = "how much guidance its steps bear is not known: use DDIM, Euler, 2M or UniPC"
            known = self.plan.c is None or solver is not None
            check(known, "pipe.scheduler", type(self.pipe.scheduler).__name__, remedy)
            scales = self.plan.at(steps.sigmas, own, solver, steps.times)
            self.scales[own] = [scales[step] for step in steps.of_evaluation]
        scale = self.scales[own][self.evaluation]
        return [1.0 if k in self.gated else scale for k in range(layout.count)]

    def _gate(self, formula: Formula, scales: list[float]) -> None:
        """From the next step on, pictures whose two predictions agree are not guided."""
        assert self.plan.gate is not None
        u, c = (self.parts[n].flatten(1).float() for n in (formula.without, formula.prompt))
        cosines = torch.cosine_similarity(u, c, dim=1).tolist()
        for k, (cosine, scale) in enumerate(zip(cosines, scales, strict=True)):
            if scale > 1 and cosine >= self.plan.gate:  # at 1, c stands for u
                self.gated.add(k)


@contextmanager
def guided_by(guided: Guided) -> Iterator[Rows]:
    """Within it, the pipeline draws with the plan. Raises WrongUse where one is on it already."""
    pipe = guided.pipe
    check(getattr(pipe, MARK, None) is None, "pipe", "under a guidance plan", "take that off first")
    own, zero = pipe.scheduler, guided.plan.zero_steps
    remedy = "a zero start is defined for flow matching alone: leave it out"
    check(zero == 0 or is_flow(own), "zero_steps", zero, remedy)

    @functools.wraps(type(own).set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        type(own).set_timesteps(self, *args, **kwargs)
        here = (getattr(vars(one).get(SEAM), MARK, None) is guided for one in networks(pipe))
        remedy = "compile or set it first, and put the plan on after that"
        check(all(here), "pipe", "with another network than the plan was put on with", remedy)
        guided.begin()

    @functools.wraps(type(own).step)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, *a: Any, **k: Any) -> Any:
        return type(own).step(self, guided.arrived(model_output, sample), timestep, sample, *a, **k)

    how = "under a guidance plan"
    drawing = intercepted(own, how, set_timesteps=set_timesteps, step=step)
    setattr(drawing, MARK, guided)
    pipe.scheduler = drawing
    setattr(pipe, MARK, guided)
    try:
        with ExitStack() as stack:
            for module in networks(pipe):
                stack.enter_context(_answered_by(guided, module))
            yield guided.rows
    finally:
        delattr(pipe, MARK)
        # The pipeline's scheduler has the timesteps of the last run, as after any drawing.
        delattr(drawing, MARK)
        vars(own).update(vars(drawing))
        pipe.scheduler = own


@contextmanager
def _answered_by(guided: Guided, module: nn.Module) -> Iterator[None]:
    """Within it, a plan answers for a network."""
    before = vars(module).get(SEAM)
    run = before or module._call_impl

    @functools.wraps(run)
    def answer(*args: Any, **kwargs: Any) -> Any:
        return guided.answer(module, run, args, kwargs)

    setattr(answer, MARK, guided)
    # Not by setattr, which a compiled module passes on to the one that was compiled.
    vars(module)[SEAM] = answer
    try:
        yield
    finally:
        if vars(module).get(SEAM) is answer:  # and not compiled since
            del vars(module)[SEAM]
            vars(module).update({} if before is None else {SEAM: before})


def _column(scales: list[float], like: Tensor) -> Tensor:
    """A scale for each picture, which broadcasts to a prediction."""
    values = torch.tensor(scales, dtype=torch.float32, device="cpu")
    return values.reshape(-1, *[1] * (like.ndim - 1)).to(like.device)


def _keeps_states(module: nn.Module) -> bool:
    """Whether a cache of diffusers keeps states of a network's rows from step to step."""
    registries = (getattr(part, "_diffusers_hook", None) for part in module.modules())
    hooks = (hook for one in registries if one is not None for hook in one.hooks.values())
    return any(hook._is_stateful for hook in hooks)
