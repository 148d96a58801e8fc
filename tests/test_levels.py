"""Every scheduler class of diffusers: its noise levels are right, or it is refused in one line.

The table lists them all. It fails when a newer diffusers brings one that is not listed.
"""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import SchedulerMixin

from asddim_lib import ASDDIMScheduler, timesteps
from asddim_lib.errors import WrongUse
from asddim_lib.levels import Levels, fingerprint, noise_schedule
from asddim_lib.paper import NoiseSchedule
from tests.refusals import refuses

SD = {"beta_start": 0.00085, "beta_end": 0.012}
BETAS = [{}, *({"beta_schedule": name} for name in ("linear", "scaled_linear"))]
COSINE, ZERO = {"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True}
#: By class: what is expected without a flag, the flags that change its levels and are right, and
#: the flags that are refused.
TABLE = {
    "CogVideoXDDIMScheduler": ("vp", [{}, {"snr_shift_scale": 1.0}, ZERO], []),
    "CogVideoXDPMScheduler": ("vp", [{}, ZERO], []),
    "DDIMInverseScheduler": ("vp", [*BETAS, COSINE, ZERO], []),
    "DDIMParallelScheduler": ("vp", [*BETAS, COSINE, ZERO], []),
    "DDIMScheduler": ("vp", [*BETAS, COSINE, ZERO], []),
    "DDPMParallelScheduler": ("vp", [*BETAS, COSINE, {"beta_schedule": "sigmoid"}, ZERO], []),
    "DDPMScheduler": (
        "vp",
        [*BETAS, COSINE, {"beta_schedule": "sigmoid"}, ZERO],
        [{"beta_schedule": "laplace"}],
    ),
    "DEISMultistepScheduler": ("vp", [*BETAS, COSINE], [{**FLOW, **DYNAMIC}]),
    "DPMSolverMultistepInverseScheduler": ("vp", [*BETAS, COSINE], []),
    "DPMSolverMultistepScheduler": ("vp", [*BETAS, COSINE, ZERO], [{**FLOW, **DYNAMIC}]),
    "DPMSolverSDEScheduler": ("vp", [*BETAS, COSINE], []),
    "DPMSolverSinglestepScheduler": ("vp", [*BETAS, COSINE], [{**FLOW, **DYNAMIC}]),
    "EulerAncestralDiscreteScheduler": ("vp", [*BETAS, COSINE, ZERO], []),
    "EulerDiscreteScheduler": (
        "vp",
        [*BETAS, COSINE, ZERO],
        [{"timestep_type": "continuous", "prediction_type": "v_prediction"}],
    ),
    "HeunDiscreteScheduler": ("vp", [*BETAS, COSINE], [{"beta_schedule": "exp"}]),
    "KDPM2AncestralDiscreteScheduler": ("vp", [*BETAS, COSINE], []),
    "KDPM2DiscreteScheduler": ("vp", [*BETAS, COSINE], []),
    "LCMScheduler": ("vp", [*BETAS, COSINE, ZERO], []),
    "LMSDiscreteScheduler": ("vp", [*BETAS, COSINE], []),
    "PNDMScheduler": ("vp", [*BETAS, COSINE], []),
    "RePaintScheduler": ("vp", [*BETAS, COSINE, {"beta_schedule": "sigmoid"}], []),
    "SASolverScheduler": ("vp", [*BETAS, COSINE], []),
    "TCDScheduler": ("vp", [*BETAS, COSINE, ZERO], []),
    "UnCLIPScheduler": ("vp", [{}], []),
    "UniPCMultistepScheduler": ("vp", [*BETAS, COSINE, ZERO], [{**FLOW, **DYNAMIC}]),
    "FlowMatchEulerDiscreteScheduler": (
        "flow",
        [{}, {"shift": 3.0}, {"shift_terminal": 0.1}],
        [DYNAMIC, {"invert_sigmas": True}],
    ),
    "FlowMatchHeunDiscreteScheduler": ("flow", [{}, {"shift": 3.0}], []),
    "FlowMapEulerDiscreteScheduler": ("flow", [{}, {"shift": 3.0}], []),
    "EDMEulerScheduler": ("edm", [{}, {"sigma_schedule": "exponential"}], []),
    "EDMDPMSolverMultistepScheduler": ("edm", [{}, {"sigma_schedule": "exponential"}], []),
    "CosineDPMSolverMultistepScheduler": ("edm", [{}, {"sigma_schedule": "karras"}], []),
}
#: Schedulers without a noise level per timestep, or whose levels nothing here tells.
REFUSED = {
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "CMStochasticIterativeScheduler",
    "ConsistencyDecoderScheduler",
    "DDPMWuerstchenScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "FlowMatchLCMScheduler",
    "HeliosDMDScheduler",
    "HeliosScheduler",
    "IPNDMScheduler",
    "KarrasVeScheduler",
    "LTXEulerAncestralRFScheduler",
    "MiniMaxH3Scheduler",
    "PiflowScheduler",
    "RFD4ProteinaScheduler",
    "SCMScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "VQDiffusionScheduler",
}
ARGUMENTS = {
    "AmusedScheduler": {"mask_token_id": 1},
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log",
        "noise_mode": "tan",
        "tsr_k": 1.0,
        "tsr_sigma": 1.0,
    },
    "VQDiffusionScheduler": {"num_vec_classes": 4},
    # With 1,000 timesteps, to construct one takes a second.
    "KDPM2DiscreteScheduler": {"num_train_timesteps": 100},
    "KDPM2AncestralDiscreteScheduler": {"num_train_timesteps": 100},
    "DPMSolverSDEScheduler": {"num_train_timesteps": 100},
}


def classes():
    names = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    found = {name: getattr(diffusers, name) for name in names}
    return {n for n, c in found.items() if inspect.isclass(c) and issubclass(c, SchedulerMixin)}


def built(name, flags=None):
    kind = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    flags = {**ARGUMENTS.get(name, {}), **(flags or {})}
    if "beta_start" in known and "snr_shift_scale" not in known:
        flags = {**SD, **flags}
    return kind(**flags)


def test_the_table_lists_every_scheduler_of_diffusers():
    listed = set(TABLE) | REFUSED
    assert classes() - listed == set(), "new in diffusers: say here what is expected of it"


def own_levels(scheduler):
    """σ by the scheduler's own tables: betas' ᾱ, a flow's shares of noise, or EDM's ramp."""
    if hasattr(scheduler, "alphas_cumprod"):
        bars = scheduler.alphas_cumprod.double().numpy()
        return ((1 - bars) / bars.clip(2.0**-24)) ** 0.5
    levels = scheduler.sigmas.double().numpy()
    levels = levels[levels > 0]
    if "shift" in scheduler.config:
        return (levels / np.maximum(1 - levels, 2.0**-24))[::-1]
    return levels[::-1]


CASES = [(name, flags) for name, (_, right, _) in TABLE.items() for flags in right]


@pytest.mark.parametrize(("name", "flags"), CASES, ids=lambda v: str(v)[:60])
def test_levels_are_the_scheduler_s_own(name, flags):
    scheduler = built(name, flags)
    coordinates = Levels.from_diffusers(scheduler)
    assert coordinates.kind == TABLE[name][0]
    assert vars(Levels.from_diffusers(scheduler.config))["kind"] == coordinates.kind
    ours, theirs = coordinates.finite_sigmas, own_levels(scheduler)
    if coordinates.kind == "edm":  # what it holds is a grid: its ends are the levels' ends
        scheduler.set_timesteps(50)
        theirs = own_levels(scheduler)
        assert (ours[0], ours[-1]) == pytest.approx((theirs[0], theirs[-1]), rel=1e-4)
        return
    assert len(ours) == len(theirs)
    some = slice(0, -1)  # the last may be infinite, and is cut off in float32 in many ways
    np.testing.assert_allclose(ours[some], theirs[some], rtol=5e-3)


#: What version 0.2 called these models' levels: its profiles are known by that.
FINGERPRINTS = [
    ("DDIMScheduler", {}, "ed6e10405a9ef0f4"),
    ("DDIMScheduler", ZERO, "488d7d2a5111a57f"),
    ("CogVideoXDDIMScheduler", {}, "7dc9681ad16b1b44"),
    ("EDMEulerScheduler", {}, "58563fdde0b92aa5"),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "bc6f335d78851759"),
]


@pytest.mark.parametrize(("name", "flags", "known"), FINGERPRINTS, ids=str)
def test_profiles_of_an_earlier_version_know_their_model(name, flags, known):
    levels = Levels.from_diffusers(built(name, flags))
    assert fingerprint(levels) == fingerprint(NoiseSchedule(levels.betas)) == known


@pytest.mark.parametrize("name", [n for n, (kind, *_) in TABLE.items() if kind == "vp"])
def test_our_scheduler_takes_its_levels_and_clips_only_where_it_does(name):
    for flags in TABLE[name][1]:
        theirs = built(name, flags)
        ours = ASDDIMScheduler.from_config(theirs.config)
        bars = ours.alphas_cumprod.double().numpy()
        levels = noise_schedule(theirs).alphas_cumprod
        np.testing.assert_allclose(bars, levels, rtol=5e-3, atol=1e-6)
        assert ours.config["clip_sample"] == bool(theirs.config.get("clip_sample", False))
        assert ours.config["allocation"] == "uniform"
        assert timesteps(theirs, 5, allocation="noise") == timesteps(ours, 5, allocation="noise")


REFUSALS = [(name, flags) for name, (*_, wrong) in TABLE.items() for flags in wrong]


@pytest.mark.parametrize(("name", "flags"), REFUSALS, ids=lambda v: str(v)[:60])
def test_a_flag_that_moves_the_levels_is_right_or_refused(name, flags):
    with pytest.raises(WrongUse) as caught:
        noise_schedule(built(name, flags))
    assert "\n" not in str(caught.value)
    with pytest.raises(WrongUse):
        ASDDIMScheduler.from_config(built(name, flags).config)


@pytest.mark.parametrize("name", sorted(REFUSED & classes()))
def test_what_is_not_known_is_refused_in_one_line(name):
    scheduler = built(name)
    for source in (scheduler, scheduler.config):
        with pytest.raises(WrongUse) as caught:
            Levels.from_diffusers(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(WrongUse, match=r"^\w+ is "):
        ASDDIMScheduler.from_config(scheduler.config)


FLOWING = [
    n
    for n in TABLE
    if "use_flow_sigmas" in inspect.signature(getattr(diffusers, n).__init__).parameters
]


@pytest.mark.parametrize("name", FLOWING)
def test_a_solver_with_flow_sigmas_is_a_flow_model(name):
    scheduler = built(name, FLOW)
    coordinates = Levels.from_diffusers(scheduler)
    assert (coordinates.kind, coordinates.shift) == ("flow", 3.0)
    mix = np.arange(1, 1000) / 1000
    mix = 3 * mix / (1 + 2 * mix)
    np.testing.assert_allclose(coordinates.sigmas[:-1], mix / (1 - mix), rtol=1e-6)
    with refuses("config"):
        ASDDIMScheduler.from_config(scheduler.config)


@pytest.mark.parametrize("config", [{}, {"num_train_timesteps": 1000}, {"beta_schedule": "linear"}])
def test_nothing_is_filled_in_for_what_a_config_does_not_say(config):
    with pytest.raises(WrongUse, match="beta_"):
        noise_schedule(config)


@pytest.mark.parametrize("kind", ["vp", "flow", "edm"])
def test_every_kind_predicts_the_picture_and_the_noise(kind):
    """What mixes x₀ and ε is taken apart again, from each output that a network may give."""
    source = {"vp": "DDIMScheduler", "flow": "FlowMatchEulerDiscreteScheduler"}
    scheduler = built(source.get(kind, "EDMEulerScheduler"))
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    coordinates, sigma = Levels.from_diffusers(scheduler), 1.7
    sample = coordinates.signal(sigma) * (clean + sigma * noise)
    outputs = {"vp": noise, "flow": noise - clean}
    if kind == "edm":  # its network's output, by diffusers' own preconditioning turned round
        data = 0.5
        total = (sigma**2 + data**2) ** 0.5
        outputs["edm"] = (clean - data**2 / total**2 * sample) / (sigma * data / total)
    found = coordinates.predict(sample, outputs[kind], sigma)
    torch.testing.assert_close(found[0], clean)
    torch.testing.assert_close(found[1], noise)
