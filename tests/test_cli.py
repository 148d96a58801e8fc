"""The command line: its help, its refusals, its exit codes, and what it hands to the library."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from typer.testing import CliRunner

from asddim_lib import calibration as measure
from asddim_lib.cli import app, clock, main
from asddim_lib.errors import WrongUse
from asddim_lib.grids.table import ALLOCATIONS, METHODS
from asddim_lib.models import load
from asddim_lib.pipeline import run
from asddim_lib.schedulers.solvers import FLOW_SOLVERS, SOLVERS
from asddim_lib.tuning import search
from asddim_lib.tuning.goals import GOALS
from experiments import evaluate as experiment
from experiments.clock import METHODS as TIMED
from experiments.setting import METHODS as NAMED
from tests.tiny import sd

PURPOSE = {
    "calibrate": "Measures how sensitive the model is",
    "generate": "Draws one picture",
    "export": "Prints a grid for another program",
    "methods": "Lists every method",
    "choose": "Tries grids on a few prompts",
    "tune": "Finds the grid whose pictures are best",
    "evaluate": "Draws and judges pictures of several methods",
    "compare": "Compares grids with the trailing one",
    "report": "Prints the paper's tables",
    "clock": "Times the methods",
    "mlperf": "as MLPerf Inference does",
}
WRONG_USE = [
    ("calibrate p.json --dtype float8", "dtype is float8; use one of float32"),
    ("calibrate p.json --count 0", "count is 0; "),
    ("calibrate p.json --quick --encoder x", "encoder is x; --quick has 1"),
    ("calibrate p.json --quick --feature-probes 2", "feature_probes is 2; --quick has 1"),
    ("calibrate p.json --quick --adjoint-probes 1", "adjoint_probes is 1; --quick has 1"),
    ("calibrate p.json --quick --count 8", "count is 8; --quick has 1"),
    ("calibrate p.json --quick --num-steps 8", "num_steps is 8; --quick has 1"),
    ("calibrate p.json --quick --estimator jvp", "estimator is jvp; --quick has 1"),
    ("generate boot --allocation magic", "allocation is magic; use one of uniform"),
    ("generate boot --profile p.json", "profile is p.json; allocation uniform makes no use of it"),
    ("generate boot --override model", "override is model; there is no profile: leave it out"),
    ("choose --override model", "override is model; there is no profile: leave it out"),
    ("generate boot --allocation combined", "profile is None; allocation combined needs one"),
    ('generate boot --call {"guidance_scale":9}', "guidance_scale has an option of its own"),
    ('calibrate p.json --call {"guidance_scale":9}', "guidance_scale has an option of its own"),
    ('calibrate p.json --call {"seed":9}', "seed is no option of a pipeline's call"),
    ("generate boot --model /nowhere", "model is '/nowhere'"),
    ("export --format word", "format is word; use diffusers"),
    ("export --steps 0", "num_inference_steps is 0; "),
    ("export --model /nowhere", "model is '/nowhere'"),
    ("choose --solver heun", "solver is heun; use one of ddim"),
    ("choose --grids karras,karras", "grids is 'karras,karras'; give each value once"),
    ("choose --grids magic", "allocation is magic; "),
    ("tune --goal beauty", "goal is beauty; use one of latents, embedding"),
    ("tune --solver heun", "solver is heun; use one of ddim"),
    ("tune --quick --count 48", "count is 48; --quick has 9 prompts"),
    ("tune --budget 9 --minutes 1", "budget and minutes is 9 and 1.0; give one"),
    ("evaluate --methods magic", "method is magic; "),
    ("evaluate --methods ddim,ddim", "methods is 'ddim,ddim'; give each value once"),
    ("evaluate --steps 2,2", "steps is '2,2'; give each value once"),
    ("evaluate --steps 2,x", "steps is '2,x'; give whole numbers separated by commas"),
    ("evaluate --steps 2.5", "steps is '2.5'; give whole numbers separated by commas"),
    ("evaluate --guidance-scale 3,3.0", "guidance_scale is '3,3.0'; give each value once"),
    ("evaluate --guidance-scale inf", "guidance_scale is 'inf'; give numbers separated by"),
    ("evaluate --guidance-scale=-1", "guidance_scale is -1.0; "),
    ("evaluate --inception w.pth", "reference is ; give a folder of real pictures, too"),
    ("evaluate --shard 4/4 --count 1", "shard is 4/4; "),
    ("compare --grids magic", "method is magic; "),
    ("compare --grids karras,,beta", "grids is 'karras,,beta'; give items separated by commas"),
    ("report /nowhere", "folder is /nowhere, without "),
    ("clock --methods magic", "magic"),
    ("clock --steps 2,x", "steps is '2,x'; "),
    ("mlperf --prompts /no.tsv --latents l --reference .", "prompts is /no.tsv; "),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run_main(arguments, monkeypatch, capsys):
    """Exit code, stdout and stderr of the entry point."""
    monkeypatch.setattr(sys, "argv", ["asddim", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


def help_of(*arguments):
    done = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.exception
    return " ".join(done.output.replace("│", " ").split())


def names_in(text):
    return set(re.findall(r"[\w+-]+", text))


@pytest.mark.parametrize(("command", "purpose"), PURPOSE.items())
def test_each_command_says_what_it_does(command, purpose):
    assert purpose in help_of(command)
    assert "Example: asddim " + command in help_of(command)
    assert purpose in help_of()


def test_no_command_is_left_out_of_these_tests():
    assert {one.callback.__name__ for one in app.registered_commands} == set(PURPOSE)
    without_options = {"methods"}
    assert {arguments.split()[0] for arguments, _ in WRONG_USE} == set(PURPOSE) - without_options


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("generate", ALLOCATIONS),
        ("export", ALLOCATIONS),
        ("choose", {*ALLOCATIONS, *SOLVERS}),
        ("tune", {*GOALS, *SOLVERS, *FLOW_SOLVERS}),
        ("evaluate", {*METHODS, *NAMED, *SOLVERS}),
        ("compare", {*METHODS, *SOLVERS}),
        ("clock", TIMED),
    ],
)
def test_help_lists_every_name_that_the_command_takes(command, names):
    assert set(names) <= names_in(help_of(command))


def test_methods_prints_the_table():
    table = [{"name": m.name, "needs": m.needs, "summary": m.summary} for m in METHODS.values()]
    assert json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout) == table
    lines = CliRunner().invoke(app, ["methods"]).stdout.splitlines()[1:]
    assert [line.split(maxsplit=2) for line in lines] == [list(row.values()) for row in table]


def test_help_of_the_whole_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "asddim_lib.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "asddim_lib.cli.app" in imported
    assert not imported & {"torch", "numpy", "pandas", "diffusers", "transformers"}


@pytest.mark.parametrize(("arguments", "message"), WRONG_USE)
def test_wrong_use_ends_in_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys):
    pipe = SimpleNamespace(scheduler=DDIMScheduler(beta_schedule="scaled_linear"))
    if "/nowhere" not in arguments:
        monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)
    code, out, err = run_main(arguments.split(), monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("asddim: ")
    assert message in err


def test_choose_refuses_a_solver_that_a_flow_model_lacks(monkeypatch, capsys):
    pipe = SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)
    for solver in set(SOLVERS) - set(FLOW_SOLVERS):
        code, _, err = run_main(["choose", "--solver", solver], monkeypatch, capsys)
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"solver is {solver}; for a flow-matching model use some of euler, unipc" in err


def raising(error):
    def raises(*_, **__):
        raise error

    return raises


@pytest.mark.parametrize("error", [WrongUse("x is\n1; y"), OSError("disk\n full")])
def test_wrong_use_and_a_failing_disk_are_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr(clock, "numbers", raising(error))
    code, _, err = run_main(["clock"], monkeypatch, capsys)
    assert (code, err) == (2, f"asddim: {str(error).replace(chr(10), ' ').replace('  ', ' ')}\n")


@pytest.mark.parametrize("error", [ValueError("x is 1; y"), KeyError("x"), TypeError("x")])
def test_a_fault_of_ours_is_raised_as_it_is(error, monkeypatch):
    monkeypatch.setattr(clock, "numbers", raising(error))
    monkeypatch.setattr(sys, "argv", ["asddim", "clock"])
    with pytest.raises(type(error)) as raised:
        main()
    assert raised.value is error


def test_a_fault_of_ours_keeps_its_traceback_and_exit_code_1():
    code = (
        "from asddim_lib.cli import clock, main\n"
        "def numbers(*_):\n    raise ValueError('x is 1; y')\n"
        "clock.numbers = numbers\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, "clock"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1] == "ValueError: x is 1; y"


class Pipe:
    """Stands for a pipeline: lays the grid, keeps the arguments, draws nothing."""

    def __init__(self):
        self.scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1)
        self.tokenizer = SimpleNamespace(tokenize=str.split, model_max_length=77)

    def __call__(self, prompt, num_inference_steps, **how):
        self.arguments = how
        self.scheduler.set_timesteps(num_inference_steps)
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))])


class ReachedError(Exception):
    """Ends a command once it has called what is watched."""


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("arguments", "module", "name"),
    [
        ("calibrate p.json", measure, "calibrate"),
        ("generate boot", run, "Run"),
        ("choose", search, "solution"),
        ("evaluate", experiment, "evaluate"),
        ("compare", experiment, "evaluate"),
    ],
)
def test_truncate_reaches_what_reads_the_prompts(arguments, module, name, given, monkeypatch):
    def watched(*values, **named):
        setting = named if "truncate" in named else vars(values[2])
        raise ReachedError(setting["truncate"])

    tiny = sd()[0]
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: tiny)
    monkeypatch.setattr(module, name, watched)
    done = CliRunner().invoke(app, [*arguments.split(), *(["--truncate"] if given else [])])
    assert isinstance(done.exception, ReachedError), done.exception
    assert done.exception.args == (given,)


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_an_experiment_gets_what_its_options_say(command, monkeypatch, tmp_path):
    def watched(pipe, table, setting, out, **named):
        raise ReachedError(setting, len(table), out, named["clip"])

    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: Pipe())
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
