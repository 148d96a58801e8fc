"""A guidance plan: the guidance scale of each step.

A plan begins with a scale for each level of noise, and then lowers those that a step cannot bear:

1. the pipeline's own scale; or `scales`, one for each step; or `bands`, one for each range of σ
2. times a `ramp`, which rises over the run (Wang et al. 2024, arXiv 2404.13040)
3. at most `c` / (1 − σ'/σ), or what the solver bears (`law.capped_scale`), where σ is above `above`

The cap takes κ = w. Where κ was measured at a scale m, `kappa` has ρ(σ) = (κ − 1) / (m − 1), and
κ ≤ 1 + ρ (w − 1) for every w from 1 to m: κ is at most 1 without guidance, and convex in w, as the
largest eigenvalue of a symmetric matrix that is linear in w. A step that bears κ is then capped at
1 + (κ − 1) / ρ, with the largest ρ between its ends. That is milder than the cap of κ = w where
ρ < 1. Where ρ > 1 it is stricter: there the model without the prompt hesitates between very
different pictures, and guidance amplifies that.

A step whose scale is 1 needs no prediction without the prompt. σ is the ratio of noise to signal
(`levels`), so that a plan means the same on every grid, model and number of steps.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asddim_lib.cache import write_whole
from asddim_lib.errors import WrongUse, check
from asddim_lib.evidence.profile import Profile
from asddim_lib.guidance.law import SOLVERS, largest_kappa
from asddim_lib.models.load import saved_scheduler

if TYPE_CHECKING:
    from asddim_lib.guidance.rows import Rows

FILE = "guidance_plan.json"
RAMPS = ("linear", "cosine")
#: Published plans: bands of σ, each with the scale above it (None is the pipeline's own).
PUBLISHED: dict[str, tuple[tuple[float, float | None], ...]] = {
    # Kynkäänniemi et al. 2024 (arXiv 2404.07724), their SDXL: guided for σ in (0.28, 5.42].
    "interval-sdxl": ((5.42, 1.0), (0.28, None), (0.0, 1.0)),
    # Yu et al. 2024, REPA: 1.8 where the share of noise is at most 0.7, so σ at most 7/3.
    "interval-repa": ((7 / 3, 1.0), (0.0, 1.8)),
    # Wan 2.2's text-to-video: 4 for the network of high noise, share above 0.875, and 3 below it.
    "wan-2.2": ((7.0, 4.0), (0.0, 3.0)),
}
#: Ideogram 4's for 48 steps. Its lists for 20 and 12 steps, which lower the last 2 and the last
#: one, are this one stretched. No σ separates the scales on all three of its grids.
IDEOGRAM = (7.0,) * 45 + (3.0,) * 3


@dataclass(frozen=True)
class GuidancePlan:
    """The guidance scale of each step. Without arguments it is the pipeline's own, everywhere.

    - `scales`: a scale for each step, K of them. With `stretched` there may be any number of them:
      they are spread evenly over the K steps, and each step has the scale at its end.
    - `bands`: pairs (σ, scale), σ falling to 0. A step that begins above a σ, and not above the one
      before, has its scale; None is the pipeline's own.
    - `ramp`: "linear" or "cosine". Scales are multiplied by a weight that rises from 0 to 2 over
      the timesteps, with the mean 1.
    - `c`: the cap, above 0 and at most 2; None caps nothing. `above`: no step that begins at this σ
      or below it is capped.
    - `kappa`: pairs (σ, κ), σ falling, of the largest eigenvalue measured at the guidance
      `kappa_scale`. Beyond the first and the last σ their κ counts.
    - `gate`: a picture is no longer guided once the cosine between its two predictions has reached
      this (Adaptive Guidance, Castillo et al. 2023); None gates nothing.
    - `zero_steps`: so many first steps add nothing (CFG-Zero*, Fan et al. 2025), on flow models.

    Raises WrongUse for a value out of range.
    """

    scales: tuple[float, ...] | None = None
    stretched: bool = False
    bands: tuple[tuple[float, float | None], ...] | None = None
    ramp: str | None = None
    c: float | None = None
    above: float = 0.0
    kappa: tuple[tuple[float, float], ...] = ()
    kappa_scale: float = 1.0
    gate: float | None = None
    zero_steps: int = 0

    def __post_init__(self) -> None:
        alone = self.stretched and not self.scales
        check(not alone, "stretched", self.stretched, "give scales too, or leave it out")
        if self.scales is not None:
            check(self.bands is None, "bands", self.bands, "give scales or bands, not both")
            object.__setattr__(self, "scales", tuple(map(float, self.scales)))
            for one in self.scales:
                check_scale("scales", one)
        if self.bands is not None:
            bands = tuple((float(s), None if w is None else float(w)) for s, w in self.bands)
            object.__setattr__(self, "bands", bands)
            edges = [sigma for sigma, _ in bands]
            falling = bool(edges) and edges[-1] == 0 and all(np.diff(edges) < 0)
            check(falling, "bands", edges, "give falling σ, of which the last is 0")
            for _, scale in bands:
                if scale is not None:
                    check_scale("bands", scale)
        check(self.ramp in (None, *RAMPS), "ramp", self.ramp, f"use one of {', '.join(RAMPS)}")
        remedy = "give a number above 0 and at most 2, where a step is barely stable"
        check(self.c is None or 0 < self.c <= 2, "c", self.c, remedy)
        sound = math.isfinite(self.above) and self.above >= 0
        check(sound, "above", self.above, "give a σ of at least 0")
        self._check_kappa()
        cosine = self.gate is None or -1 <= self.gate <= 1
        check(cosine, "gate", self.gate, "give a cosine, such as 0.99")
        check(self.zero_steps >= 0, "zero_steps", self.zero_steps, "give 0 or more steps")

    def _check_kappa(self) -> None:
        pairs = tuple((float(sigma), float(kappa)) for sigma, kappa in self.kappa)
        object.__setattr__(self, "kappa", pairs)
        if not pairs:
            return
        check(self.c is not None, "kappa", "given without c", "give the cap's c too")
        sigmas = np.array(pairs)[:, 0]
        falling = sigmas[-1] > 0 and bool((np.diff(sigmas) < 0).all())
        sound = falling and bool(np.isfinite(pairs).all())
        check(sound, "kappa", list(pairs), "give pairs of falling σ above 0 and κ")
        guided = math.isfinite(self.kappa_scale) and self.kappa_scale > 1
        remedy = "give the scale above 1 that κ was measured at: calibrate with guidance"
        check(guided, "kappa_scale", self.kappa_scale, remedy)

    @classmethod
    def constant(cls) -> GuidancePlan:
        """The pipeline's own scale in each step: what it draws without a plan."""
        return cls()

    @classmethod
    def capped(
        cls, c: float | None = None, above: float = 0.0, profile: Profile | None = None
    ) -> GuidancePlan:
        """The pipeline's own scale, at most what a step bears.

        A `profile` gives the κ that `calibrate(…, kappa_probes=6)` measured. `c` is 2 by default,
        and 1.5 with a profile: few pictures have a κ of w, and that is a margin which a measured κ
        does not leave. Raises WrongUse for a profile without κ.
        """
        if c is None:
            c = 2.0 if profile is None else 1.5
        if profile is None:
            return cls(c=c, above=above)
        remedy = "calibrate again with kappa_probes=6"
        check(profile.kappa is not None, "profile", "without kappa", remedy)
        measured: dict[str, Any] = profile.kappa or {}
        pairs = tuple(zip(measured["sigmas"], measured["values"], strict=True))
        return cls(c=c, above=above, kappa=pairs, kappa_scale=measured["scale"])

    @classmethod
    def interval(cls, sigma_high: float, sigma_low: float = 0.0) -> GuidancePlan:
        """Guided where sigma_low < σ ≤ sigma_high (Kynkäänniemi et al. 2024), and not elsewhere."""
        check(sigma_high > sigma_low >= 0, "sigma_high", sigma_high, f"give more than {sigma_low}")
        bands = ((sigma_high, 1.0), (sigma_low, None), (0.0, 1.0))
        return cls(bands=bands if sigma_low else bands[:2])

    @classmethod
    def steps(cls, scales: Sequence[float]) -> GuidancePlan:
        """A scale for each step."""
        return cls(scales=tuple(scales))

    @classmethod
    def named(cls, name: str, profile: Profile | None = None) -> GuidancePlan:
        """The plan of a name: constant, capped, linear, cosine, gated, zero-start or ideogram-4.

        Those of `PUBLISHED` have names too. capped-C has the number C as its `c`, such as
        capped-1.5. capped-measured takes κ from the `profile`, and capped-measured-C too. late-S is
        not guided above σ = S, and capped below it. Raises WrongUse for another name, and for
        capped-measured without a profile.
        """
        late = re.fullmatch(r"late-(\d+(?:\.\d+)?)", name)
        if late:
            return replace(cls.interval(float(late[1])), c=2.0)
        capped = re.fullmatch(r"capped(-measured)?(?:-(\d+(?:\.\d+)?))?", name)
        if capped:
            remedy = f"guidance_plan {name} needs one: run asddim calibrate --kappa-probes 6"
            check(profile is not None or not capped[1], "profile", "not given", remedy)
            c = None if capped[2] is None else float(capped[2])
            return cls.capped(c, profile=profile if capped[1] else None)
        plans = {
            "constant": cls(),
            "linear": cls(ramp="linear"),
            "cosine": cls(ramp="cosine"),
            "gated": cls(gate=0.9988),
            "zero-start": cls(zero_steps=1),
            "ideogram-4": cls(scales=IDEOGRAM, stretched=True),
        } | {key: cls(bands=bands) for key, bands in PUBLISHED.items()}
        known = ", ".join(plans)
        remedy = f"use capped, capped-C, capped-measured, late-S or one of {known}"
        check(name in plans, "guidance_plan", name, remedy)
        return plans[name]

    def at(
        self,
        sigmas: Sequence[float] | np.ndarray,
        guidance_scale: float,
        solver: str | None = "euler",
        times: Sequence[float] | np.ndarray | None = None,
    ) -> list[float]:
        """The scale of each of K steps, at least 1.

        `sigmas` are K + 1 falling σ; the first may be infinite. `times` are the K steps' timesteps
        as parts of T, which a ramp needs. `solver` is one of `law.SOLVERS`. Raises WrongUse for
        `scales` of another number of steps, and for a cap on a solver whose law is not known.
        """
        levels = np.asarray(sigmas, np.float64)
        count = len(levels) - 1
        scales = np.full(count, float(guidance_scale))
        if self.scales is not None:
            size = len(self.scales)
            remedy = f"the run has {count} steps: give as many"
            check(self.stretched or size == count, "scales", f"of {size} steps", remedy)
            ends = np.arange(1, count + 1) * size
            scales = np.array(self.scales)[-(-ends // count) - 1]
        if self.bands is not None:
            scales = np.array([self._band(sigma, guidance_scale) for sigma in levels[:-1]])
        if self.ramp is not None:
            check(times is not None, "times", None, "a ramp needs them")
            past = 1 - np.asarray(times, np.float64)
            scales = scales * (2 * past if self.ramp == "linear" else 1 - np.cos(np.pi * past))
        if self.c is not None:
            remedy = f"its longest stable step is not known: use {', '.join(SOLVERS)}"
            check(solver is not None, "solver", None, remedy)
            caps = self._caps(levels, str(solver))
            self._check_measured(scales[np.isfinite(caps)])
            scales = np.minimum(scales, caps)
        return np.maximum(scales, 1.0).tolist()

    def _band(self, sigma: float, own: float) -> float:
        assert self.bands is not None
        scale = next(scale for edge, scale in self.bands if sigma > edge)
        return own if scale is None else scale

    def _caps(self, levels: np.ndarray, solver: str) -> np.ndarray:
        """Each step's largest scale. The first has no history; the last, to 0, is Euler's."""
        assert self.c is not None
        ratios = [
            after / before if np.isfinite(before) else 0.0
            for before, after in itertools.pairwise(levels)
        ]
        caps = []
        for k, ratio in enumerate(ratios):
            if ratio == 1:  # a scheduler whose data begin at its lowest σ ends there, and stays
                caps.append(math.inf)
                continue
            before = ratios[k - 1] if k else None
            one_step = k == 0 and solver in ("dpm++", "unipc")
            law = "euler" if one_step or (ratio == 0 and solver != "ancestral") else solver
            rho = self._rho(levels[k], levels[k + 1])
            kappa = largest_kappa(ratio, self.c, law, before)
            free = levels[k] <= self.above or rho <= 0
            caps.append(math.inf if free else kappa if rho == 1 else 1 + (kappa - 1) / rho)
        return np.array(caps)

    def _rho(self, before: float, after: float) -> float:
        """The largest (κ − 1) / (w − 1) from one σ to a lower one; 1 where none is measured."""
        if not self.kappa:
            return 1.0
        sigmas, kappas = np.array(self.kappa[::-1]).T
        ends = np.clip([after, before], sigmas[0], sigmas[-1])
        inner = kappas[(sigmas > after) & (sigmas < before)]
        largest = max(*np.interp(np.log(ends), np.log(sigmas), kappas), *inner)
        return float(largest - 1) / (self.kappa_scale - 1)

    def _check_measured(self, scales: np.ndarray) -> None:
        """Raises WrongUse above the scale that κ was measured at, where it may be larger."""
        highest = float(max(scales, default=1.0))
        known = not self.kappa or highest <= 1.001 * self.kappa_scale
        remedy = f"the plan's κ was measured at {self.kappa_scale:g}: calibrate at a higher scale"
        check(known, "guidance_scale", f"{highest:g}", remedy)

    @contextmanager
    def on(self, pipe: Any) -> Iterator[Rows]:
        """Within it, the pipeline draws with this plan; rows of network evaluations are counted.

        Set the pipeline's scheduler before. Raises WrongUse where a plan is on it already, and in
        its first step where its way of guiding is not known, or where it is not guided at all.
        """
        from asddim_lib.guidance.rows import Guided, guided_by

        with guided_by(Guided(pipe, self)) as rows:
            yield rows

    def apply(self, pipe: Any) -> Rows:
        """The pipeline draws with this plan until `remove`. Errors are those of `on`."""
        stack = ExitStack()
        rows = stack.enter_context(self.on(pipe))
        pipe._guided.stack = stack
        return rows

    @classmethod
    def apply_saved(cls, pipe: Any, folder: str | os.PathLike) -> Rows:
        """Sets the scheduler that a folder has, and puts on the plan that was saved beside it.

        `remove` takes off the plan; the scheduler stays. Raises WrongUse where either is missing or
        damaged, and as `apply`; the pipeline is then as before.
        """
        plan, scheduler, own = cls.load(folder), saved_scheduler(folder, "folder"), pipe.scheduler
        pipe.scheduler = scheduler
        try:
            return plan.apply(pipe)
        except WrongUse:
            pipe.scheduler = own
            raise

    @staticmethod
    def remove(pipe: Any) -> None:
        """Takes off the plan that `apply` has put on. Raises WrongUse where there is none."""
        stack: ExitStack | None = getattr(getattr(pipe, "_guided", None), "stack", None)
        if stack is None:
            raise WrongUse("pipe is without a guidance plan; put one on: plan.apply(pipe)")
        stack.close()

    def to_dict(self) -> dict[str, Any]:
        """The plan's settings that are not defaults, as JSON returns them."""
        usual = asdict(GuidancePlan())
        given = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return json.loads(json.dumps(given))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> GuidancePlan:
        """The plan of `to_dict`. Raises WrongUse for an unknown setting."""
        known = list(asdict(cls()))
        for name, value in settings.items():
            check(name in known, name, value, f"a plan has {', '.join(known)}")
        return cls(**settings)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the plan beside a saved scheduler or pipeline, or into a folder of `tune`."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.to_dict(), indent=2) + "\n"
        write_whole(place / FILE, lambda part: part.write_text(content, encoding="utf-8"))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> GuidancePlan:
        """The plan that `save` wrote. Raises WrongUse where there is none, or a damaged one."""
        file = Path(folder) / FILE
        check(file.is_file(), "folder", folder, f"it has no {FILE}: give one that `save` wrote to")
        try:
            return cls.from_dict(json.loads(file.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise WrongUse(f"{FILE} is damaged ({error}); save the plan again") from error


def saved_or_named(
    plan: str, model: str = "", profile: Profile | None = None
) -> GuidancePlan | None:
    """The plan of that name or in that folder; without one, that in the model's folder or None."""
    if not plan:
        return GuidancePlan.load(model) if (Path(model) / FILE).is_file() else None
    return GuidancePlan.load(plan) if Path(plan).is_dir() else GuidancePlan.named(plan, profile)


def check_scale(name: str, scale: float) -> None:
    """Raises WrongUse for a guidance scale that is no number of at least 1."""
    sound = math.isfinite(scale) and scale >= 1
    check(sound, name, scale, "give scales of at least 1; 1 is no guidance")
