"""`asddim export`: the grids that it prints for other programs."""

import json

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from typer.testing import CliRunner

from asddim_lib import ASDDIMScheduler, ASFlowScheduler, UniPCGridScheduler
from asddim_lib.cli import app
from asddim_lib.errors import WrongUse
from asddim_lib.models import load


def export(*arguments):
    return CliRunner().invoke(app, ["export", *arguments]).stdout.strip()


@pytest.fixture
def flow_model(tmp_path):
    """A folder that holds a scheduler alone: export reads nothing else."""
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "flow" / "scheduler")
    return str(tmp_path / "flow")


def test_export_of_a_flow_model_prints_what_the_solver_uses(flow_model):
    arguments = ["--model", flow_model, "--steps", "4", "--allocation", "trailing", "--format"]
    assert export(*arguments, "comfyui") == "1.0, 0.9, 0.75, 0.5, 0.0"
    assert json.loads(export(*arguments, "a1111")) == [1.0, 0.9, 0.75, 0.5, 0.0]


@pytest.mark.parametrize("allocation", ["uniform", "karras", "beta"])
def test_other_programs_get_the_sigmas_that_diffusers_computes(flow_model, allocation):
    arguments = ["--model", flow_model, "--steps", "5", "--allocation", allocation, "--format"]
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(sigmas=json.loads(export(*arguments, "diffusers"))["sigmas"])
    printed = json.loads(export(*arguments, "a1111"))
    assert printed == pytest.approx(solver.sigmas.tolist(), abs=1e-5)


@pytest.mark.parametrize("allocation", [None, "trailing"])
@pytest.mark.parametrize("one", [True, False])
def test_other_programs_samplers_end_at_zero(tmp_path, one, allocation):
    """Whereas diffusers' own end where their scheduler does."""
    scheduler = DDIMScheduler(set_alpha_to_one=one)
    more = ["--allocation", allocation] if allocation else []
    found = exported(tmp_path, scheduler, *more)["sigmas"]
    assert (found[-1] == 0) == one
    printed = exported(tmp_path, scheduler, *more, "--format", "a1111")
    assert printed == [*found[:-1], 0]


def test_export_lays_the_scheduler_s_own_spacing_unless_told():
    solver = DDIMScheduler.from_config(load.load_scheduler_config())
    solver.set_timesteps(7)
    assert json.loads(export("--steps", "7"))["timesteps"] == solver.timesteps.tolist()


def exported(folder, scheduler, *more):
    """What export prints of a folder with this scheduler, for 4 steps."""
    scheduler.save_pretrained(folder / "scheduler")
    return json.loads(export("--model", str(folder), "--steps", "4", *more))


def test_export_lays_what_the_saved_scheduler_itself_lays(tmp_path):
    schedulers = [
        ASDDIMScheduler(grid=[999, 700, 300, 50]),
        UniPCGridScheduler(grid=[999, 700, 300, 50]),
        ASDDIMScheduler(allocation="logsnr"),
        ASDDIMScheduler(allocation="noise", p=0.2),
    ]
    for n, scheduler in enumerate(schedulers):
        found = exported(tmp_path / str(n), scheduler)
        scheduler.set_timesteps(4)
        assert found["timesteps"] == scheduler.timesteps.tolist()
    over = exported(tmp_path / "0", schedulers[0], "--allocation", "logsnr")
    assert over == exported(tmp_path / "2", schedulers[2])


def test_export_prints_a_flow_model_s_held_sigmas_exactly(tmp_path):
    scheduler = ASFlowScheduler(shift=3.0, grid=[1.0, 0.87654, 0.5, 0.12345])
    found = exported(tmp_path, scheduler, "--format", "a1111")
    assert found == [1.0, 0.87654, 0.5, 0.12345, 0.0]
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(sigmas=exported(tmp_path, scheduler)["sigmas"])
    assert solver.sigmas.tolist() == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("own", [{"allocation": "karras"}, {"grid": [1.0, 0.87, 0.5, 0.1]}])
def test_export_begins_a_step_at_the_boundary_of_two_networks(own, tmp_path):
    scheduler = ASFlowScheduler(shift=3.0, boundary=0.7, **own)
    found = exported(tmp_path, scheduler, "--format", "a1111")
    scheduler.set_timesteps(4)
    assert found == pytest.approx(scheduler.sigmas.tolist(), abs=1e-5)
    assert 0.6999 in found
    solver = FlowMatchEulerDiscreteScheduler(shift=3.0)
    solver.set_timesteps(sigmas=exported(tmp_path, scheduler)["sigmas"])
    assert solver.sigmas.tolist() == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("option", ["--order"])
def test_export_refuses_what_a_held_grid_makes_no_use_of(option, tmp_path):
    ASDDIMScheduler(grid=[999, 700]).save_pretrained(tmp_path / "scheduler")
    arguments = ["export", "--steps", "2", "--model", str(tmp_path), option, "1"]
    found = CliRunner().invoke(app, arguments).exception
    assert isinstance(found, WrongUse)
    assert str(found).startswith(f"{option[2:]} is given; ")
