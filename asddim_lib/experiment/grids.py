"""The grid of every cell of an experiment; those that cost network evaluations are found on tuning prompts, once, and kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from asddim_lib.core.coordinates import is_flow
from asddim_lib.errors import check
from asddim_lib.evidence.profile import SensitivityProfile
from asddim_lib.evidence.trajectory import Trajectory
from asddim_lib.experiment.setting import (
    FINE_STEPS,
    METHODS,
    RECORDED_STEPS,
    SOLVERS,
    TRIED,
    Cell,
    Setting,
    cells,
    references,
)
from asddim_lib.files import locked, seal, short_hash, unseal
from asddim_lib.grids.grid import sigmas, timesteps
from asddim_lib.grids.methods import CALIBRATED
from asddim_lib.grids.searched import SEARCHED
from asddim_lib.measure.calibrate import calibrate, record
from asddim_lib.models.load import Pipeline, weights_hash
from asddim_lib.models.prompts import check_prompts
from asddim_lib.tune.search import choose, direct_search, solution


def find_grids(
    pipe: Pipeline, setting: Setting, out: Path, tune: list[str], teach_on: int = 256
) -> tuple[dict[Cell, Any], dict[float, SensitivityProfile]]:
    """Every cell's timesteps, and each guidance scale's profile where a method needs one: measured by the first process that comes here on
    the prompts `tune`, kept, and read by the others. A flow-matching pipeline has sigmas for timesteps, Euler's solver alone, and no method that measures."""
    if is_flow(pipe.scheduler):
        for solver in setting.solvers:
            check(solver == "euler", "solver", solver, "a flow-matching model has euler alone")
        for method in setting.methods:
            measured = METHODS.get(method, method) in (*CALIBRATED, *TRIED, *SEARCHED)
            check(
                not measured,
                "method",
                method,
                "it is measured on a UNet, which a flow-matching model has not: use ddim-trailing, noise or a fixed grid",
            )
    check_prompts(pipe, tune)
    grids: dict[Cell, Any] = {}
    profiles: dict[float, SensitivityProfile] = {}
    with locked(out / "images"):
        if setting.measures:
            keys = ("calibrate_on", "calibrate_steps", "adjoint_probes", "tuning_seed", "try_on")
            made = {
                "weights": weights_hash(pipe),
                "dtype": str(pipe.unet.dtype),
                "tuning_prompts": short_hash(tune),
                "teach_on": teach_on,
            }
            _claim_tuning(out, made | {key: getattr(setting, key) for key in keys})
        for scale in setting.guidance_scales:
            file = out / "images" / f"profile-g{scale:g}.json"
            held = unseal(file) if setting.profiled else None
            if setting.profiled and not held:
                how: dict[str, Any] = {
                    "num_steps": setting.calibrate_steps,
                    "adjoint_probes": setting.adjoint_probes,
                    "seed": setting.tuning_seed,
                }
                held = calibrate(
                    pipe,
                    tune[: setting.calibrate_on],
                    guidance_scale=scale,
                    cache=out / "images" / "parts",
                    **how,
                ).to_dict()
                seal(file, held)
            profile = SensitivityProfile.from_dict(held) if held else None
            if profile:
                profiles[scale] = profile
            find = _Finder(pipe, setting, scale, profile, tune, teach_on, out)
            for cell in (*cells(setting), *references(setting)):
                if cell.guidance_scale == scale:
                    grids[cell] = (
                        find(cell)
                        if cell.method in (*SEARCHED, *TRIED)
                        else grid_for(pipe.scheduler, cell, setting, profile)
                    )
    return grids, profiles


def _claim_tuning(out: Path, made: dict[str, Any]) -> None:
    """Writes what the folder's profiles and found grids depend on, or refuses a folder whose own depend on something else."""
    file = out / "images" / "tuning.json"
    held = unseal(file) or made
    other = [key for key in made if held.get(key) != made[key]]
    check(
        not other,
        "out",
        f"{out}, which holds profiles of another {', '.join(other)}",
        "name another folder or remove this one",
    )
    seal(file, made)


def grid_for(
    scheduler: Any,
    cell: Cell,
    setting: Setting,
    profile: SensitivityProfile | None = None,
    path: Trajectory | None = None,
    temper: float = 1.0,
) -> list[int] | list[float]:
    """The timesteps of a cell on the noise schedule of a scheduler or its config; of a flow-matching one, its sigmas."""
    how: dict[str, Any] = {
        "p": setting.p,
        "lam": setting.lam,
        "reading": setting.reading,
        "profile": profile,
        "path": path,
        "temper": temper,
    }
    how |= {"order": SOLVERS[cell.solver][1], "allocation": METHODS.get(cell.method, cell.method)}
    return (
        sigmas(scheduler, cell.steps, **how)
        if is_flow(scheduler)
        else timesteps(scheduler, cell.steps, **how)
    )


@dataclass
class _Finder:
    """Finds the grids that cost network evaluations, on tuning prompts at one guidance scale, and keeps them beside the pictures.

    `oracle` and `gits` are searched on a path of `teach_on` prompts, `dual-path` on one of `try_on` with its adjoints. `direct` searches on from
    the best of our own densities, whole and tempered, of three fixed grids, and for DDIM of `dual-path`, to the end; `chosen`, for no more
    evaluations than the fine solution takes. Paths and that solution are made when they are first needed.
    """

    pipe: Pipeline
    setting: Setting
    scale: float
    profile: SensitivityProfile | None
    prompts: list[str]
    teach_on: int
    out: Path

    def __call__(self, cell: Cell) -> list[int]:
        file = found_file(cell, self.out)
        found = unseal(file)
        if not found:
            found = (
                {"timesteps": self._searched(cell)} if cell.method in SEARCHED else self._try(cell)
            )
            seal(file, found)
        return found["timesteps"]

    @cached_property
    def path(self) -> Trajectory:
        return self._record(self.teach_on)

    @cached_property
    def swept(self) -> Trajectory:
        return self._record(self.setting.try_on, adjoint_probes=2)

    @cached_property
    def goal(self) -> Tensor:
        return solution(
            self.pipe,
            self.prompts[: self.setting.try_on],
            guidance_scale=self.scale,
            reference_steps=FINE_STEPS,
            seed=self.setting.tuning_seed,
        )

    def _record(self, count: int, **how: Any) -> Trajectory:
        return record(
            self.pipe,
            self.prompts[:count],
            guidance_scale=self.scale,
            batch_size=16,
            seed=self.setting.tuning_seed,
            num_steps=RECORDED_STEPS,
            **how,
        )

    def _searched(self, cell: Cell) -> list[int]:
        return self._grid(cell, path=self.swept if cell.method == "dual-path" else self.path)

    def _grid(self, cell: Cell, **more: Any) -> Any:
        return grid_for(self.pipe.scheduler, cell, self.setting, self.profile, **more)

    def _try(self, cell: Cell) -> dict[str, Any]:
        ours = [
            ("equidistributed", 1.0),
            *(("dual-weighted", temper) for temper in (1.0, 0.75, 0.5, 0.25)),
        ]
        starts = {
            f"{name} {temper}": self._grid(replace(cell, method=name), temper=temper)
            for name, temper in ours
        }
        if (
            cell.solver == "ddim" and cell.steps <= RECORDED_STEPS
        ):  # its arrivals are those of DDIM's steps
            starts["dual-path"] = self(replace(cell, method="dual-path"))
        fixed = ("trailing", "leading" if cell.solver == "ddim" else "karras", "beta")
        starts |= {name: self._grid(replace(cell, method=name)) for name in fixed}
        prompts, own = self.prompts[: self.setting.try_on], self.pipe.scheduler
        how: dict[str, Any] = {
            "guidance_scale": self.scale,
            "seed": self.setting.tuning_seed,
            "goal": self.goal,
        }
        try:
            self.pipe.scheduler = SOLVERS[cell.solver][0].from_config(own.config)
            if cell.method == "direct":
                return direct_search(self.pipe, prompts, list(starts.values()), **how)._asdict()
            name, best = choose(self.pipe, prompts, starts, **how)
            found = direct_search(self.pipe, prompts, [best.timesteps], budget=FINE_STEPS, **how)
            return {
                "name": name,
                **found._asdict(),
                "evaluations": best.evaluations + found.evaluations,
            }
        finally:
            self.pipe.scheduler = own


def found_file(cell: Cell, out: Path) -> Path:
    """Where a grid that was found on network evaluations is kept."""
    return out / "images" / f"grid-{cell.name}.json"
