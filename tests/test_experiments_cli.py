"""The experiments' commands: their help, their refusals, and what they hand to the experiment."""

import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from diffusers import DDIMScheduler
from typer.testing import CliRunner

from asddim_lib.errors import WrongUse
from asddim_lib.models import load
from experiments import clock as bench
from experiments import evaluate as experiment
from experiments.cli import app, main
from experiments.clock import METHODS as TIMED
from tests.test_cli import ReachedError, names_in, refused
from tests.test_command_line import full_disk
from tests.tiny import sd

COMMANDS = {"evaluate", "compare", "report", "clock", "mlperf", "recipes"}
WRONG_USE = [
    ("evaluate --methods magic", "method is magic; "),
    ("evaluate --methods ddim,ddim", "methods is 'ddim,ddim'; give each value once"),
    ("evaluate --steps 2,2", "steps is '2,2'; give each value once"),
    ("evaluate --steps 2,x", "steps is '2,x'; give whole numbers separated by commas"),
    ("evaluate --steps 2.5", "steps is '2.5'; give whole numbers separated by commas"),
    ("evaluate --guidance-scale 3,3.0", "guidance_scale is '3,3.0'; give each value once"),
    ("evaluate --guidance-scale inf", "guidance_scale is inf; "),
    ("evaluate --guidance-scale=-1", "guidance_scale is -1.0; "),
    ("evaluate --inception w.pth", "reference is ''; give a folder of real pictures, too"),
    ("evaluate --shard 4/4 --count 1", "shard is 4/4; "),
    ("compare --grids magic", "method is magic; "),
    ("compare --grids karras,,beta", "grids is 'karras,,beta'; give items separated by commas"),
    ("compare --guidance-plans caped", "guidance_plan is caped; "),
    ("compare --guidance-plans capped-3", "c is 3.0; "),
    ("compare --guidance-plans linear,linear", "guidance_plans is 'linear,linear'; "),
    ("recipes --of /nowhere", "of is /nowhere; "),
    ("recipes --of , --count 2", "of is ','; "),
    ("recipes --of /nowhere --call [", "call is '['; "),
    ("report /nowhere", "folder is /nowhere, without "),
    ("clock --methods magic", "magic"),
    ("clock --steps 2,x", "steps is '2,x'; "),
    ("mlperf --prompts /no.tsv --latents l --reference .", "prompts is /no.tsv; "),
    ("mlperf --prompts bundled --count 2 --latents l --reference .", "reference is .; "),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def help_of(*arguments):
    done = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.exception
    return done.output


def test_each_command_shows_an_example():
    assert {one.callback.__name__ for one in app.registered_commands} == COMMANDS
    assert {arguments.split()[0] for arguments, _ in WRONG_USE} == COMMANDS
    for command in COMMANDS:
        assert f"python -m experiments {command}" in help_of(command)
    assert set(TIMED) <= names_in(help_of("clock"))


def test_it_runs_as_a_module_and_its_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "experiments", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "experiments.cli" in imported
    assert not imported & {"torch", "numpy", "pandas", "diffusers", "transformers"}


@pytest.mark.parametrize(("arguments", "message"), WRONG_USE)
def test_wrong_use_ends_in_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys):
    pipe = SimpleNamespace(scheduler=DDIMScheduler(beta_schedule="scaled_linear"))
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)
    line = refused(main, ["experiments", *arguments.split()], monkeypatch, capsys)
    assert line.startswith("experiments: ")
    assert message in line


@pytest.mark.parametrize("file", ["none/x.csv", "."])
def test_a_clock_without_a_place_for_its_times_does_not_start(file, monkeypatch, capsys):
    monkeypatch.setattr(bench, "clock", None)
    line = refused(main, ["experiments", "clock", "--out", file], monkeypatch, capsys)
    assert line.startswith(f"experiments: out is {file}")


def raising(error):
    def raises(*_, **__):
        raise error

    return raises


@pytest.mark.parametrize("error", [WrongUse("x is\n1; y"), OSError("disk\n full")])
def test_wrong_use_and_a_failing_disk_are_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["experiments.cli.clock"], "numbers", raising(error))
    line = refused(main, ["experiments", "clock"], monkeypatch, capsys)
    assert line == f"experiments: {' '.join(str(error).split())}"


def test_a_full_disk_ends_in_one_line_and_leaves_no_partial_file(
    preloaded, tmp_path, monkeypatch, capsys
):
    arguments = ["evaluate", "--out", "o", "--count", "4", "--steps", "1", "--methods", "ddim"]
    with full_disk():
        refused(main, ["experiments", *arguments], monkeypatch, capsys, alone=False)
    left = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert left <= {"claim.json", "manifest.json", ".lock"}  # whole before the disk was full


def test_compare_sets_grids_beside_the_trailing_one(preloaded, tmp_path):
    arguments = "compare --out o --count 8 --grids noise --steps 2 --guidance-scale 1"
    arguments += " --reference-steps 6 --calibrate-on 1 --calibrate-steps 6"
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 0, done.exception
    pairs, summary = (
        pd.read_csv(tmp_path / "o" / f"{name}.csv").set_index("method")
        for name in ("paired", "summary")
    )
    assert list(pairs.index) == ["noise"]
    change = summary["distance"]["noise"] - summary["distance"]["trailing"]
    assert pairs["difference"]["noise"] == pytest.approx(change, abs=1e-9)
    assert "noise" in done.stdout


def test_compare_sets_guidance_plans_beside_the_constant_one(preloaded, tmp_path):
    arguments = "compare --out o --count 8 --grids trailing --steps 2 --guidance-scale 1,7.5"
    arguments += " --reference-steps 6 --guidance-plans capped-1.5,linear"
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 0, done.exception
    pairs, summary = (pd.read_csv(tmp_path / "o" / f"{name}.csv") for name in ("paired", "summary"))
    assert sorted(pairs["method"]) == ["trailing, capped-1.5", "trailing, linear"]
    assert set(pairs["guidance_scale"]) == {7.5}
    distance = summary[summary["guidance_scale"] == 7.5].set_index("guidance_plan")["distance"]
    for plan, change in zip(("capped-1.5", "linear"), pairs["difference"], strict=True):
        assert change == pytest.approx(distance[plan] - distance["constant"], abs=1e-9)
    assert "trailing, capped-1.5" in done.stdout
    again = CliRunner().invoke(app, [*arguments.split(), "--plan"])
    assert "48 pictures, at most" in again.output  # 8 of each of 4 cells, and of 2 references


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_truncate_reaches_what_reads_the_prompts(command, given, monkeypatch):
    def watched(pipe, table, setting, *_, **__):
        raise ReachedError(setting.truncate)

    tiny = sd()[0]
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: tiny)
    monkeypatch.setattr(experiment, "evaluate", watched)
    done = CliRunner().invoke(app, [command, *(["--truncate"] if given else [])])
    assert isinstance(done.exception, ReachedError), done.exception
    assert done.exception.args == (given,)


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_an_experiment_gets_what_its_options_say(command, monkeypatch, tmp_path):
    def watched(pipe, table, setting, out, **named):
        raise ReachedError(setting, len(table), out, named["clip"])

    tiny = sd()[0]
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: tiny)
    monkeypatch.setattr(experiment, "evaluate", watched)
    flag = "--methods" if command == "evaluate" else "--grids"
    arguments = f"{command} --count 3 {flag} beta,trailing --steps 4,9 --guidance-scale 0,2.5"
    arguments += f" --solvers unipc --clip c --batch-size 2 --reference-steps 8 --out {tmp_path}"
    setting, count, out, clip = CliRunner().invoke(app, arguments.split()).exception.args
    order = ("beta", "trailing") if command == "evaluate" else ("trailing", "beta")
    assert (setting.methods, setting.steps, setting.solvers) == (order, (4, 9), ("unipc",))
    assert (setting.guidance_scales, setting.batch_size) == ((0.0, 2.5), 2)
    assert (setting.reference_steps, count, out, clip) == (8, 3, tmp_path, "c")
    tuning = (setting.adjoint_probes, setting.tuning_seed, setting.calibrate_on)
    assert tuning == ((0, 0, 8) if command == "evaluate" else (2, 1_000_000, 16))
