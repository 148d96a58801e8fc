"""Grids that moved to the experiments: what 0.2 saved still loads, and draws from a clone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from asddim_lib import ASDDIMScheduler, timesteps
from asddim_lib.grids.table import METHODS, MOVED, method_of

ROOT = Path(__file__).parents[1]
#: Every name of 0.2's table that a scheduler's config may have.
OLD = (
    *("uniform", "noise", "gradient", "combined", "fitted", "equidistributed", "dual-weighted"),
    *("feature-weighted", "leading", "trailing", "linspace", "quadratic", "beta", "dmn", "karras"),
    *("exponential", "logsnr", "beta-sigmas", "arctan", "ays-sd15", "ays-sdxl", "ays-deepfloyd"),
    *("ays-svd", "gits-sd15", "oss-flux", "oss-wan", "ltx2", "wan-lightning", "comfy-simple"),
    *("comfy-sgm-uniform", "comfy-ddim-uniform", "comfy-normal", "comfy-linear-quadratic"),
    *("comfy-kl-optimal", "comfy-beta57", "comfy-bong-tangent", "f-scheduler", "f-scheduler-xl"),
)


@pytest.mark.parametrize("name", OLD)
def test_a_saved_scheduler_still_loads(name, tmp_path):
    ASDDIMScheduler().save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "allocation": name}))
    loaded = ASDDIMScheduler.from_pretrained(tmp_path)
    assert loaded.config["allocation"] == name
    assert method_of(name).name == name
    if method_of(name).needs == "nothing" and method_of(name).kind != "flow":
        loaded.set_timesteps(4)
        assert loaded.timesteps.tolist() == timesteps(ASDDIMScheduler(), 4, allocation=name)


SCRIPT = """
import sys
from pathlib import Path
sys.path = [p for p in sys.path if p and not (Path(p) / "experiments").is_dir()]
sys.path.insert(0, {site!r})
from asddim_lib import ASDDIMScheduler
from asddim_lib.errors import WrongUse
from asddim_lib.grids.table import METHODS, MOVED
assert not set(MOVED) & set(METHODS)
for name in MOVED:
    try:
        ASDDIMScheduler(allocation=name)
    except WrongUse as error:
        assert str(error).startswith("allocation is " + name) and "import experiments" in str(error)
    else:
        raise AssertionError(name)
print("done")
"""


def test_without_the_experiments_one_line_says_what_to_import(tmp_path):
    (tmp_path / "asddim_lib").symlink_to(ROOT / "asddim_lib")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(site=str(tmp_path)))
    ran = subprocess.run(
        [sys.executable, "-P", str(script)],
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "done", ran.stderr[-2000:]


def test_every_moved_grid_is_in_the_table_of_the_experiments():
    assert set(MOVED) <= set(METHODS)
    assert all(method_of(name) is METHODS[name] for name in MOVED)


def test_in_a_clone_importing_the_experiments_is_enough(tmp_path):
    ASDDIMScheduler(allocation="comfy-simple").save_pretrained(tmp_path)
    script = f"""
import experiments.rivals
from asddim_lib import ASDDIMScheduler
scheduler = ASDDIMScheduler.from_pretrained({str(tmp_path)!r})
scheduler.set_timesteps(4)
print(scheduler.timesteps.tolist())
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout) == timesteps(ASDDIMScheduler(), 4, allocation="comfy-simple")
