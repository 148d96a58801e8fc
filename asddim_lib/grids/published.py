"""Grids that projects publish for a model, as facts: the numbers, where they stand, what for.

A published grid was found for one model, shift, resolution, guidance and solver. Each is stated
here where the source states it. Diffusion models count σ, noise over signal. Flow models count
the share of noise s that the network is told, after the shift; their σ is s / (1 − s). So both
kinds have one axis, and each grid can be laid on any model. It was made for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from asddim_lib.errors import check
from asddim_lib.grids.rules import Grid, align_your_steps, log_linear, nearest
from asddim_lib.paper import NoiseSchedule

#: Stable Diffusion's betas, √β even: what a fraction of its T = 1000 timesteps means.
SD_BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
#: The largest finite σ that the library draws with (see `NoiseSchedule.finite_sigmas`).
LARGEST = math.sqrt(2.0**24 - 1)
UNKNOWN = "not stated"


@dataclass(frozen=True)
class Published:
    """The K levels at which a project asks its network, falling, and what it found them for.

    `read` returns the levels as the project gives them, and `end` is where its last step ends.
    `numbers` says what they are: sigmas, flow sigmas (s in (0, 1], after the shift), or fractions
    of t (timestep T f − 1 of Stable Diffusion). `kind` is vp or flow. `shift` is a flow model's,
    None where there is none or it is not stated. `found` says where the numbers were compared,
    and what could not be.
    """

    name: str
    model: str
    kind: str
    numbers: str
    read: Callable[[], Sequence[float]] = field(repr=False)  # diffusers loads only when asked
    end: float
    source: str
    found: str
    shift: float | None = None
    resolution: str = UNKNOWN
    guidance: str = UNKNOWN
    solver: str = UNKNOWN

    @property
    def levels(self) -> tuple[float, ...]:
        """The K levels as the project gives them, without the end."""
        return tuple(self.read())

    @property
    def steps(self) -> int:
        """K, the number of steps that the grid was published for."""
        return len(self.levels)

    def sigmas(self, steps: int | None = None) -> np.ndarray:
        """The levels as σ, falling, float64; the first may be infinite.

        For another number of steps they are log-linear between the published ones, as those of
        Align Your Steps are; a flow model's in s.
        """
        count = self.steps if steps is None else steps
        if self.numbers == "flow sigmas":
            s = log_linear(self.levels, count)
            with np.errstate(divide="ignore"):
                return s / (1 - s)
        if self.numbers == "fractions of t":
            own = np.log(NoiseSchedule(SD_BETAS).sigmas)
            places = len(own) * np.array(self.levels) - 1
            return log_linear(np.exp(np.interp(places, np.arange(len(own)), own)), count)
        return log_linear(self.levels, count)


def _distilled_ltx2() -> Sequence[float]:
    from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES

    return DISTILLED_SIGMA_VALUES


def _ays(name: str, model: str, key: str, resolution: str = UNKNOWN) -> Published:
    return Published(
        name=name,
        model=model,
        kind="vp",
        numbers="sigmas",
        read=lambda: align_your_steps(key),
        end=0.0,
        source="Sabour, Fidler, Kreis 2024, Align Your Steps, arXiv:2404.14507, Table 3",
        found="the paper's Table 3; it ends above 0 (0.029, 0.006 or 0.002), diffusers at 0",
        resolution=resolution,
        guidance="one default value, not stated (Appendix C.5)",
        solver="optimized for stochastic DDIM, shown with SDE-DPM-Solver++(2M)",
    )


def _gits(name: str, levels: Sequence[float]) -> Published:
    return Published(
        name=name,
        model="Stable Diffusion 1.5",
        kind="vp",
        numbers="fractions of t",
        read=lambda: levels,
        end=0.001,
        source="Chen et al. 2024, GITS, arXiv:2405.11326; list of Tong et al. 2024, "
        "LD3, arXiv:2405.15506",
        found="fractions: Oganov et al. 2025, arXiv:2510.17699, Appendix D.1; the same as σ: "
        "github.com/vinhsuhi/LD3, utils.py, ipndm. GITS' own repository lists none for this model",
        resolution="512 × 512",
        guidance="7.5",
        solver="iPNDM",
    )


def _oss(name: str, model: str, levels: Sequence[float], shift: float, found: str) -> Published:
    return Published(
        name=name,
        model=model,
        kind="flow",
        numbers="flow sigmas",
        read=lambda: levels,
        end=0.001,
        source="Pei, Hu, Gu 2025, Optimal Stepsize, arXiv:2503.21774; list by the authors: "
        "github.com/Comfy-Org/ComfyUI/pull/7584",
        found="ComfyUI, comfy_extras/nodes_optimalsteps.py, which ends the last step at 0. "
        f"{found}; resolution and guidance of the list are not stated",
        shift=shift,
        solver="Euler",
    )


_FLUX = (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808)
_WAN_EARLY = (1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968)
_WAN = (*_WAN_EARLY, 0.96, 0.946, 0.927, 0.902, 0.864, 0.776, 0.539, 0.208)
_LISTS = (
    _ays("ays-sd15", "Stable Diffusion 1.5", "StableDiffusionSigmas"),
    _ays("ays-sdxl", "Stable Diffusion XL", "StableDiffusionXLSigmas"),
    _ays("ays-svd", "Stable Video Diffusion", "StableDiffusionVideoSigmas", "320 × 576"),
    _ays("ays-deepfloyd", "DeepFloyd IF, stage 1", "DeepFloydSigmas"),
    _gits("gits-sd15-5", (1.0, 0.7669, 0.4839, 0.2341, 0.0676)),
    _gits("gits-sd15-8", (1.0, 0.8502, 0.6504, 0.4672, 0.3007, 0.1675, 0.0676, 0.0176)),
    _oss(
        "oss-flux",
        "FLUX.1-dev",
        _FLUX,
        math.exp(1.15),
        "Its shift is not stated: all ten are the shift e^1.15 of multiples of 0.005",
    ),
    _oss(
        "oss-wan",
        "Wan 2.1",
        _WAN,
        8.0,
        "Its shift: an author in github.com/kijai/ComfyUI-WanVideoWrapper/issues/349",
    ),
    Published(
        name="ltx2",
        model="LTX-2, distilled",
        kind="flow",
        numbers="flow sigmas",
        read=_distilled_ltx2,
        end=0.0,
        source="Lightricks 2026, LTX-2, arXiv:2601.03233; github.com/Lightricks/LTX-2, "
        "packages/ltx-pipelines, utils/constants.py",
        found="read from diffusers; equal to the project's constants.py. No shift is put on them. "
        "They are Mochi's linear-quadratic schedule of 8 steps (see comfy.linear_quadratic)",
        resolution="stage 1 of 2, at half the size of the video",
        guidance="none, the model is distilled",
        solver="Euler",
    ),
    Published(
        name="wan-lightning",
        model="Wan 2.2 A14B with the Lightning LoRA",
        kind="flow",
        numbers="flow sigmas",
        read=lambda: [5 * m / (1 + 4 * m) for m in (1.0, 0.75, 0.5, 0.25)],
        end=0.0,
        source="ModelTC 2025, github.com/ModelTC/Wan2.2-Lightning, wan/configs/wan_t2v_A14B.py",
        found="wan/utils/fm_solvers_euler.py: shift 5 of even steps, t 1000, 937.5, 833.3, 625. "
        "The second network takes over below s = 0.875",
        shift=5.0,
        resolution="1280 × 720 in its examples",
        guidance="1, none",
        solver="Euler",
    ),
)
#: Every published grid by its name.
PUBLISHED: dict[str, Published] = {one.name: one for one in _LISTS}


def shares(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A published grid on the axis of all models: log σ of its K nodes, falling, and k / K.

    k / K is the share of the steps that begin above node k, so a curve that rises at large σ
    spends its steps early. An infinite σ is drawn at 4096. Raises WrongUse for an unknown name.
    """
    check(name in PUBLISHED, "name", name, f"use one of {', '.join(PUBLISHED)}")
    sigmas = np.minimum(PUBLISHED[name].sigmas(), LARGEST)
    return np.log(sigmas), np.arange(len(sigmas)) / len(sigmas)


def _laid(*names: str) -> Grid:
    """The published list whose length is nearest to the number of steps, at its levels."""

    def grid(schedule: NoiseSchedule, steps: int) -> list[int]:
        lists = [PUBLISHED[name] for name in names]
        fitting = min(lists, key=lambda one: abs(one.steps - steps))
        return nearest(schedule, fitting.sigmas(steps))

    return grid


#: Methods of the table: summary and grid. Those of Align Your Steps stand among the rivals.
PROJECTS: dict[str, tuple[str, Grid]] = {
    "gits-sd15": (
        "GITS, as published for SD 1.5 with iPNDM at 5 and 8 steps (Tong et al. 2024)",
        _laid("gits-sd15-5", "gits-sd15-8"),
    ),
    "oss-flux": (
        "Optimal Stepsize, as published for FLUX.1-dev (flow), 10 steps (Pei et al. 2025)",
        _laid("oss-flux"),
    ),
    "oss-wan": (
        "Optimal Stepsize, as published for Wan 2.1 (flow), 20 steps (Pei et al. 2025)",
        _laid("oss-wan"),
    ),
    "ltx2": ("as published for distilled LTX-2 (flow), 8 steps", _laid("ltx2")),
    "wan-lightning": (
        "as published for Wan 2.2 Lightning (flow, shift 5), 4 steps",
        _laid("wan-lightning"),
    ),
}
