"""What an experiment is to draw: methods × solvers × steps × guidance, cut into batches of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from asddim_lib.errors import check
from asddim_lib.grids.methods import ALLOCATIONS, CALIBRATED
from asddim_lib.grids.searched import SEARCHED
from asddim_lib.schedulers.asddim import ASDDIMScheduler
from asddim_lib.schedulers.unipc import UniPCGridScheduler

#: The paper's methods, by their grids. `ddim` is Stable Diffusion's own; the trailing one tells a better start from a better grid. Any other
#: allocation of `grids` is a method of its own name.
METHODS: dict[str, str] = {
    "ddim": "leading",
    "ddim-trailing": "trailing",
    "noise": "noise",
    "gradient": "gradient",
    "combined": "combined",
}
#: Methods whose grids are found by trying them on tuning prompts.
TRIED = ("chosen", "direct")
#: Points of the path that grids are searched on, as GITS' authors have it.
RECORDED_STEPS = 60
#: Steps of the solution that grids are tried against.
FINE_STEPS = 200
#: Each solver's scheduler, and the order of its error. Euler's method is DDIM's in other variables, and the one that flow matching has.
SOLVERS: dict[str, tuple[Any, int]] = {
    "ddim": (ASDDIMScheduler, 1),
    "dpm++": (DPMSolverMultistepScheduler, 2),
    "unipc": (UniPCGridScheduler, 2),
    "euler": (EulerDiscreteScheduler, 1),
}


@dataclass(frozen=True)
class Setting:
    """What an experiment runs. Two runs with the same setting and model give the same pictures.

    With `reference_steps`, trailing DDIM with as many is drawn too, and every picture's distance from its own. A profile is made on
    `calibrate_on` of the `tuning_prompts` (a source for `load_prompts`; what is reported on is left out) over `calibrate_steps`, with
    `adjoint_probes`, from the seed `tuning_seed` on; what is found by trying is tried on `try_on` of them. With `latents`, a file for
    `load_latents`, every picture starts from the same.
    """

    methods: tuple[str, ...] = tuple(METHODS)
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
    tuning_seed: int = 0
    try_on: int = 32
    negative_prompt: str = ""
    latents: str = ""
    tuning_prompts: str = "bundled-tune"

    def __post_init__(self) -> None:
        known = tuple(dict.fromkeys((*METHODS, *ALLOCATIONS, *SEARCHED, *TRIED)))
        for method in self.methods:
            check(method in known, "method", method, f"use some of {', '.join(known)}")
        for solver in self.solvers:
            check(solver in SOLVERS, "solver", solver, f"use some of {', '.join(SOLVERS)}")
        for steps in self.steps:
            check(1 <= steps <= 1000, "steps", steps, "give whole numbers, 1 to 1000")
        for scale in self.guidance_scales:
            check(
                scale >= 1,
                "guidance_scale",
                scale,
                "give a number of at least 1 (1 is no guidance)",
            )
        check(
            0 <= self.reference_steps <= 1000,
            "reference_steps",
            self.reference_steps,
            "give 1 to 1000, or 0 for none",
        )
        check(self.batch_size >= 1, "batch_size", self.batch_size, "give at least 1")
        alone = not (self.profiled and self.negative_prompt)
        check(
            alone,
            "negative_prompt",
            self.negative_prompt,
            "profiles are measured without one: leave it out, or the methods that need a profile",
        )

    @property
    def measures(self) -> bool:
        """Whether a method's grid is measured on the model."""
        return bool(
            {*CALIBRATED, *TRIED, *SEARCHED}
            & {METHODS.get(method, method) for method in self.methods}
        )

    @property
    def profiled(self) -> bool:
        """Whether a method needs a profile."""
        return bool(
            {*CALIBRATED, *TRIED} & {METHODS.get(method, method) for method in self.methods}
        )


@dataclass(frozen=True)
class Cell:
    """One method with one solver at one step count and guidance scale."""

    method: str
    steps: int
    guidance_scale: float
    solver: str = "ddim"

    @property
    def name(self) -> str:
        return f"{self.method}-{self.solver}-g{self.guidance_scale:g}-k{self.steps}"

    @property
    def evaluations(self) -> int:
        """Network evaluations a picture: two a step with guidance."""
        return self.steps * (2 if self.guidance_scale > 1 else 1)


class Batch(NamedTuple):
    """The pictures of a cell for the prompts `start` … `stop` − 1: drawn together, kept in one file, whoever draws them."""

    cell: Cell
    start: int
    stop: int

    @property
    def pictures(self) -> int:
        return self.stop - self.start

    @property
    def evaluations(self) -> int:
        return self.pictures * self.cell.evaluations

    def file(self, out: Path) -> Path:
        return out / "images" / f"{self.cell.name}-{self.start:06d}.safetensors"


def batches(cell: Cell, count: int, setting: Setting) -> list[Batch]:
    """A cell's pictures for `count` prompts; cut the same way whatever draws them."""
    return [
        Batch(cell, start, min(start + setting.batch_size, count))
        for start in range(0, count, setting.batch_size)
    ]


def cells(setting: Setting) -> list[Cell]:
    """Every cell of the experiment, methods innermost."""
    return [
        Cell(m, k, g, s)
        for g in setting.guidance_scales
        for k in setting.steps
        for s in setting.solvers
        for m in setting.methods
    ]


def references(setting: Setting) -> list[Cell]:
    """The cells that distances are measured from, one a guidance scale; none unless the setting asks."""
    solver = "euler" if setting.solvers == ("euler",) else "ddim"
    return (
        [Cell("ddim-trailing", setting.reference_steps, g, solver) for g in setting.guidance_scales]
        if setting.reference_steps
        else []
    )
