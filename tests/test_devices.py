"""The scheduler off the CPU, in interleaved runs and in inference mode.

Meta tensors stand for an accelerator's: they have a device but no values, so an operation that
waits for a value, or that mixes devices, raises.
"""

import itertools
import pickle
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchgen
from diffusers import DDIMScheduler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey

from asddim_lib import (
    ASDDIMInverseScheduler,
    ASDDIMScheduler,
    ASFlowScheduler,
    DPMSolverGridScheduler,
    Run,
    UniPCGridScheduler,
    calibrate,
    load_pipeline,
    record,
    tune,
)
from asddim_lib.evidence.profile import KINDS as KINDS_OF_ERROR
from asddim_lib.metrics.encoders import encoder_for
from asddim_lib.models.load import BUNDLED
from asddim_lib.sensitivity import COST, gradient_norm
from asddim_lib.tuning.proposals import Plan
from tests.no_float64 import no_float64
from tests.refusals import refuses

PREDICTIONS = ["epsilon", "sample", "v_prediction"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DEVICES += ["mps"] if torch.backends.mps.is_available() else []
PROMPTS = [f"a red boot, number {n}" for n in range(8)]
SIZE = {"height": 32, "width": 32}
ESTIMATORS = [(norm, name) for norm, names in COST.items() for name in names]


def make(**changes):
    return ASDDIMScheduler(**{"allocation": "noise", "clip_sample": False, **changes})


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# A device that is not the CPU


@pytest.mark.parametrize("order", itertools.permutations(["lay", "noise", "velocity", "step"]))
def test_every_order_of_calls_works_on_a_device(order):
    """img2img, inpainting and refiners lay a grid after they have added noise."""
    scheduler, x = make(), torch.empty(2, 4, 8, 8, device="meta")
    t = torch.zeros(1, dtype=torch.int64, device="meta")
    calls = {
        "lay": lambda: scheduler.set_timesteps(6, device="meta"),
        "noise": lambda: scheduler.add_noise(x, x, t),
        "velocity": lambda: scheduler.get_velocity(x, x, t),
        "step": lambda: scheduler.step(x, t, x).prev_sample,
    }
    calls["lay"]()
    for name in order * 2:
        calls[name]()
    assert scheduler.timesteps.device.type == "meta"
    scheduler.set_timesteps(6)  # and then on the CPU: no table has stayed behind
    fresh = make()
    fresh.set_timesteps(6)
    x, t = normal(2, 4, 8, 8), scheduler.timesteps[2]
    assert torch.equal(scheduler.step(x, t, x).prev_sample, fresh.step(x, t, x).prev_sample)


class Recorder(TorchDispatchMode):
    """Keeps the operations that touch a meta tensor, and the types of the meta tensors made."""

    def __init__(self):
        super().__init__()
        self.operations, self.dtypes = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_flatten(result)[0] if isinstance(v, torch.Tensor)]
        given = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
        if any(v.device.type == "meta" for v in tensors + given):
            self.operations.add(func)
        self.dtypes |= {v.dtype for v in tensors if v.device.type == "meta"}
        return result


@pytest.fixture(scope="module")
def kernels():
    """Whether an operation runs on MPS, by PyTorch's own table of kernels."""
    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    table = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    mps = table.backend_indices[DispatchKey.MPS]
    functions = {str(f.func.name): f for f in table.native_functions}

    def has(operation):
        function = functions[operation._schema.name.removeprefix("aten::") + _overload(operation)]
        delegate = function.structured_delegate
        composite = (
            function.has_composite_implicit_autograd_kernel
            or function.has_composite_explicit_autograd_kernel
            or function.has_composite_explicit_autograd_non_functional_kernel
        )
        structured = delegate is not None and mps.has_kernel(functions[str(delegate)])
        return composite or structured or mps.has_kernel(function)

    return has


def _overload(operation):
    name = operation._schema.overload_name
    return f".{name}" if name else ""


def test_the_look_up_tells_what_mps_lacks(kernels):
    aten = torch.ops.aten
    assert not kernels(aten.take.default)  # what step() once used
    assert not kernels(aten.linalg_eig.default)
    for operation in (aten.index_select.default, aten.add.Tensor, aten.randn.default):
        assert kernels(operation)


def use(scheduler, dtype, eta, clipped=False):
    """All that a pipeline asks of a scheduler, on the meta device."""
    x = torch.empty(2, 4, 8, 8, device="meta", dtype=dtype)
    scheduler.set_timesteps(6, device="meta")
    times = scheduler.timesteps
    scheduler.add_noise(x, x, times[:1])
    scheduler.add_noise(x, x, times[:2])
    forms = [times[1], 5] if isinstance(scheduler, ASDDIMScheduler) else [5]
    forms += [times[1].expand(2)] if isinstance(scheduler, ASDDIMScheduler) else []
    for t in forms:
        x = scheduler.scale_model_input(x, t)
        x = scheduler.step(x, t, x, eta, clipped).prev_sample
    return x


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("how", [{}, {"clip_sample": True}, {"thresholding": True}], ids=str)
def test_no_operation_lacks_a_kernel_and_none_makes_float64(kernels, prediction_type, dtype, how):
    scheduler = make(prediction_type=prediction_type, **how)
    with Recorder() as recorder:
        for eta, clipped in itertools.product((0.0, 0.5), (False, True)):
            assert use(scheduler, dtype, eta, clipped).dtype == dtype
    missing = {str(operation) for operation in recorder.operations if not kernels(operation)}
    if how.get("thresholding"):  # diffusers' own code, with the kernels that it needs
        with Recorder() as theirs:
            use(DDIMScheduler(prediction_type=prediction_type, **how), dtype, 0.5)
        missing -= {str(operation) for operation in theirs.operations}
    assert len(recorder.operations) > 5
    assert not missing
    assert torch.float64 not in recorder.dtypes


@pytest.mark.parametrize(("norm", "estimator"), ESTIMATORS)
def test_the_estimators_make_no_float64_on_the_device(norm, estimator):
    x = torch.empty(2, 4, 8, 8, device="meta")
    how = {"norm": norm, "estimator": estimator, "generator": torch.Generator()}
    with Recorder() as recorder, pytest.raises(RuntimeError, match="meta"):  # a value is needed
        gradient_norm(lambda y, t: torch.tanh(y), x, 5, **how)
    assert torch.float64 not in recorder.dtypes


@pytest.mark.parametrize("how", [{}, {"eta": 0.5}, {"use_clipped_model_output": True}], ids=str)
def test_step_never_waits_for_a_device(how):
    scheduler, x = make(), torch.empty(2, 3, 8, 8, device="meta")
    with pytest.raises(RuntimeError, match="meta"):  # asking for a value is refused
        bool(x.sum() > 0)
    scheduler.set_timesteps(10, device="meta")
    for t in scheduler.timesteps:
        x = scheduler.step(torch.empty_like(x), t, x, **how).prev_sample
    assert x.shape == (2, 3, 8, 8)


# Runs that share a scheduler


def network(x, t):
    return torch.sin(3 * x + t / 1000)


def alone(x, device):
    scheduler = make()
    scheduler.set_timesteps(6, device=device)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("device", DEVICES)
def test_interleaved_runs_do_not_meet(device):
    first, second = (normal(2, 4, 8, 8, seed=seed).to(device) for seed in (1, 2))
    expected = alone(first, device), alone(second, device)
    scheduler = make()
    scheduler.set_timesteps(6, device=device)
    times = scheduler.timesteps
    for i in range(8):  # the second run is two steps behind
        if i < 6:
            first = scheduler.step(network(first, times[i]), times[i], first).prev_sample
        if i >= 2:
            t = times[i - 2]
            second = scheduler.step(network(second, t), t, second).prev_sample
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strict", [True, False])
def test_a_nan_stays_in_its_run(device, strict):
    """The failing run ends early; the other goes on, and the next grid is laid without a word."""
    x = normal(2, 4, 8, 8).to(device)
    scheduler, bad = make(), torch.full_like(x, torch.nan)
    scheduler.strict = strict
    scheduler.set_timesteps(6, device=device)
    expected, times = alone(x, device), scheduler.timesteps
    for i, t in enumerate(times):
        if i == 2 and device == "cpu" and strict:
            with refuses("model_output"):
                scheduler.step(bad, t, x)
        elif i == 2:
            assert scheduler.step(bad, t, x).prev_sample.isnan().all()
        x = scheduler.step(network(x, t), t, x).prev_sample
    assert torch.equal(x, expected)
    scheduler.set_timesteps(6, device=device)


@pytest.mark.parametrize("device", [*DEVICES, "meta"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_step_leaves_the_scheduler_as_it_was(device, eta):
    scheduler, x = make(), torch.zeros(2, 4, 8, 8, device=device)
    scheduler.strict = False
    scheduler.set_timesteps(6, device=device)
    scheduler.step(x, scheduler.timesteps[0], x, eta)  # may move constant tables to the device
    before = pickle.dumps(vars(scheduler))
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(x + torch.nan, t, x, eta).prev_sample
    assert pickle.dumps(vars(scheduler)) == before


# Inference mode


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize(("norm", "estimator"), ESTIMATORS)
def test_gradient_norm_in_inference_mode(norm, estimator, made_inside):
    weight = normal(6, 6, seed=3)
    x = normal(3, 6)

    def measured():
        y = x.clone() if made_inside else x
        how = {"norm": norm, "estimator": estimator, "generator": torch.Generator().manual_seed(4)}
        return gradient_norm(lambda z, t: torch.tanh(z @ weight), y, 5, probes=3, **how)

    expected = measured()
    with torch.inference_mode():
        value, error = measured()
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(error, expected[1])


@pytest.mark.parametrize("estimator", ["path", "difference", "vjp"])
def test_calibrate_in_inference_mode(estimator):
    prompts, how = PROMPTS[:1], {**SIZE, "num_steps": 2, "estimator": estimator}
    pipe = load_pipeline()
    expected = calibrate(pipe, prompts, **how)
    with torch.inference_mode():
        profile = calibrate(pipe, prompts, **how)
    assert profile.g == pytest.approx(expected.g, rel=1e-4)


@pytest.mark.parametrize("estimator", ["path", "difference"])
def test_calibrate_with_weights_that_know_no_gradient(estimator):
    """A pipeline loaded in inference mode serves the estimators that need no autograd."""
    prompts, how = PROMPTS[:1], {**SIZE, "num_steps": 2, "estimator": estimator}
    with torch.inference_mode():
        profile = calibrate(load_pipeline(), prompts, **how)
    assert profile.g == pytest.approx(calibrate(load_pipeline(), prompts, **how).g, rel=1e-4)


def test_calibrate_refuses_a_derivative_of_such_weights():
    with torch.inference_mode():
        pipe = load_pipeline()
        with refuses("estimator"):
            calibrate(pipe, PROMPTS[:1], num_steps=3, estimator="vjp")


# A device with values and without float64


def test_the_pretend_device_is_a_device():
    network, x = torch.nn.Linear(3, 4), normal(2, 3)
    expected = network(x).sin()
    with no_float64() as device:
        there = network.to(device)(x.to(device)).sin()
        assert there.device == device
        assert torch.equal(there.detach().cpu(), expected.detach())
        there.sum().backward()
        assert network.weight.grad.device == device
        assert (x.to(device) * torch.tensor(2.0, dtype=torch.float64)).dtype == torch.float32
        for wrong in (
            lambda: x.to(device).double(),
            lambda: x.double().to(device),
            lambda: torch.zeros(3, dtype=torch.float64, device=device),
        ):
            with pytest.raises(TypeError, match="float64"):
                wrong()
        with pytest.raises(RuntimeError, match="mixes"):
            x.to(device) + x
        torch.set_default_device(device)
        try:
            assert torch.tensor([2.0, 3.0]).tolist() == [2.0, 3.0]
        finally:
            torch.set_default_device(None)


KINDS = [ASDDIMScheduler, ASDDIMInverseScheduler, UniPCGridScheduler, DPMSolverGridScheduler]
FLOWING = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
ANY = [(kind, {}, {"grid": [900, 500, 20]}) for kind in KINDS]
ANY += [(kind, FLOWING, {"grid": [1.0, 0.6, 0.1]}) for kind in KINDS[2:]]
ANY += [(ASFlowScheduler, {}, {"grid": [1.0, 0.6, 0.1]})]


@pytest.mark.parametrize("own", [None, {}, {"allocation": "karras"}], ids=str)
@pytest.mark.parametrize(("kind", "config", "grid"), ANY, ids=str)
def test_every_scheduler_draws_on_a_device_without_float64(kind, config, grid, own):
    """With and without that device as torch's default one."""
    ends = []
    for device in ("cpu", "device", "default"):
        x = normal(2, 4, 8, 8)
        with no_float64() as other:
            there = torch.device("cpu") if device == "cpu" else other
            torch.set_default_device(other if device == "default" else None)
            try:
                scheduler = kind(**config, **(grid if own is None else own))
                scheduler.set_timesteps(3, device=there)
            finally:
                torch.set_default_device(None)
            assert scheduler.timesteps.device == there
            x = x.to(there)
            for t in scheduler.timesteps:
                x = scheduler.step(torch.sin(x), t, x, return_dict=False)[0]
            assert x.device == there
            ends.append(x.cpu())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


# The whole of calibrate, record, draw and tune there. Forward derivatives (jvp, and power, which
# takes them) are left out: of a tensor like the pretend one PyTorch ends with a segmentation fault.

PLAN = Plan(1, 2, 0, 1, trials=0, reference_steps=2, baselines=("gits",))


def measured(pipe, guidance_scale=1.0, **how):
    """Every number of a profile."""
    how = {"guidance_scale": guidance_scale, "num_steps": 2, "progress": False, **SIZE, **how}
    profile = calibrate(pipe, PROMPTS[:1], **how)
    kinds = [profile.local_error[kind] for kind in KINDS_OF_ERROR if kind in profile.local_error]
    return [profile.g, *(shares for kind in kinds for shares in kind.values())]


def recorded(pipe):
    path = record(pipe, PROMPTS[:1], guidance_scale=2.0, num_steps=2, progress=False, **SIZE)
    return [path.samples, path.noises, path.end]


def drawn(pipe):
    """Ends on a grid, and pictures on it and as the pipeline itself draws them."""
    run = Run(pipe, PROMPTS[:1], guidance_scale=1.0, options=SIZE)
    pictures = [run.pictures([900, 300]), run.pictures(num_inference_steps=2)]
    return [run.ends([900, 300]), *(p.latents for p in pictures), *(p.images for p in pictures)]


def tuned(pipe):
    how = {"options": SIZE, "guidance_scale": 1.0, "plan": PLAN, "goal": "latents"}
    made = tune(pipe, PROMPTS, steps=2, **how)
    differences = [one.difference for one in made.decision.comparisons]
    return [made.grid or [], *made.grids.values(), differences]


JOBS = {
    "path": ("bundled", partial(measured, estimator="path")),
    "difference": ("bundled", partial(measured, guidance_scale=2.0, estimator="difference")),
    "vjp": ("bundled", partial(measured, adjoint_probes=1, feature_probes=1)),
    "record": ("bundled", recorded),
    "draw": ("bundled", drawn),
    "tune": ("bundled", tuned),
    "flow, adjoint": ("bundled-flow", partial(measured, estimator="path", adjoint_probes=1)),
    "flow, draw": ("bundled-flow", drawn),
}


@cache
def on_the_cpu(job):
    model, work = JOBS[job]
    return work(load_pipeline(model))


@pytest.fixture(scope="module")
def there():
    """The bundled pipelines on the pretend device, by name."""
    pipes = {name: load_pipeline(name) for name in BUNDLED}
    with no_float64() as device:
        moved = {name: pipe.to(device) for name, pipe in pipes.items()}
        for pipe in moved.values():
            encoder_for(pipe)  # kept: transformers loads none where "meta" is the default device
        return moved


#: As torch's default device or not; tuning takes long, and is tried as the default alone.
CASES = [(job, default) for job in JOBS for default in (False, True) if default or job != "tune"]


@pytest.mark.parametrize(("job", "default"), CASES)
def test_a_device_without_float64_gives_the_cpu_s_numbers(there, job, default):
    """`default`: it is PyTorch's default device, too. A pixel may differ by its last bit."""
    model, work = JOBS[job]
    expected = on_the_cpu(job)
    with no_float64() as device:
        torch.set_default_device(device if default else None)
        try:
            found = work(there[model])
        finally:
            torch.set_default_device(None)
    assert len(found) == len(expected)
    for one, meant in zip(found, expected, strict=True):
        bit = isinstance(meant, torch.Tensor) and meant.dtype == torch.uint8
        one, meant = np.asarray(one, float), np.asarray(meant, float)
        assert one.shape == meant.shape
        assert np.abs(one - meant).max(initial=0) <= (bit or 1e-4 * np.abs(meant).max(initial=0))
