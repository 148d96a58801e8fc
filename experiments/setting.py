"""What an experiment draws: methods × solvers × steps × guidance, cut into batches of prompts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from asddim_lib.configs import is_flow
from asddim_lib.errors import WrongUse, check, check_scale, check_whole
from asddim_lib.grids import table as table
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
#: Points of the path that grids are searched on, as GITS' authors have it.
RECORDED_STEPS = 60


def needs(method: str) -> str:
    """What a method needs, as the table of methods says."""
    if method in TRIED:
        return "trials"
    return table.METHODS[PAPER_METHODS.get(method, method)].needs


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
    cannot read. With `latents`, a file for `load_latents`, every picture starts from the same
    noise. All solvers end at `end`: "zero", "sigma_min", or where the model's own config says.
    `truncate` cuts prompts that are too long, which are refused otherwise. `call` is a JSON object
    of further options that the pipeline's call is given, such as height. Raises WrongUse for a
    value out of range, or one that is named twice.
    """

    methods: tuple[str, ...] = tuple(PAPER_METHODS)
    steps: tuple[int, ...] = (20, 50, 100)
    guidance_scales: tuple[float, ...] = (7.5,)
    solvers: tuple[str, ...] = ("ddim",)
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
        for name in ("methods", "solvers", "steps", "guidance_scales"):
            self._check_once(name)
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
        """Whether a method's grid is measured on the model."""
        return any(needs(method) != "nothing" for method in self.methods)

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
    """One method with one solver at one step count and guidance scale."""

    method: str
    steps: int
    guidance_scale: float
    solver: str = "ddim"

    @property
    def name(self) -> str:
        """What the cell's files are called."""
        return f"{self.method}-{self.solver}-g{self.guidance_scale:g}-k{self.steps}"


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
    """Every cell of the experiment, methods innermost."""
    return [
        Cell(method, steps, scale, solver)
        for scale in setting.guidance_scales
        for steps in setting.steps
        for solver in setting.solvers
        for method in setting.methods
    ]


def picture_evaluations(pipe: Pipeline, setting: Setting, cell: Cell) -> int:
    """Network evaluations of one of the cell's pictures."""
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
