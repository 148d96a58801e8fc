"""What an experiment draws: methods × solvers × steps × guidance, cut into batches of prompts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from asddim_lib.configs import is_flow
from asddim_lib.errors import WrongUse, check, check_scale, check_whole
from asddim_lib.grids import table as table
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.models import calls
from asddim_lib.models.load import Pipeline
from asddim_lib.schedulers.place import ENDS
from asddim_lib.schedulers.solvers import SOLVERS as SOLVERS
from experiments import rivals as rivals  # adds its grids to the table

#: The paper's methods, by their allocations. `ddim` is Stable Diffusion's own; the trailing one
#: tells a better start from a better grid. Any other method goes by its name in the table.
PAPER_METHODS: dict[str, str] = {
    "ddim": "leading",
    "ddim-trailing": "trailing",
    "noise": "noise",
    "gradient": "gradient",
    "combined": "combined",
}
#: Methods whose grids are searched for by drawing with them on tuning prompts.
TRIED = ("chosen", "direct", "tuned")
#: The guidance plan that changes nothing: the same scale in each step.
CONSTANT = "constant"
#: Points of the path that grids are searched on, as GITS' authors have it.
RECORDED_STEPS = 60
#: Products with the Jacobian by which κ is measured at each point of a path.
KAPPA_PROBES = 6


def needs(method: str) -> str:
    """What a method needs, as the table of methods says."""
    if method in TRIED:
        return "trials"
    return table.METHODS[PAPER_METHODS.get(method, method)].needs


def is_measured(plan: str) -> bool:
    """Whether a guidance plan needs a measured κ."""
    return plan.startswith("capped-measured")


def _plan(name: str) -> GuidancePlan:
    """The plan of that name, without a measured κ."""
    return GuidancePlan.named(name.replace("-measured", ""))


@dataclass(frozen=True)
class Setting:
    """What an experiment runs. Two runs with the same setting and model give the same pictures.

    With `reference_steps`, trailing DDIM with as many is drawn too (Euler's method, which is the
    same, of a flow-matching model), and every picture's distance from its own is measured. A
    profile is made on `calibrate_on` of the `tuning_prompts` (a source for `load_prompts`; prompts
    that are reported on are left out) over `calibrate_steps`, with `adjoint_probes` and
    `feature_probes`, from the seed `tuning_seed` on. Grids are tried on `try_on` of them, and tuned
    on `tune_on`: by what the image `encoder` sees (`encoder_for` names the default), unless the
    `check_encoder` objects. That one also looks at the pictures of prompts that the bundled judge
    cannot read. `guidance_plans` are names for `GuidancePlan.named`; those other than "constant"
    are drawn where the scale is above 1, and capped-measured by a κ that is measured as a profile
    is. With `latents`, a file for `load_latents`, every picture
    starts from the same noise. All solvers end at `end`: "zero", "sigma_min", or where the model's
    own config says. `truncate` cuts prompts that are too long, which are refused otherwise. `call`
    is a JSON object of further options that the pipeline's call is given, such as height. Raises
    WrongUse for a value out of range, or one that is named twice, and where no cell is left.
    """

    methods: tuple[str, ...] = tuple(PAPER_METHODS)
    steps: tuple[int, ...] = (20, 50, 100)
    guidance_scales: tuple[float, ...] = (7.5,)
    solvers: tuple[str, ...] = ("ddim",)
    guidance_plans: tuple[str, ...] = (CONSTANT,)
    reference_steps: int = 0
    batch_size: int = 50
    p: float = 0.5
    lam: float = 1.0
    reading: str = "intent"
    calibrate_on: int = 8
    calibrate_steps: int = 20
    adjoint_probes: int = 0
    feature_probes: int = 0
    tuning_seed: int = 0
    try_on: int = 32
    tune_on: int = 128
    encoder: str = ""
    check_encoder: str = ""
    negative_prompt: str = ""
    latents: str = ""
    tuning_prompts: str = "bundled-tune"
    truncate: bool = False
    end: str | None = None
    call: str = ""

    def __post_init__(self) -> None:
        known = tuple(dict.fromkeys((*PAPER_METHODS, *table.METHODS, *TRIED)))
        for method in self.methods:
            check(method in known, "method", method, f"use some of {', '.join(known)}")
        for solver in self.solvers:
            check(solver in SOLVERS, "solver", solver, f"use some of {', '.join(SOLVERS)}")
        for steps in self.steps:
            check_whole("steps", steps, 1, 1000)
        for scale in self.guidance_scales:
            check_scale(scale)
        for name in ("methods", "solvers", "steps", "guidance_scales", "guidance_plans"):
            self._check_once(name)
        names = ", ".join(self.guidance_plans)
        plans = {(_plan(name), is_measured(name)) for name in self.guidance_plans}
        once = len(plans) == len(self.guidance_plans)
        check(once, "guidance_plans", f"{names}, two of which are the same", "leave one out")
        scales = ", ".join(f"{scale:g}" for scale in self.guidance_scales)
        remedy = f"give one above 1, which the plan {names} can change"
        check(len(cells(self)) > 0, "guidance_scale", scales, remedy)
        check_whole("reference_steps", self.reference_steps, 0, 1000)
        check_whole("batch_size", self.batch_size, 1)
        check(isinstance(self._called(), dict), "call", self.call, "give a JSON object")
        twice = "guidance_scale" in self._called()
        check(not twice, "call", self.call, "guidance_scale has an option of its own: give that")
        check(self.end in (None, *ENDS), "end", self.end, f"use one of {', '.join(ENDS)}")

    def _check_once(self, name: str) -> None:
        """A value that is named twice would count its pictures twice."""
        values: tuple[Any, ...] = getattr(self, name)
        check(len(values) > 0, name, values, "name at least one")
        twice = ", ".join(str(value) for value, count in Counter(values).items() if count > 1)
        check(not twice, name, f"{twice}, more than once", "name each once")

    @property
    def measures(self) -> bool:
        """Whether a method's grid, or a guidance plan, is measured on the model."""
        planned = any(is_measured(name) for name in self.guidance_plans)
        return planned or any(needs(method) != "nothing" for method in self.methods)

    @property
    def planned(self) -> bool:
        """Whether other guidance plans are drawn than the constant one."""
        return self.guidance_plans != (CONSTANT,)

    @property
    def profiled(self) -> bool:
        """Whether a method needs a profile."""
        return any(needs(method) == "profile" for method in self.methods)

    @property
    def options(self) -> dict[str, Any]:
        """What the pipeline is given beside prompts, seeds and guidance."""
        negative = {"negative_prompt": self.negative_prompt} if self.negative_prompt else {}
        return {**self._called(), **negative}

    def _called(self) -> Any:
        try:
            return json.loads(self.call or "{}")
        except json.JSONDecodeError as error:
            raise WrongUse(f"call is {self.call!r}; give a JSON object ({error})") from error


@dataclass(frozen=True)
class Cell:
    """One method with one solver, at one step count and scale, under one guidance plan."""

    method: str
    steps: int
    guidance_scale: float
    solver: str = "ddim"
    guidance_plan: str = CONSTANT

    @property
    def name(self) -> str:
        """What the cell's files are called."""
        name = f"{self.method}-{self.solver}-g{self.guidance_scale:g}-k{self.steps}"
        return name if self.guidance_plan == CONSTANT else f"{name}-{self.guidance_plan}"

    @property
    def plan(self) -> GuidancePlan | None:
        """Its guidance plan, without a measured κ; None for the constant one."""
        return None if self.guidance_plan == CONSTANT else _plan(self.guidance_plan)

    @property
    def unplanned(self) -> Cell:
        """The same cell under constant guidance, which has the same grid."""
        return replace(self, guidance_plan=CONSTANT)


class Batch(NamedTuple):
    """The pictures of a cell for the prompts `start` … `stop` − 1, drawn together, in one file."""

    cell: Cell
    start: int
    stop: int

    @property
    def pictures(self) -> int:
        """How many pictures the batch has."""
        return self.stop - self.start

    def file(self, out: Path) -> Path:
        """Where its pictures are kept."""
        return out / "images" / f"{self.cell.name}-{self.start:06d}.safetensors"


def batches(cell: Cell, count: int, setting: Setting) -> list[Batch]:
    """A cell's pictures for `count` prompts, cut the same way whatever process draws them."""
    starts = range(0, count, setting.batch_size)
    return [Batch(cell, start, min(start + setting.batch_size, count)) for start in starts]


def cells(setting: Setting) -> list[Cell]:
    """Every cell of the experiment, methods innermost. A scale of at most 1 has no plans."""
    return [
        Cell(method, steps, scale, solver, plan)
        for scale in setting.guidance_scales
        for steps in setting.steps
        for solver in setting.solvers
        for plan in setting.guidance_plans
        if scale > 1 or plan == CONSTANT
        for method in setting.methods
    ]


def check_plans(pipe: Pipeline, setting: Setting) -> None:
    """Raises WrongUse for a guidance plan under which the pipeline cannot draw."""
    for cell in cells(setting):
        if cell.plan is not None:
            name, scale = cell.guidance_plan, f"guidance_scale {cell.guidance_scale:g}"
            guided = calls.rows(pipe, cell.guidance_scale, setting.options) > 1
            remedy = f"{type(pipe).__name__} is not guided at {scale}: leave it out"
            check(guided, "guidance_plan", name, remedy)
            served = cell.plan.zero_steps == 0 or is_flow(pipe.scheduler)
            check(served, "guidance_plan", name, "it is for flow models: leave it out")


def picture_evaluations(pipe: Pipeline, setting: Setting, cell: Cell) -> int:
    """Network evaluations of one of the cell's pictures; its plan may leave some out."""
    return cell.steps * calls.rows(pipe, cell.guidance_scale, setting.options)


def references(setting: Setting, scheduler: Any) -> list[Cell]:
    """The cells that distances are measured from, one per guidance scale, if the setting asks.

    The solver is one that the model of the scheduler has, whatever solvers are compared.
    """
    if not setting.reference_steps:
        return []
    alone = "euler" in setting.solvers and "ddim" not in setting.solvers
    euler = is_flow(scheduler) or alone
    solver, steps = "euler" if euler else "ddim", setting.reference_steps
    return [Cell("ddim-trailing", steps, scale, solver) for scale in setting.guidance_scales]
