"""A guidance plan for other programs: what is written draws what the plan draws."""

import ast
import itertools
import json
import re

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from typer.testing import CliRunner

from asddim_lib import ASDDIMScheduler, GuidancePlan
from asddim_lib.cli import app
from asddim_lib.guidance import elsewhere
from asddim_lib.guidance.law import capped_scale
from asddim_lib.models import load
from tests import tiny, zoo
from tests.refusals import refuses
from tests.test_guidance_rows import GUIDED
from tests.test_kappa import with_kappa
from tests.test_profile import SD
from tests.zoo.entry import entry

C = GuidancePlan.capped().c
#: Pipelines that read their scale in each step, or ask a guider for it.
FITS = (
    "instruct-pix2pix",
    "sdxl",
    "sd3",
    "cogvideox",
    "ltx",
    "modular-sdxl",
    "sd15-inpaint",
    "sd15-guess",
)


def export(folder, *arguments):
    """What export prints of a folder; what it raises is raised."""
    run = CliRunner().invoke(app, ["export", "--model", str(folder), *map(str, arguments)])
    if run.exception:
        raise run.exception
    return run.stdout


def module(text):
    """The names that the printed module has. It imports nothing of ours."""
    roots = {n.names[0].name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import)}
    assert roots == {"inspect"}
    space = {}
    exec(text, space)
    return space


def scheduler_of(folder, scheduler):
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def drawn(guided, pipe, options):
    given = {k: v for k, v in options.items() if k != "guidance_scale"}
    generator = [torch.Generator().manual_seed(0)]
    call = {"prompt": ["a red boot"], "generator": generator, "output_type": "latent", **given}
    result = guided(pipe, **call)
    return result if torch.is_tensor(result) else result[0]


@pytest.mark.parametrize("name", FITS)
def test_the_module_for_diffusers_draws_what_the_plan_draws(name, tmp_path):
    one = entry(name)
    folder, plan = scheduler_of(tmp_path, one.pipe.scheduler), GuidancePlan.steps([2.0, 5.0, 1.0])
    plan.save(folder)
    guided = module(export(folder, "--steps", 3, "--guidance-plan", folder, "--mu", 1))["guided"]
    with plan.on(one.pipe):
        wanted = zoo.draw(one.pipe, one.options)
    plain = zoo.draw(one.pipe, one.options)
    for _ in range(2):
        found = drawn(guided, one.pipe, one.options)
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()
        assert (found - wanted).norm() <= 1e-2 * (plain - wanted).norm()
    assert torch.equal(plain, zoo.draw(one.pipe, one.options))


@pytest.mark.parametrize("name", [name for name in GUIDED if name not in FITS])
def test_the_module_refuses_a_pipeline_that_would_not_follow_it(name, tmp_path):
    one = entry(name)
    folder = scheduler_of(tmp_path, DDIMScheduler())
    guided = module(export(folder, "--steps", 3, "--guidance-plan", "capped"))["guided"]
    with pytest.raises((TypeError, IndexError)):
        drawn(guided, one.pipe, one.options)


def test_the_module_has_the_plan_s_scales_and_the_grid(tmp_path):
    plain = scheduler_of(tmp_path / "plain", DDIMScheduler(timestep_spacing="trailing"))
    given = ["--steps", 5, "--guidance-plan", "capped-2", "--guidance-scale", 6]
    space = module(export(plain, *given))
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    bars = scheduler.alphas_cumprod[scheduler.timesteps].double()
    levels = [*((1 - bars) / bars).sqrt().tolist(), 0.0]
    caps = [2 / (1 - after / before) for before, after in itertools.pairwise(levels)]
    assert space["SCALES"] == pytest.approx([min(6, cap) for cap in caps], abs=1e-5)
    assert space["GRID"] == {"num_inference_steps": 5}
    ours = scheduler_of(tmp_path / "ours", ASDDIMScheduler(allocation="logsnr"))
    for folder, more in ((plain, ["--allocation", "logsnr"]), (ours, [])):
        grid = json.loads(export(folder, "--steps", 5, *more))
        space = module(export(folder, *given, *more))
        assert space["GRID"] == {"timesteps": grid["timesteps"]}
        caps = [2 / (1 - b / a) for a, b in itertools.pairwise(grid["sigmas"])]
        assert space["SCALES"] == pytest.approx([min(6, cap) for cap in caps], abs=1e-4)


def test_a_flow_model_s_scales_follow_its_noise_over_signal(tmp_path):
    folder = scheduler_of(tmp_path, FlowMatchEulerDiscreteScheduler(shift=3.0))
    given = ["--steps", 4, "--allocation", "trailing", "--guidance-plan", "capped"]
    space = module(export(folder, *given))
    assert space["GRID"] == {"sigmas": [1.0, 0.75, 0.5, 0.25]}
    levels = [9.0, 3.0, 1.0, 0.0]  # the first σ is infinite
    caps = [C, *(C / (1 - b / a) for a, b in itertools.pairwise(levels))]
    assert space["SCALES"] == pytest.approx(caps, abs=1e-5)
    pieces = followed(comfyui(folder, *given))
    each = [cfg for levels, cfg, _ in pieces for _ in levels[1:]]
    assert each == pytest.approx(caps, abs=1e-5)


@pytest.mark.parametrize("more", [[], ["--allocation", "trailing"]])
def test_a_measured_cap_takes_the_profile_that_the_grid_does_not(more, tmp_path):
    folder = scheduler_of(tmp_path, DDIMScheduler(**SD))
    with_kappa([3.0] * 24, 7.5).save(tmp_path / "profile.json")
    given = ["--steps", 4, "--profile", tmp_path / "profile.json", *more]
    scales = module(export(folder, *given, "--guidance-plan", "capped-measured"))["SCALES"]
    sigmas = json.loads(export(folder, "--steps", 4, *more))["sigmas"]
    plan = GuidancePlan.capped(profile=with_kappa([3.0] * 24, 7.5))
    assert scales == pytest.approx(plan.at(sigmas, 7.5), abs=1e-4)
    assert (
        scales != module(export(folder, "--steps", 4, *more, "--guidance-plan", "capped"))["SCALES"]
    )


def test_heun_has_a_scale_for_each_evaluation(tmp_path):
    pipe, options = tiny.sd()
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    plan = GuidancePlan.steps([2.0, 5.0, 1.0])
    plan.save(scheduler_of(tmp_path, pipe.scheduler))
    with plan.on(pipe):
        wanted = zoo.draw(pipe, options)
    guided = module(export(tmp_path, "--steps", 3, "--guidance-plan", tmp_path))["guided"]
    assert (drawn(guided, pipe, options) - wanted).norm() <= 1e-5 * wanted.norm()


# ComfyUI


def comfyui(folder, *arguments):
    return json.loads(export(folder, *arguments, "--format", "comfyui"))


def of(kind, workflow):
    """The inputs of a workflow's nodes of a kind, in their order."""
    return [node["inputs"] for node in workflow.values() if node["class_type"] == kind]


def followed(workflow):
    """The pieces that its samplers draw: σ, cfg and whether noise is added. Each begins where the
    one before ended."""
    pieces, latent = [], of("VAEDecode", workflow)[0]["samples"]
    while workflow[latent[0]]["class_type"] == "SamplerCustomAdvanced":
        inputs = workflow[latent[0]]["inputs"]
        kinds = {name: workflow[inputs[name][0]] for name in ("guider", "noise")}
        noisy = kinds["noise"]["class_type"] == "RandomNoise"
        assert noisy or kinds["noise"]["class_type"] == "DisableNoise"
        levels = sigmas_of(workflow, inputs["sigmas"])
        pieces.insert(0, (levels, kinds["guider"]["inputs"]["cfg"], noisy))
        latent = inputs["latent_image"]
    assert workflow[latent[0]]["class_type"] == "EmptyLatentImage"
    return pieces


def sigmas_of(workflow, link):
    """What ComfyUI's nodes return, by their definitions: ManualSigmas reads no exponents."""
    inputs = workflow[link[0]]["inputs"]
    if workflow[link[0]]["class_type"] == "ManualSigmas":
        return [float(found) for found in re.findall(r"[-+]?(?:\d*\.*\d+)", inputs["sigmas"])]
    every, step = sigmas_of(workflow, inputs["sigmas"]), inputs["step"]
    return every[step:] if link[1] else every[: step + 1]


@pytest.mark.parametrize("plan", ["constant", "capped", "interval-sdxl", "interval-repa", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_the_pieces_of_a_workflow_are_the_run(plan, steps, tmp_path):
    folder = scheduler_of(tmp_path, EulerDiscreteScheduler(timestep_spacing="trailing"))
    grid = [
        float(one) for one in export(folder, "--steps", steps, "--format", "comfyui").split(",")
    ]
    workflow = comfyui(folder, "--steps", steps, "--guidance-plan", plan)
    pieces = followed(workflow)
    assert [pieces[0][0][0], *(s for levels, _, _ in pieces for s in levels[1:])] == grid
    assert all(a[0][-1] == b[0][0] for a, b in itertools.pairwise(pieces))
    assert [noisy for _, _, noisy in pieces] == [True] + [False] * (len(pieces) - 1)
    times = json.loads(export(folder, "--steps", steps))["timesteps"]
    wanted = GuidancePlan.named(plan).at(grid, 7.5, times=[t / 1000 for t in times])
    each = [cfg for levels, cfg, _ in pieces for _ in levels[1:]]
    assert each == pytest.approx(wanted, abs=1e-5)
    assert all(a[1] != b[1] for a, b in itertools.pairwise(pieces))
    assert plan != "constant" or len(pieces) == 1
    assert len(of("SamplerCustomAdvanced", workflow)) == len(pieces)


def test_every_link_of_a_workflow_has_its_node(tmp_path):
    folder = scheduler_of(tmp_path, EulerDiscreteScheduler())
    workflow = comfyui(folder, "--guidance-plan", "capped")
    links = [v for node in workflow.values() for v in node["inputs"].values() if type(v) is list]
    assert {name for name, _ in links} <= set(workflow)
    used = {name for name, _ in links} | {n for n, one in workflow.items() if "Save" in str(one)}
    assert used == set(workflow)


@pytest.mark.parametrize(
    ("solver", "sampler"), [("euler", "euler"), ("dpm++", "dpmpp_2m"), ("heun", "heun")]
)
def test_the_solver_is_the_model_s_or_the_one_that_is_given(solver, sampler, tmp_path):
    own = {
        "euler": EulerDiscreteScheduler,
        "dpm++": DPMSolverMultistepScheduler,
        "heun": HeunDiscreteScheduler,
    }[solver]
    by_model = comfyui(scheduler_of(tmp_path / "own", own()), "--guidance-plan", "capped")
    assert of("KSamplerSelect", by_model) == [{"sampler_name": sampler}]
    folder = scheduler_of(tmp_path / "other", PNDMScheduler(skip_prk_steps=True))
    given = ["--guidance-plan", "capped", "--solver", solver]
    workflow = comfyui(folder, *given, "--steps", 9)
    assert of("KSamplerSelect", workflow) == [{"sampler_name": sampler}]
    levels = sigmas_of(workflow, [next(n for n in workflow if "Manual" in str(workflow[n])), 0])
    second = capped_scale(levels[2] / levels[1], C, solver, levels[1] / levels[0])
    assert of("CFGGuider", workflow)[1]["cfg"] == pytest.approx(min(7.5, second), abs=1e-4)


def test_sigmas_are_printed_without_exponents():
    levels = [157.4, 1.0, 2e-5, 1e-6, 0.0]
    workflow = {"1": {"class_type": "ManualSigmas", "inputs": {"sigmas": elsewhere.listed(levels)}}}
    assert sigmas_of(workflow, ["1", 0]) == levels


# A1111


def test_a_line_for_a1111_says_where_each_scale_begins(tmp_path):
    folder = scheduler_of(tmp_path, EulerDiscreteScheduler())
    given = ["--steps", 8, "--guidance-plan", "interval-sdxl", "--format", "a1111"]
    printed = json.loads(export(folder, *given))
    assert printed["sigmas"] == json.loads(export(folder, "--steps", 8, "--format", "a1111"))
    starts = {int(k): float(v) for k, v in (one.split(":") for one in printed["cfg"].split(";"))}
    scale, each = None, []
    for step in range(8):
        scale = starts.get(step, scale)
        each.append(scale)
    assert each == GuidancePlan.named("interval-sdxl").at(printed["sigmas"], 7.5)


def test_the_scale_of_a_tuned_folder_counts(tmp_path, monkeypatch):
    folder = scheduler_of(tmp_path, EulerDiscreteScheduler())
    monkeypatch.setattr(load, "tuned_setting", lambda _: {"guidance_scale": 4.0})
    given = ["--guidance-plan", "constant", "--steps", 2]
    assert module(export(folder, *given))["SCALES"] == [4.0, 4.0]
    assert module(export(folder, *given, "--guidance-scale", 5))["SCALES"] == [5.0, 5.0]


# Refusals


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (["--guidance-plan", "gated"], "gate"),
        (["--guidance-plan", "zero-start"], "zero_steps"),
        (["--guidance-plan", "caped"], "guidance_plan"),
        (["--guidance-plan", "capped", "--solver", "dpm"], "solver"),
        (["--guidance-plan", "constant", "--solver", "dpm"], "solver"),
        (["--guidance-plan", "capped", "--guidance-scale", "0.5"], "guidance_scale"),
        (["--guidance-plan", "capped", "--guidance-scale", "nan"], "guidance_scale"),
        (["--guidance-scale", "5"], "guidance_scale"),
        (["--solver", "euler"], "solver"),
    ],
)
@pytest.mark.parametrize("form", ["diffusers", "comfyui", "a1111"])
def test_what_cannot_be_written_is_refused_in_one_line(form, arguments, argument, tmp_path):
    folder = scheduler_of(tmp_path, EulerDiscreteScheduler())
    with refuses(argument):
        export(folder, *arguments, "--format", form)


@pytest.mark.parametrize("form", ["diffusers", "comfyui", "a1111"])
def test_a_cap_needs_a_solver_whose_law_is_known(form, tmp_path):
    folder = scheduler_of(tmp_path, PNDMScheduler(skip_prk_steps=True))
    with refuses("solver"):
        export(folder, "--guidance-plan", "capped", "--format", form)


@pytest.mark.parametrize("solver", ["unipc", "ancestral"])
def test_comfyui_s_samplers_that_pieces_would_change_are_refused(solver, tmp_path):
    folder = scheduler_of(tmp_path, UniPCMultistepScheduler())
    with refuses("solver"):
        export(folder, "--guidance-plan", "capped", "--solver", solver, "--format", "comfyui")


def test_a_list_for_another_number_of_steps_is_refused(tmp_path):
    GuidancePlan.steps([2.0, 3.0]).save(scheduler_of(tmp_path, EulerDiscreteScheduler()))
    with refuses("scales"):
        export(tmp_path, "--guidance-plan", tmp_path, "--steps", 3)
