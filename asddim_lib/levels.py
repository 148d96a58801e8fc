"""The noise levels of a model, as its diffusers scheduler or config states them.

Every diffusion or flow model is written in two numbers. σ is noise over signal, and
y = x₀ + σε is the sample in the scale of clean data. Every sampler then follows dy/dσ = ε.

| kind | the sample x | σ | x from y |
| --- | --- | --- | --- |
| `vp` (DDPM, DDIM, Stable Diffusion) | √ᾱ x₀ + √(1 − ᾱ) ε | √((1 − ᾱ)/ᾱ) | y / √(1 + σ²) |
| `flow` (flow matching) | (1 − s) x₀ + s ε | s / (1 − s) | y / (1 + σ) |
| `edm` (Karras et al. 2022) | x₀ + σε | σ | y |

s in (0, 1] is a flow model's share of noise, after its shift.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asddim_lib.configs import completed, is_real, kind_of, with_fixed_shift
from asddim_lib.errors import WrongUse, check
from asddim_lib.paper import NoiseSchedule, distinct, predict

#: The largest σ that float32 can tell from pure noise: pure noise counts as this σ (about 4096).
LARGEST_SIGMA = math.sqrt(2.0**24 - 1)


@dataclass(frozen=True, eq=False)
class Levels:
    """A model's σ at its T training timesteps, and how its samples and outputs are scaled.

    `sigmas` (T, float64) rise; the last may be infinite. `betas` (T) are those of the
    variance-preserving model with the same σ. `prediction_type` is None where the config does not
    state it. `shift` is a flow model's, `sigma_data` an EDM model's. `end` is the sigma where
    the scheduler's last step ends, s of a flow model; None where that is the last step's own.
    """

    kind: str
    sigmas: np.ndarray
    betas: np.ndarray = field(repr=False)
    prediction_type: str | None = None
    shift: float = 1.0
    sigma_data: float = 1.0
    end: float | None = 0.0

    @classmethod
    def from_diffusers(cls, scheduler: Any, mu: float | None = None) -> Levels:
        """The levels of a diffusers scheduler or its config.

        Missing keys have the defaults of the config's class (`_class_name`), and no others. `mu` is
        what a pipeline passes to a flow scheduler whose shift depends on the picture's size. Raises
        WrongUse for a scheduler whose levels are not known here, and for such a shift without `mu`.
        """
        config = with_fixed_shift(completed(scheduler), mu)
        make = {"flow": _flow, "vp": _variance_preserving, "edm": _edm}
        return make[kind_of(config)](config)

    def __len__(self) -> int:
        return len(self.sigmas)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """ᾱ at every timestep, of the variance-preserving model with the same σ."""
        return np.cumprod(1 - self.betas)

    @property
    def variance(self) -> np.ndarray:
        """1 − ᾱ at every timestep (Eq 4)."""
        return 1 - self.alphas_cumprod

    @property
    def finite_sigmas(self) -> np.ndarray:
        """`sigmas`, at most `LARGEST_SIGMA`."""
        return np.minimum(self.sigmas, LARGEST_SIGMA)

    @property
    def printed(self) -> np.ndarray:
        """`finite_sigmas`; uncapped where the cap would make two of them the same."""
        capped, below = self.finite_sigmas, self.sigmas[:-1]
        if len(below) == 0 or below[-1] < LARGEST_SIGMA:
            return capped
        return np.append(below, min(self.sigmas[-1], 2 * below[-1]))

    @property
    def shares(self) -> np.ndarray:
        """s = σ / (1 + σ), the noise's weight in a flow model's sample: 1 for pure noise."""
        return share_of(self.sigmas)

    def below(self, begin: int | None) -> Levels:
        """The levels of timesteps 0 … `begin`, or all."""
        if begin is None:
            return self
        return replace(self, sigmas=self.sigmas[: begin + 1], betas=self.betas[: begin + 1])

    def timesteps_at(self, sigmas: np.ndarray) -> np.ndarray:
        """Real timesteps of some σ, log-linear between whole ones as in diffusers."""
        table = np.log(self.finite_sigmas)
        with np.errstate(divide="ignore"):
            return np.interp(np.log(sigmas), table, np.arange(len(table)))

    def nearest(self, sigmas: np.ndarray) -> list[int]:
        """The distinct whole timesteps nearest to K falling σ, of which the first may be inf."""
        return distinct(self.timesteps_at(sigmas))

    def grid_of(self, values: Any, name: str = "grid", *, whole: bool = True) -> np.ndarray:
        """A given grid as K + 1 falling sigmas (float64), the last where the last step ends.

        `values` (a list, array or tensor) are whole timesteps, or sigmas. Sigmas are as ComfyUI,
        A1111 and diffusers print them: σ for `vp` and `edm`, s after the shift for `flow`. A 0 or
        the scheduler's `end` after the last is optional. Whole floats are timesteps for `vp` alone;
        `whole=False` reads all numbers as sigmas. Raises WrongUse, naming `name`, unless the grid
        falls strictly, also in float32, within the model's range.
        """
        numbers = as_numbers(values, name)
        if whole and self.are_timesteps(numbers):
            return np.array(self.sigmas_at(check_timesteps(numbers, len(self), name)))
        given = numbers.astype(np.float64)
        ends = len(given) > 1 and self._is_end(given[-1], given[-2])
        begins = given[:-1] if ends else given
        remedy = "give strictly falling sigmas, of which the last may be 0, or whole timesteps"
        falling = bool((np.diff(begins.astype(np.float32)) < 0).all() and (begins > 0).all())
        check(falling, name, numbers.tolist(), remedy)
        if self.kind != "edm":  # an EDM network takes any σ
            highest = 1.0 if self.kind == "flow" else float(self.printed[-1])
            within = bool(begins[0] <= highest * 1.001)  # as printed, to a few digits
            check(within, name, numbers.tolist(), f"its model begins at {highest:.4g}: give less")
        if self.kind == "flow":
            begins = np.minimum(begins, 1.0)
        return np.append(begins, 0.0) if ends and given[-1] == 0 else self.ended(begins)

    def _is_end(self, last: float, before: float) -> bool:
        """Whether the last sigma of a given grid is where its last step ends."""
        if last == 0 or self.end == 0:
            return bool(last == 0)
        end = before if self.end is None else self.end
        return bool(last == before or np.isclose(last, end, rtol=1e-3, atol=0))  # in float32

    def ended(self, begins: np.ndarray) -> np.ndarray:
        """K falling sigmas, and where the last step ends: K + 1."""
        return np.append(begins, begins[-1] if self.end is None else min(self.end, begins[-1]))

    def sigmas_at(self, timesteps: Sequence[int]) -> list[float]:
        """K falling whole timesteps as K + 1 sigmas, as `grid_of` returns them."""
        if self.kind == "flow":
            return self.ended(self.shifted(self.unshifted_at(timesteps))).tolist()
        return self.ended(self.printed[timesteps]).tolist()

    def to_timesteps(self, grid: Any) -> list[int]:
        """The K distinct whole timesteps nearest to a grid, as `grid_of` reads it."""
        begins = self.grid_of(grid)[:-1]
        if self.are_timesteps(as_numbers(grid, "grid")):
            return [int(t) for t in grid]
        if self.kind == "flow":
            return distinct(self.unshifted(begins) * len(self) - 1)
        return distinct(np.interp(np.log(begins), np.log(self.printed), np.arange(len(self))))

    def are_timesteps(self, values: Any) -> bool:
        """Whether a grid's entries are whole timesteps, and not sigmas."""
        values = np.asarray(values)
        whole = self.kind == "vp" and bool(np.all(values == np.floor(values)))
        return whole or np.issubdtype(values.dtype, np.integer)

    def unshifted_at(self, indices: Any) -> np.ndarray:
        """A flow model's s before its shift at some indices of `sigmas`: (i + 1) / T."""
        return (np.asarray(indices) + 1) / len(self)

    def shifted(self, share: np.ndarray) -> np.ndarray:
        """A flow model's s after its shift, from s before it."""
        return _shifted(share, self.shift)

    def unshifted(self, share: np.ndarray) -> np.ndarray:
        """A flow model's s before its shift, from s after it."""
        return share / (self.shift - (self.shift - 1) * share)

    def signal(self, sigma: float | Tensor) -> float | Tensor:
        """x / y at σ: what y is multiplied by to give the sample x."""
        if self.kind == "vp":
            return (1 + sigma**2) ** -0.5
        return 1 / (1 + sigma) if self.kind == "flow" else sigma * 0 + 1.0

    def vp_sample(self, clean: Tensor, epsilon: Tensor, sigma: float) -> Tensor:
        """The sample of the variance-preserving model at the same σ: (x₀ + σε) / √(1 + σ²)."""
        return (clean + sigma * epsilon) / (1 + sigma**2) ** 0.5

    def predict(self, sample: Tensor, model_output: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """x̂₀ and ε, each of the sample's shape, from the network's output on a sample at σ."""
        kind = self.prediction_type
        check(kind is not None, "prediction_type", None, "the scheduler's config must state it")
        if self.kind == "flow":
            s = sigma / (1 + sigma) if math.isfinite(sigma) else 1.0
            return sample - s * model_output, sample + (1 - s) * model_output
        if self.kind == "vp":
            alpha = torch.tensor(1 / (1 + sigma**2), dtype=torch.float64, device="cpu")
            return predict(sample, model_output, alpha, str(kind))
        d2, total = self.sigma_data**2, sigma**2 + self.sigma_data**2
        sign = -1 if kind == "v_prediction" else 1
        scale = sign * sigma * self.sigma_data / total**0.5
        clean = d2 / total * sample + scale * model_output
        return clean, (sample - clean) / sigma


def noise_schedule(scheduler: Any, mu: float | None = None) -> NoiseSchedule:
    """The paper's noise schedule of a scheduler or its config (`Levels.from_diffusers`).

    A flow or EDM model's is the variance-preserving one with the same σ: its x differs by a factor.
    """
    return NoiseSchedule(Levels.from_diffusers(scheduler, mu).betas)


def fingerprint(levels: Levels | NoiseSchedule) -> str:
    """16 hex digits, the same for betas that are equal to 12 decimals."""
    return hashlib.sha256(np.round(levels.betas, 12).tobytes()).hexdigest()[:16]


def share_of(sigma: Any) -> Any:
    """The share of noise s = σ / (1 + σ); 1 where σ is infinite."""
    with np.errstate(divide="ignore"):
        return 1 / (1 + 1 / sigma)


def sigma_of(share: Any) -> Any:
    """σ = s / (1 − s); infinite where s is 1."""
    with np.errstate(divide="ignore"):
        return share / (1 - share)


def as_numbers(values: Any, name: str) -> np.ndarray:
    """A list, array or tensor of K finite real numbers as an array. Raises WrongUse for others."""
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu().tolist()
        given = np.asarray(values)
    except (TypeError, ValueError):  # a ragged list
        given = np.asarray("ragged")
    real = np.issubdtype(given.dtype, np.integer) or np.issubdtype(given.dtype, np.floating)
    usable = bool(given.ndim == 1 and given.size > 0 and real and np.all(np.isfinite(given)))
    check(usable, name, given.tolist(), "give a list of numbers, one for each step")
    return given


def check_timesteps(values: Any, num_train_timesteps: int, name: str = "timesteps") -> list[int]:
    """A list, array or tensor of timesteps as whole numbers.

    Raises WrongUse, naming `name`, unless they fall strictly within 0 … T − 1.
    """
    given = as_numbers(values, name)
    grid = [int(t) for t in given]
    falling = bool(np.all(given == grid)) and all(a > b for a, b in itertools.pairwise(grid))
    check(falling, name, given.tolist(), "give strictly decreasing whole timesteps")
    within = 0 <= grid[-1] and grid[0] < num_train_timesteps
    check(within, name, given.tolist(), f"keep them within 0 … {num_train_timesteps - 1}")
    return grid


def _shifted(share: np.ndarray, shift: float) -> np.ndarray:
    return np.minimum(shift * share / (1 + (shift - 1) * share), 1.0)  # 1 may be rounded up


def with_boundary(shares: np.ndarray, boundary: float) -> np.ndarray:
    """K falling s of which one is moved to the boundary between two networks.

    The nearest moves just below it: a pipeline calls the network of high noise at the boundary
    itself. Raises WrongUse for fewer than two, or where none is left above it.
    """
    remedy = "give at least 2: a step above the boundary and one below it"
    check(len(shares) > 1, "num_inference_steps", len(shares), remedy)
    inner = np.arange(1, len(shares))
    moved = shares.copy()
    moved[inner[np.abs(shares[inner] - boundary).argmin()]] = boundary - 1e-4
    falling = bool((np.diff([*moved, 0.0]) < 0).all())
    what = f"{boundary}, where no step can begin"
    check(falling, "boundary", what, "give a grid that begins above it and goes on below it")
    return moved


def _static_shift(config: dict[str, Any]) -> float:
    dynamic = config.get("use_dynamic_shifting", False)
    remedy = "its shift depends on the picture's size: give mu, as the pipeline gives it"
    check(not dynamic, "mu", None, remedy)
    name = "flow_shift" if config.get("use_flow_sigmas") else "shift"
    shift = config[name]
    usable = is_real(shift) and math.isfinite(shift) and shift > 0
    check(usable, name, shift, "give a positive number")
    return float(shift)


def _flow(config: dict[str, Any]) -> Levels:
    remedy = "give the whole config of its scheduler"
    check("num_train_timesteps" in config, "num_train_timesteps", "missing", remedy)
    inverted = config.get("invert_sigmas")
    check(not inverted, "invert_sigmas", inverted, "it reverses the levels: use another model")
    size = int(config["num_train_timesteps"])
    shift = _static_shift(config)
    s = _shifted(np.arange(1, size + 1) / size, shift)
    betas = _betas_of((1 - s) ** 2 / ((1 - s) ** 2 + s**2))
    return Levels("flow", sigma_of(s), betas, "flow_prediction", shift, end=_flow_end(config, size))


def _flow_end(config: dict[str, Any], size: int) -> float | None:
    """Where a flow scheduler's last step ends, if its class can end above 0."""
    if config.get("final_sigmas_type", "zero") == "zero":
        return 0.0
    if "grid" in config:  # ours
        return 1 / size
    if "algorithm_type" in config:  # diffusers' DPM-Solver takes the noise of its betas
        return float(NoiseSchedule(_named_betas(config)).sigmas[0])
    return None


def _variance_preserving(config: dict[str, Any]) -> Levels:
    betas = _named_betas(config)
    if "snr_shift_scale" in config:  # CogVideoX
        bars, scale = np.cumprod(1 - betas), config["snr_shift_scale"]
        betas = _betas_of(bars / (scale + (1 - scale) * bars))
    if config.get("rescale_betas_zero_snr"):
        roots = np.sqrt(np.cumprod(1 - betas))
        betas = _betas_of(((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2)
    sigmas = NoiseSchedule(betas).sigmas
    zero = config.get("set_alpha_to_one", config.get("final_sigmas_type", "zero") == "zero")
    end = 0.0 if zero else float(sigmas[0])
    return Levels("vp", sigmas, betas, config.get("prediction_type"), end=end)


def _named_betas(config: dict[str, Any]) -> np.ndarray:
    """The betas that a config names, by diffusers' formulas in float64."""
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    size, name = int(config.get("num_train_timesteps", 1000)), config["beta_schedule"]
    if name == "squaredcos_cap_v2":
        turns = np.arange(size + 1) / size
        bars = [math.cos((turn + 0.008) / 1.008 * math.pi / 2) ** 2 for turn in turns]
        return np.array([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bars)])
    for key in ("beta_start", "beta_end"):
        check(key in config, key, "missing", "give the scheduler's own config")
    start, end = float(config["beta_start"]), float(config["beta_end"])
    if name == "linear":
        return np.linspace(start, end, size)
    if name == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, size) ** 2
    if name == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, size)))
    remedy = "use linear, scaled_linear, squaredcos_cap_v2, sigmoid or trained_betas"
    raise WrongUse(f"beta_schedule is {name!r}; {remedy}")


def _edm(config: dict[str, Any]) -> Levels:
    """EDM's ramp from `sigma_min` to `sigma_max`, over as many levels as training timesteps."""
    ramp = np.linspace(0, 1, int(config["num_train_timesteps"]))
    low, high = float(config["sigma_min"]), float(config["sigma_max"])
    if config["sigma_schedule"] == "karras":
        root = 1 / float(config["rho"])
        sigmas = (low**root + ramp * (high**root - low**root)) ** (1 / root)
    else:
        sigmas = np.exp(np.log(low) + ramp * (np.log(high) - np.log(low)))
    end: float | None = 0.0
    if config["final_sigmas_type"] != "zero":
        end = low if "solver_order" in config else None  # Euler's ends where it begins
    return Levels(
        "edm",
        sigmas,
        _betas_of(1 / (1 + sigmas**2)),
        config["prediction_type"],
        sigma_data=float(config["sigma_data"]),
        end=end,
    )


def _betas_of(bars: np.ndarray) -> np.ndarray:
    """The betas of a falling ᾱ."""
    return 1 - bars / np.concatenate([[1.0], bars[:-1]])
