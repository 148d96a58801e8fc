"""The grid of every cell. Those that cost network evaluations are found once, and kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asddim_lib.cache import locked, seal, short_hash, unseal, versions
from asddim_lib.calibration import calibrate, record
from asddim_lib.errors import check
from asddim_lib.evidence.path import Trajectory
from asddim_lib.evidence.profile import Profile
from asddim_lib.grids.grid import sigmas
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.levels import Levels
from asddim_lib.models.load import Pipeline, network
from asddim_lib.models.prompts import check_prompts
from asddim_lib.pipeline.manifest import manifest
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import drawing
from asddim_lib.schedulers.solvers import solver_of
from asddim_lib.tuning.tune import tune
from experiments.draw import claim, weights_hash
from experiments.setting import (
    KAPPA_PROBES,
    PAPER_METHODS,
    RECORDED_STEPS,
    Cell,
    Setting,
    cells,
    is_measured,
    needs,
    references,
)

#: Adjoint sweeps of the path that `dual-path` is searched on.
SWEEPS = 2


def find_grids(
    pipe: Pipeline, setting: Setting, out: Path, tuning: list[str], teach_on: int = 256
) -> tuple[dict[Cell, Any], dict[float, Profile]]:
    """Every cell's timesteps, and each guidance scale's profile where a method needs one.

    What is measured is measured by the first process that comes here, on the prompts `tuning`,
    kept, and read by the others. A flow-matching pipeline's timesteps are numbers of its levels.
    Raises WrongUse for a solver that does not serve it.
    """
    for solver in setting.solvers:
        solver_of(solver, pipe.scheduler)
    check_prompts(pipe, tuning, truncate=setting.truncate)
    for cell in cells(setting):  # chosen and direct were searched by an earlier version
        known = needs(cell.method) != "trials" or cell.method == "tuned"
        recorded = known or grid_file(cell, out).exists()
        check(recorded, "method", cell.method, "it is on record alone: use tuned")
    grids: dict[Cell, Any] = {}
    profiles: dict[float, Profile] = {}
    with locked(out / "images"):
        if any(needs(method) != "nothing" for method in setting.methods):
            origin = _origin(pipe, setting, tuning, teach_on)
            claim(out / "images" / "tuning.json", origin, "profiles")
        for scale in setting.guidance_scales:
            profile = _profile(pipe, setting, scale, tuning, out) if setting.profiled else None
            if profile:
                profiles[scale] = profile
            find = _Finder(pipe, setting, scale, profile, tuning, teach_on, out)
            for cell in (*cells(setting), *references(setting, pipe.scheduler)):
                if cell.guidance_scale == scale:
                    grids[cell] = find(cell)
    return grids, profiles


def find_plans(
    pipe: Pipeline, setting: Setting, out: Path, tuning: list[str]
) -> dict[Cell, GuidancePlan]:
    """The guidance plans that take κ from a profile, by their cells.

    It is measured on `calibrate_on` of the prompts `tuning`, at each cell's scale, and kept.
    """
    plans: dict[Cell, GuidancePlan] = {}
    with locked(out / "images"):
        for cell in filter(lambda one: is_measured(one.guidance_plan), cells(setting)):
            profile = calibrate(  # the folder of parts has it already for the next cell
                pipe,
                tuning[: setting.calibrate_on],
                guidance_scale=cell.guidance_scale,
                num_steps=setting.calibrate_steps,
                estimator="path",
                kappa_probes=KAPPA_PROBES,
                seed=setting.tuning_seed,
                truncate=setting.truncate,
                cache=out / "images" / "parts",
                **setting.options,
            )
            plans[cell] = GuidancePlan.named(cell.guidance_plan, profile)
    return plans


def _origin(pipe: Pipeline, setting: Setting, tuning: list[str], teach_on: int) -> dict[str, Any]:
    """What the folder's profiles and found grids depend on."""
    names = ("calibrate_on", "calibrate_steps", "adjoint_probes", "tuning_seed", "try_on")
    origin: dict[str, Any] = {"weights": weights_hash(pipe), "dtype": str(network(pipe).dtype)}
    origin |= {"tuning_prompts": short_hash(tuning), "teach_on": teach_on}
    origin |= {name: getattr(setting, name) for name in names}
    origin |= {"pipeline": manifest(pipe), "versions": versions(), "end": setting.end}
    later = ("call", "feature_probes", "tune_on", "encoder", "check_encoder")
    for name in later:  # absent in claims from before them
        if getattr(setting, name) != getattr(Setting, name):
            origin[name] = getattr(setting, name)
    return origin | {"negative_prompt": setting.negative_prompt}


def _profile(
    pipe: Pipeline, setting: Setting, scale: float, tuning: list[str], out: Path
) -> Profile:
    """Loads a guidance scale's profile; if it is missing or damaged, measures and saves it."""
    file = out / "images" / f"profile-g{scale:g}.json"
    values = unseal(file)
    if not values:
        profile = calibrate(
            pipe,
            tuning[: setting.calibrate_on],
            guidance_scale=scale,
            num_steps=setting.calibrate_steps,
            adjoint_probes=setting.adjoint_probes,
            feature_probes=setting.feature_probes,
            encoder=(setting.encoder or None) if setting.feature_probes else None,
            seed=setting.tuning_seed,
            truncate=setting.truncate,
            cache=out / "images" / "parts",
            **setting.options,
        )
        values = profile.to_dict()
        seal(file, values)
    return Profile.from_dict(values)


def grid_for(
    scheduler: Any,
    cell: Cell,
    setting: Setting,
    profile: Profile | None = None,
    path: Trajectory | None = None,
) -> list[int]:
    """A cell's whole timesteps on a scheduler's noise schedule, of a flow model too.

    A shift that depends on the picture's size is fixed in the scheduler, or config, that is given.
    """
    grid = sigmas(
        scheduler,
        cell.steps,
        shifted=True,
        allocation=PAPER_METHODS.get(cell.method, cell.method),
        p=setting.p,
        lam=setting.lam,
        reading=setting.reading,
        profile=profile if needs(cell.method) == "profile" else None,
        path=path if needs(cell.method) in ("path", "adjoints") else None,
        order=solver_of(cell.solver, scheduler)[1],
    )
    return Levels.from_diffusers(scheduler).to_timesteps(grid)


@dataclass
class _Finder:
    """The grids of one guidance scale; what costs network evaluations is kept beside the pictures.

    `oracle` and `gits` are searched on a path of `teach_on` tuning prompts, `dual-path` on one of
    `try_on` with its adjoints. Paths are recorded when first needed. `tuned` is `tune`'s, which
    measures for itself.
    """

    pipe: Pipeline
    setting: Setting
    scale: float
    profile: Profile | None
    prompts: list[str]
    teach_on: int
    out: Path

    def __call__(self, cell: Cell) -> Any:
        cell, need = cell.unplanned, needs(cell.method)
        if need in ("nothing", "profile"):
            return self._grid(cell)
        file = grid_file(cell, self.out)
        values = unseal(file)
        if not values:
            values = self._tuned(cell) if need == "trials" else {"timesteps": self._searched(cell)}
            seal(file, values)
        return values["timesteps"]

    @cached_property
    def path(self) -> Trajectory:
        """A path of `teach_on` prompts."""
        return self._record(self.teach_on)

    @cached_property
    def swept(self) -> Trajectory:
        """A path of `try_on` prompts, with its adjoints."""
        return self._record(self.setting.try_on, adjoint_probes=SWEEPS)

    def _record(self, count: int, adjoint_probes: int = 0) -> Trajectory:
        return record(
            self.pipe,
            self.prompts[:count],
            guidance_scale=self.scale,
            num_steps=RECORDED_STEPS,
            adjoint_probes=adjoint_probes,
            batch_size=16,
            seed=self.setting.tuning_seed,
            truncate=self.setting.truncate,
            **self.setting.options,
        )

    def _searched(self, cell: Cell) -> Any:
        return self._grid(cell, path=self.swept if needs(cell.method) == "adjoints" else self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The scheduler's config, with the shift that belongs to the pictures' size."""
        return Run(self.pipe, ["a"], None, self.scale, options=self.setting.options).config

    def _grid(self, cell: Cell, **more: Any) -> Any:
        return grid_for(self.config, cell, self.setting, self.profile, **more)

    def _tuned(self, cell: Cell) -> dict[str, Any]:
        """What `tune` returns for a cell, where the cell's solver on its own grid is current."""
        setting, own = self.setting, self.pipe.scheduler
        kind = solver_of(cell.solver, own)[0]
        self.pipe.scheduler = drawing(kind, own, setting.end)
        try:
            found = tune(
                self.pipe,
                self.prompts[: setting.tune_on],
                steps=cell.steps,
                guidance_scale=self.scale,
                encoder=setting.encoder or None,
                check_encoder=setting.check_encoder or None,
                seed=setting.tuning_seed,
                truncate=setting.truncate,
                folder=self.out / "images" / f"tune-{cell.name}",
                options=setting.options,
            )
        finally:
            self.pipe.scheduler = own
        return {"timesteps": found.grid, "tuned": found.to_dict()}


def grid_file(cell: Cell, out: Path) -> Path:
    """Where a grid that was found by network evaluations is kept."""
    return out / "images" / f"grid-{cell.unplanned.name}.json"
