"""The users' command line: its help, its refusals, its exit codes, and its defaults."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from asddim_lib import calibration as measure
from asddim_lib.cli import app, main, options
from asddim_lib.grids.table import METHODS
from asddim_lib.models import load
from asddim_lib.pipeline import run
from asddim_lib.schedulers.solvers import FLOW_SOLVERS, SOLVERS
from tests.tiny import sd, sd3

ROOT = Path(__file__).parents[1]
COMMANDS = ["generate", "calibrate", "tune", "recipe", "compare", "export"]
#: A command, and the argument that its refusal names.
WRONG_USE = [
    ("calibrate p.json --dtype float8", "dtype is float8"),
    ("calibrate p.json --count 0", "count is 0"),
    ("calibrate p.json --num-steps 0", "num_steps is 0"),
    ("calibrate p.json --guidance-scale=-1", "guidance_scale is -1.0"),
    ("calibrate p.json --guidance-scale nan", "guidance_scale is nan"),
    ("calibrate p.json --save-memory disk", "save_memory is disk"),
    ("calibrate p.json --prompts /no.txt", "prompts is /no.txt"),
    ("calibrate p.json --model elsewhere", "prompts is not given"),
    ("calibrate none/p.json", "out is none/p.json"),
    ("calibrate .", "out is ."),
    ("calibrate p.json --call [1]", "call is [1]"),
    ('calibrate p.json --call {"guidance_scale":9}', "call is"),
    ('calibrate p.json --call {"seed":9}', "call is"),
    ('calibrate p.json --call {"estimator":"vjp"}', "call is"),
    ('calibrate p.json --call {"batch_size":2}', "call is"),
    ("calibrate p.json --estimator guess", "estimator is guess"),
    ("calibrate p.json --adjoint-probes=-1", "adjoint_probes is -1"),
    ("calibrate p.json --feature-probes=-1", "feature_probes is -1"),
    ("calibrate p.json --encoder bundled", "encoder is bundled"),
    ("calibrate p.json --seed 99999999999999999999999", "seed is 99999999999999999999999"),
    ("calibrate", "Missing argument"),
    ("generate boot --seed 99999999999999999999999", "seed is 99999999999999999999999"),
    ("generate boot --allocation combined --profile no.json", "profile is 'no.json'"),
    ("generate boot --profile . --allocation combined", "profile is '.'"),
    ("generate boot --allocation magic", "allocation is magic"),
    ("generate boot --profile p.json --allocation uniform", "profile is p.json"),
    ("generate boot --override model", "override is model"),
    ("generate boot --allocation combined", "profile is not given"),
    ("generate boot --steps 0", "steps is 0"),
    ("generate boot --steps 1001", "steps is 1001"),
    ("generate boot --width 0", "width is 0"),
    ("generate boot --guidance-scale inf", "guidance_scale is inf"),
    ('generate boot --call {"prompt":9}', "call is"),
    ("generate boot x.txt", "out is x.txt"),
    ("generate boot none/x.png", "out is none/x.png"),
    ("generate boot --model /nowhere", "model is '/nowhere'"),
    ("generate boot --stepz 3", "--stepz"),
    ("generate boot --steps many", "--steps"),
    ("export --format word", "format is word"),
    ("export --steps 0", "steps is 0"),
    ("export --mu 800", "mu is 800.0"),
    ("export --mu nan", "mu is nan"),
    ("export --model /nowhere", "model is '/nowhere'"),
    ("export --allocation magic", "allocation is magic"),
    ("export --allocation comfy-sigmas", "allocation is comfy-sigmas"),
    ("export --allocation combined --profile no.json", "profile is 'no.json'"),
    ("recipe --evaluations 3", "evaluations is 3"),
    ("recipe --batch-size 0", "batch_size is 0"),
    ("recipe --model elsewhere", "prompts is not given"),
    ("recipe --count 9", "prompts is"),
    ("tune --goal beauty", "goal is beauty"),
    ("tune --solver heun", "solver is heun"),
    ("tune --steps 0", "steps is 0"),
    ("tune --batch-size 0", "batch_size is 0"),
    ("tune --count 6", "prompts is a list of 6"),
    ("tune --quick --count 6", "prompts is a list of 6"),
    ("compare --count 6", "prompts is a list of 6"),
    ("tune --budget 0", "budget is 0"),
    ("tune --model elsewhere", "prompts is not given"),
    ("compare --grids magic", "allocation is magic"),
    ("compare --grids karras,karras", "grids is 'karras,karras'"),
    ("compare --steps 0", "steps is 0"),
    ("compare --model elsewhere", "prompts is not given"),
    ("frobnicate", "frobnicate"),
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def refused(entry, arguments, monkeypatch, capsys, alone=True):
    """The last line on stderr of an entry point that ends with 2; the only one if `alone`."""
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        entry()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert len(err.splitlines()) == 1 or not alone
    return err.splitlines()[-1]


def help_of(*arguments):
    done = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.exception
    return " ".join(done.output.replace("│", " ").split())


def names_in(text):
    return set(re.findall(r"[\w+-]+", text))


def test_there_are_six_commands_and_each_shows_an_example():
    assert [one.callback.__name__ for one in app.registered_commands] == COMMANDS
    for command in COMMANDS:
        assert "Example: asddim " + command in help_of(command)
        assert command in help_of()
    assert {arguments.split()[0] for arguments, _ in WRONG_USE} >= set(COMMANDS)


def test_help_names_what_an_option_takes():
    assert {"latents", "embedding", *SOLVERS, *FLOW_SOLVERS} <= names_in(help_of("tune"))


@pytest.mark.parametrize("command", ["generate", "calibrate", "tune", "compare"])
def test_what_draws_has_the_options_of_a_machine_and_no_bundled_prompts(command):
    callback = next(o.callback for o in app.registered_commands if o.callback.__name__ == command)
    parameters = inspect.signature(callback).parameters
    defaults = {name: one.default.default for name, one in parameters.items()}
    machine = {"device": "auto", "dtype": "auto", "save_memory": "", "guidance_scale": None}
    assert machine.items() <= defaults.items()
    assert {"width", "height", "call", "truncate", "as_json"} <= set(defaults)
    assert defaults.get("prompts", "") == ""


def test_export_lists_every_method():
    table = [{"name": m.name, "needs": m.needs, "summary": m.summary} for m in METHODS.values()]
    listed = CliRunner().invoke(app, ["export", "--list", "--json"]).stdout
    assert json.loads(listed) == table
    lines = CliRunner().invoke(app, ["export", "--list"]).stdout.splitlines()[1:]
    assert [line.split(maxsplit=2) for line in lines] == [list(row.values()) for row in table]


def test_help_of_the_whole_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "asddim_lib.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "asddim_lib.cli.app" in imported
    assert not imported & {"torch", "numpy", "pandas", "diffusers", "transformers", "experiments"}


@pytest.mark.parametrize(("arguments", "message"), WRONG_USE)
def test_wrong_use_is_one_line_before_the_model_is_loaded(
    arguments, message, monkeypatch, capsys, tmp_path
):
    if "/nowhere" not in arguments:
        monkeypatch.setattr(load, "_load", None)
    line = refused(main, ["asddim", *arguments.split()], monkeypatch, capsys)
    assert line.startswith("asddim: ")
    assert message in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["generate boot", "calibrate", "tune --out", "compare --out"])
@pytest.mark.parametrize("out", ["", " ", "/dev/null/x.png"])
def test_a_place_that_cannot_be_written_is_refused_first(command, out, monkeypatch, capsys):
    monkeypatch.setattr(load, "_load", None)
    line = refused(main, ["asddim", *command.split(), out], monkeypatch, capsys)
    assert line.startswith("asddim: out is ")


@pytest.mark.parametrize("error", [ValueError("x is 1; y"), KeyError("x"), TypeError("x")])
def test_a_fault_of_ours_keeps_its_traceback(error, monkeypatch):
    def raises(*_):
        raise error

    monkeypatch.setattr(sys.modules["asddim_lib.cli.generate"], "check_whole", raises)
    monkeypatch.setattr(sys, "argv", ["asddim", "generate", "boot"])
    with pytest.raises(type(error)) as raised:
        main()
    assert raised.value is error


class ReachedError(Exception):
    """Ends a command once it has called what is watched."""


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("arguments", "module", "name"),
    [("calibrate p.json", measure, "calibrate"), ("generate boot", run, "Run")],
)
def test_truncate_reaches_what_reads_the_prompts(arguments, module, name, given, monkeypatch):
    def watched(*values, **named):
        raise ReachedError(named["truncate"])

    tiny = sd()[0]
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: tiny)
    monkeypatch.setattr(module, name, watched)
    done = CliRunner().invoke(app, [*arguments.split(), *(["--truncate"] if given else [])])
    assert isinstance(done.exception, ReachedError), done.exception
    assert done.exception.args == (given,)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], (1, "path")),
        (["--count", "3"], (3, "path")),
        (["--estimator", "difference"], (1, "difference")),
    ],
)
def test_an_explicit_option_wins_over_quick(given, expected, monkeypatch):
    def watched(pipe, prompts, **named):
        raise ReachedError(len(prompts), named["estimator"])

    tiny = sd()[0]
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: tiny)
    monkeypatch.setattr(measure, "calibrate", watched)
    done = CliRunner().invoke(app, ["calibrate", "p.json", "--quick", *given])
    assert done.exception.args == expected


@pytest.mark.parametrize(
    ("cuda", "mps", "device", "dtype"),
    [
        (True, True, "cuda", torch.float16),
        (False, True, "mps", torch.float16),
        (False, False, "cpu", torch.float32),
    ],
)
def test_auto_is_the_best_device_and_its_dtype(cuda, mps, device, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    asked = {}
    monkeypatch.setattr(load, "load_pipeline", lambda model, **how: asked.update(how))
    options.ModelOptions("sdxl", save_memory="vae-slicing,offload").load()
    assert (asked["device"], asked["dtype"]) == (device, dtype)
    assert asked["save_memory"] == ("vae-slicing", "offload")
    options.ModelOptions("sdxl", "fp16", "StableDiffusionPipeline", "cpu", "bfloat16").load()
    assert (asked["device"], asked["dtype"], asked["variant"]) == ("cpu", torch.bfloat16, "fp16")


@pytest.mark.parametrize("command", ["generate boot", "calibrate p.json", "tune", "compare"])
def test_a_model_s_options_reach_its_loader(command, monkeypatch):
    def watched(model, **how):
        raise ReachedError(model, how)

    monkeypatch.setattr(load, "load_pipeline", watched)
    given = "--model bundled-flow --variant fp16 --pipeline-class Sd --device cpu --dtype bfloat16"
    arguments = [*command.split(), *given.split(), "--save-memory", "vae-slicing"]
    model, how = CliRunner().invoke(app, arguments).exception.args
    assert model == "bundled-flow"
    assert how == {
        "device": "cpu",
        "dtype": torch.bfloat16,
        "save_memory": ("vae-slicing",),
        "pipeline_class": "Sd",
        "variant": "fp16",
    }


@pytest.mark.parametrize("command", ["tune", "compare"])
def test_a_comparison_gets_what_its_options_say(command, monkeypatch):
    def watched(pipe, prompts, **named):
        raise ReachedError(len(prompts), named)

    tiny = sd()[0]
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: tiny)
    monkeypatch.setattr("asddim_lib.tuning.tune.tune", watched)
    given = "--steps 3 --count 20 --guidance-scale 2 --solver unipc --goal latents --batch-size 4"
    given += " --encoder a --check-encoder b --width 32 --height 48 --out o --truncate"
    call = ["--call", '{"eta": 0.5}']
    count, named = CliRunner().invoke(app, [command, *given.split(), *call]).exception.args
    expected = {
        **{"steps": 3, "guidance_scale": 2.0, "solver": "unipc", "goal": "latents"},
        **{"batch_size": 4, "encoder": "a", "check_encoder": "b", "truncate": True},
        **{"options": {"eta": 0.5, "width": 32, "height": 48}, "folder": Path("o")},
    }
    assert count == 20
    assert {name: named[name] for name in expected} == expected


def test_calibrate_gives_advice_only_where_the_book_has_some(preloaded, tmp_path):
    def advised(*more):
        words = ["calibrate", "p.json", "--count", "1", "--num-steps", "4", "--json", *more]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)["advice"]

    sweep = ["--adjoint-probes", "1"]
    assert advised(*sweep) == "dual-weighted"
    assert advised(*sweep, "--guidance-scale", "7.5") is None
    assert advised() is None


def test_calibrate_prints_the_shift_that_a_size_gives(monkeypatch, tmp_path):
    pipe, call = sd3()
    kind, config = type(pipe.scheduler), pipe.scheduler.config
    pipe.scheduler = kind.from_config(config, use_dynamic_shifting=True)
    monkeypatch.setattr(load, "load_pipeline", lambda *_, **__: pipe)
    (tmp_path / "p.txt").write_text("a red boot\n")
    words = ["calibrate", "p.json", "--prompts", "p.txt", "--count", "1", "--num-steps", "4"]
    words += ["--guidance-scale", "1", "--estimator", "path", "--json"]
    found = []
    for side in ("64", "128"):
        size = ["--width", side, "--height", side]
        rest = {k: v for k, v in call.items() if k not in ("width", "height")}
        done = CliRunner().invoke(app, [*words, *size, "--call", json.dumps(rest)])
        assert done.exit_code == 0, done.exception
        found.append(json.loads(done.stdout)["mu"])
    assert found[0] < found[1]


NO_HOME = """
import os, pwd, sys
os.environ.pop("HOME", None)
def nobody(*_):
    raise KeyError("nobody")
pwd.getpwuid = nobody
from asddim_lib.cli import main
main()
"""


@pytest.mark.parametrize("home", [None, "/dev/null"])
def test_no_home_is_no_traceback(home, tmp_path):
    arguments = "calibrate p.json --quick --num-steps 4"
    command = ["-c", NO_HOME] if home is None else ["-m", "asddim_lib.cli"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG", "HOME", "COV"))}
    homes = {} if home is None else {"HOME": home}
    environment = {**kept, **homes, "PYTHONPATH": str(ROOT)}
    how = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, *command, *arguments.split()], **how)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_no_chapter_calls_a_command_as_a_function():
    """An option that is not given is Typer's object there, and counts as true."""
    for file in (Path(__file__).parents[1] / "book" / "chapters").glob("*.md"):
        for names in re.findall(r"from asddim_lib\.cli\.\w+ import (.*)", file.read_text()):
            assert not {*names.split(", ")} & {*COMMANDS}, file.name
