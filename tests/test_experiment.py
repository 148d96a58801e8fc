"""The experiment on tiny and bundled pipelines: drawing, going on, distances and the summary."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load

from asddim_lib import ASDDIMScheduler, calibrate
from asddim_lib.cache import save_tensors
from asddim_lib.guidance.plan import PUBLISHED, GuidancePlan
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.models.prompts import load_prompts
from asddim_lib.pipeline.run import Run
from asddim_lib.schedulers.place import drawing
from experiments import store
from experiments.contest import paired
from experiments.cost import PictureCost, calibration, plan
from experiments.draw import generate
from experiments.evaluate import evaluate
from experiments.grids import find_grids, grid_for
from experiments.records import read_records
from experiments.score import score_pictures, summarize
from experiments.setting import SOLVERS, Cell, Setting, batches, cells, references
from tests.refusals import refuses
from tests.test_goals import encoders as encoders
from tests.zoo import ZOO

ROOT = Path(__file__).parents[1]
TABLE = load_prompts("bundled", 3)
PROMPTS = list(TABLE["prompt"])


def grids_of(scheduler, setting, profile=None):
    wanted = (*cells(setting), *references(setting, scheduler))
    return {cell: grid_for(scheduler, cell, setting, profile) for cell in wanted}


def contents(folder):
    files = sorted((folder / "images").glob("*.safetensors"))
    return {file: load(file.read_bytes())["images"] for file in files}


pytestmark = pytest.mark.xdist_group("experiment")  # one run is shared by its tests
SETTING = Setting(
    methods=("ddim", "combined"),
    steps=(3,),
    solvers=("ddim", "dpm++", "unipc"),
    reference_steps=6,
    batch_size=2,
)


@pytest.fixture(scope="module")
def run(shared_small, tmp_path_factory):
    """The folder and the grids of a run of two methods and three solvers."""
    folder = tmp_path_factory.mktemp("run")
    profile = calibrate(shared_small, PROMPTS[:2], num_steps=3)
    laid = grids_of(shared_small.scheduler, SETTING, profile)
    generate(shared_small, PROMPTS, SETTING, laid, folder)
    return folder, laid


def test_missing_and_damaged_files_are_drawn_again(small, run):
    folder, laid = run
    before = contents(folder)
    first, second, *rest = before
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    times = {file: file.stat().st_mtime_ns for file in rest}
    generate(small, PROMPTS, SETTING, laid, folder)
    after = contents(folder)
    assert list(after) == list(before)
    assert all(torch.equal(after[file], images) for file, images in before.items())
    assert {file: file.stat().st_mtime_ns for file in rest} == times


def test_every_picture_is_judged(small, run):
    folder, _ = run
    records, features = score_pictures(small, TABLE, SETTING, folder)
    assert len(contents(folder)) == 14  # two files for each of six cells, and for the reference
    assert len(records) == 18
    assert features[Cell("ddim", 3, 7.5)].shape == (3, 192)
    assert set(records["nfe"]) == {6}


def test_a_folder_of_other_pictures_is_refused(small, run):
    folder, laid = run
    other = Setting(methods=("ddim",), steps=(3,), batch_size=3)
    with refuses("out"):
        generate(small, PROMPTS, other, laid, folder)
    moved = {**laid, Cell("ddim", 3, 7.5): [900, 500, 100]}
    with refuses("out"):
        generate(small, PROMPTS, SETTING, moved, folder)


def test_paired_differences_are_those_of_the_same_picture():
    cell = {"guidance_scale": 3.0, "steps": 5, "solver": "ddim"}
    rows = [
        {**cell, "method": method, "index": i, "distance": i + shift}
        for method, shift in (("a", 0.0), ("b", 0.5))
        for i in range(40)
    ]
    table = paired(pd.DataFrame(rows), "a", "distance")
    assert table[["method", "difference", "half"]].to_numpy().tolist() == [["b", 0.5, 0.0]]
    assert table["p_value"][0] < 1e-6
    with refuses("baseline"):
        paired(pd.DataFrame(rows), "c", "distance")


def test_distance_is_that_of_the_latents_from_the_fine_solution(small, tmp_path):
    setting = Setting(methods=("ddim-trailing",), steps=(2, 8), reference_steps=16, batch_size=3)
    generate(small, PROMPTS, setting, grids_of(small.scheduler, setting), tmp_path)
    records, _ = score_pictures(small, TABLE, setting, tmp_path)
    small.scheduler = ASDDIMScheduler.from_config(small.scheduler.config, allocation="trailing")

    def ends(steps):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        how = {"num_inference_steps": steps, "generator": generators, "output_type": "latent"}
        return small(PROMPTS, **how).images.flatten(1)

    goal = ends(16)
    spread = (goal - goal.mean(0)).norm(dim=1).square().mean().sqrt()
    for steps in (2, 8):
        expected = ((ends(steps) - goal).norm(dim=1) / spread).tolist()
        distances = list(records[records["steps"] == steps]["distance"])
        assert distances == pytest.approx(expected, rel=1e-3)


def test_few_pictures_get_every_figure_but_a_fid(pipe, tmp_path):
    """A measured grid's pictures have the same figures as an even grid's."""
    setting = Setting(
        methods=("trailing", "dual-weighted"),
        steps=(2,),
        guidance_scales=(1.0,),
        reference_steps=6,
        calibrate_on=1,
        calibrate_steps=3,
        adjoint_probes=1,
        try_on=2,
    )
    summary = evaluate(pipe, load_prompts("bundled", 4), setting, tmp_path)
    assert "fid" not in summary
    assert summary[["distance", "kid", "clip", "right"]].notna().all(axis=None)


def test_a_measured_cap_takes_kappa_from_tuning_prompts_at_each_scale(small, tmp_path):
    setting = replace(
        PLANNED,
        steps=(2, 4),
        solvers=("ddim",),
        guidance_scales=(3.0, 7.5),
        guidance_plans=("constant", "capped-measured", "capped-measured-1"),
        calibrate_on=2,
        calibrate_steps=3,
        tuning_seed=1000,
    )
    own, summary = small.scheduler, evaluate(small, OWN, setting, tmp_path)
    assert set(summary["guidance_plan"]) == set(setting.guidance_plans)
    tuning = [p for p in load_prompts("bundled-tune")["prompt"] if p not in set(PROMPTS)]
    known = json.loads((tmp_path / "provenance.json").read_text())["plans"]
    for scale in setting.guidance_scales:
        how = {"num_steps": 3, "estimator": "path", "kappa_probes": 6, "seed": 1000}
        profile = calibrate(small, tuning[:2], guidance_scale=scale, **how)
        plan = GuidancePlan.capped(1.0, profile=profile)
        for steps in setting.steps:
            cell = Cell("trailing", steps, scale, "ddim", "capped-measured-1")
            assert known[cell.name] == plan.to_dict()
            small.scheduler = drawing(SOLVERS["ddim"][0], own)
            run = Run(small, PROMPTS[:2], [0, 1], scale, guidance_plan=plan)
            drawn = run.pictures(grid_for(small.scheduler, cell, setting))
            kept = store.load(batches(cell, 3, setting)[0].file(tmp_path))
            assert torch.equal(kept["images"], drawn.images)
    images = [file.read_bytes() for file in contents(tmp_path)]
    small.scheduler = own
    evaluate(small, OWN, setting, tmp_path)  # it goes on with the same κ
    assert [file.read_bytes() for file in contents(tmp_path)] == images


def test_a_record_from_elsewhere_does_not_stop_a_new_run(small, tmp_path):
    record = ROOT / "results" / "guidance-7.5" / "steps-20"
    for file in record.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    setting = Setting(methods=("ddim",), steps=(1,), guidance_scales=(7.5,), calibrate_on=1)
    evaluate(small, load_prompts("bundled-tune", 4), setting, tmp_path)
    assert list(pd.read_csv(tmp_path / "summary.csv")["steps"]) == [1]


OWN = TABLE[["prompt"]]  # without the attributes that the judge looks for


PLANS = ("constant", "capped-1", "interval-sdxl", "linear", "gated")
PLANNED = Setting(
    methods=("trailing",),
    steps=(4,),
    guidance_scales=(1.0, 7.5),
    solvers=("ddim", "dpm++"),
    guidance_plans=PLANS,
    reference_steps=6,
    batch_size=2,
)


@pytest.fixture(scope="module")
def planned(shared_small, tmp_path_factory):
    """The folder of a run of five guidance plans, two scales and two solvers, and its summary."""
    folder = tmp_path_factory.mktemp("planned")
    return folder, evaluate(shared_small, TABLE, PLANNED, folder)


def test_a_guidance_plan_is_a_cell_where_there_is_guidance(planned):
    folder, summary = planned
    assert len(cells(PLANNED)) == 2 * (1 + len(PLANS)) == len(summary)
    guided = summary[summary["guidance_scale"] > 1].groupby("solver")["guidance_plan"]
    assert {tuple(plans) for _, plans in guided} == {PLANS}
    assert set(summary[summary["guidance_scale"] == 1]["guidance_plan"]) == {"constant"}
    names = {file.stem.rpartition("-")[0] for file in contents(folder)}
    assert {"trailing-ddim-g7.5-k4", "trailing-dpm++-g7.5-k4-capped-1"} <= names
    assert {name for name in names if "-k6" in name} == {
        "ddim-trailing-ddim-g1-k6",
        "ddim-trailing-ddim-g7.5-k6",
    }, "fine solutions are under constant guidance, once for each scale"
    assert len(read_records(folder)) == len(summary) * len(TABLE)


def test_constant_guidance_is_what_is_drawn_without_plans(small, planned, tmp_path):
    folder, _ = planned
    evaluate(small, TABLE, replace(PLANNED, guidance_plans=("constant",)), tmp_path)
    for file in contents(tmp_path):
        alone, beside = store.load(file), store.load(folder / "images" / file.name)
        assert set(alone) == set(beside)
        assert "rows" not in alone
        assert all(torch.equal(alone[key], beside[key]) for key in alone if key != "seconds")
    assert "guidance_plan" not in pd.read_parquet(tmp_path / "records.parquet")
    assert "guidance_plan" not in pd.read_csv(tmp_path / "summary.csv")
    records, others = read_records(tmp_path), read_records(folder)
    assert set(records["guidance_plan"]) == {"constant"}
    others = others[others["guidance_plan"] == "constant"].reset_index(drop=True)
    compared = [name for name in records if name != "seconds"]
    pd.testing.assert_frame_equal(records[compared], others[compared], check_dtype=False)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_s_pictures_and_rows_are_those_of_a_pipeline_under_it(small, planned, plan, solver):
    folder, summary = planned
    cell = Cell("trailing", 4, 7.5, solver, plan)
    small.scheduler = drawing(SOLVERS[solver][0], small.scheduler)
    run = Run(small, PROMPTS[:2], [0, 1], 7.5, guidance_plan=GuidancePlan.named(plan))
    grid = grid_for(small.scheduler, cell, PLANNED)
    drawn = run.pictures(grid)  # which learns how the pipeline guides
    learned = run.rows.count
    run.pictures(grid)
    spent = run.rows.count - learned
    kept = store.load(batches(cell, 3, PLANNED)[0].file(folder))
    assert torch.equal(kept["images"], drawn.images)
    records = read_records(folder)
    for name, value in (("solver", solver), ("guidance_plan", plan), ("guidance_scale", 7.5)):
        records = records[records[name] == value]
    if plan == "constant":
        assert set(records["nfe"]) == {8}
    assert records["nfe"].to_list()[:2] == [spent / 2] * 2
    here = summary[(summary["solver"] == solver) & (summary["guidance_plan"] == plan)]
    assert here[here["guidance_scale"] > 1]["nfe"].item() == pytest.approx(records["nfe"].mean())


def test_rows_do_not_depend_on_where_a_run_was_stopped(small, planned, tmp_path):
    folder, _ = planned
    shutil.copytree(folder, tmp_path / "again")
    files = sorted((tmp_path / "again" / "images").glob("*-interval-sdxl-000002.safetensors"))
    before = contents(tmp_path / "again")
    rows = read_records(folder)["nfe"]
    for file in files:
        file.unlink()
    evaluate(small, TABLE, PLANNED, tmp_path / "again")
    after = contents(tmp_path / "again")
    assert len(files) == 2
    assert all(torch.equal(after[file], images) for file, images in before.items())
    assert read_records(tmp_path / "again")["nfe"].equals(rows)


def test_pictures_of_a_plan_that_meant_something_else_are_refused(small, planned, monkeypatch):
    folder, _ = planned
    monkeypatch.setitem(PUBLISHED, "interval-sdxl", ((6.0, 1.0), (0.0, None)))
    with refuses("out"):
        evaluate(small, TABLE, PLANNED, folder)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("guidance_plan", {"guidance_plans": ("caped-1",)}),
        ("c", {"guidance_plans": ("capped-3",)}),
        ("guidance_plans", {"guidance_plans": ()}),
        ("guidance_plans", {"guidance_plans": ("linear", "linear")}),
        ("guidance_plans", {"guidance_plans": ("capped", "capped-2")}),
        ("guidance_scale", {"guidance_plans": ("linear",), "guidance_scales": (1.0,)}),
    ],
)
def test_a_wrong_plan_is_refused_by_the_setting(name, how):
    with refuses(name):
        Setting(**how)


def test_a_plan_that_a_model_has_no_use_for_is_refused_before_any_picture(small, tmp_path):
    with refuses("guidance_plan"):
        evaluate(small, TABLE, replace(PLANNED, guidance_plans=("zero-start",)), tmp_path / "unet")
    pipe, options = ZOO["flux-dev"]()
    setting = replace(PLANNED, solvers=("euler",), call=json.dumps(options))
    with refuses("guidance_plan"):
        evaluate(pipe, OWN, setting, tmp_path / "distilled")
    assert not list(tmp_path.iterdir())


def test_a_flow_model_is_drawn_under_each_plan(tmp_path):
    pipe, options = ZOO["sd3"]()
    setting = replace(
        PLANNED,
        solvers=("euler", "dpm++"),
        guidance_scales=(6.0,),
        guidance_plans=(*PLANS, "zero-start"),
        call=json.dumps(options),
    )
    summary = evaluate(pipe, OWN, setting, tmp_path).set_index(["solver", "guidance_plan"])
    assert len(summary) == 12
    assert (summary["nfe"][:, "constant"] == 8).all()
    assert (summary["nfe"][:, "linear"] < 8).all()


def test_a_grid_is_searched_once_for_all_plans(small, tmp_path):
    setting = replace(PLANNED, methods=("gits",), guidance_scales=(7.5,), solvers=("ddim",))
    grids, _ = find_grids(small, setting, tmp_path, PROMPTS[:2], teach_on=2)
    assert len([cell for cell in grids if cell.method == "gits"]) == len(PLANS)
    assert len({tuple(grids[cell]) for cell in grids if cell.method == "gits"}) == 1
    (file,) = (tmp_path / "images").glob("grid-*.json")
    assert file.name == "grid-gits-ddim-g7.5-k4.json"


def test_a_second_encoder_looks_at_prompts_that_the_judge_cannot_read(small, encoders, tmp_path):
    setting = Setting(methods=("ddim",), steps=(2,), reference_steps=4, batch_size=2)
    plain = evaluate(small, OWN, setting, tmp_path / "plain")
    assert "looks" not in plain
    first, second = (encoder.name for encoder in encoders)
    setting = replace(setting, encoder=first, check_encoder=second)
    evaluate(small, OWN, setting, tmp_path / "seen")
    records = read_records(tmp_path / "seen")
    drawn = []
    for steps in (2, 4):
        files = sorted((tmp_path / "seen" / "images").glob(f"*-k{steps}-*.safetensors"))
        drawn.append(torch.cat([load(file.read_bytes())["images"] for file in files]))
    for column, encoder in zip(("embedding", "looks"), encoders, strict=True):
        expected = relative_distance(*(encoder(images).double() for images in drawn))
        np.testing.assert_allclose(records[column], expected, rtol=1e-5)
    assert "own_kid_share" in records


def test_a_network_that_is_told_the_guidance_is_evaluated_once_a_step(tmp_path):
    pipe, options = ZOO["flux-dev"]()
    drawn, how = [], {"solvers": ("euler",), "guidance_scales": (3.5,)}
    setting = Setting(methods=("trailing",), steps=(3,), call=json.dumps(options), **how)
    pipe.transformer.register_forward_hook(lambda *_: drawn.append(1))
    summary = evaluate(pipe, OWN, setting, tmp_path)
    warm = 1  # the first call is not timed
    assert list(summary["nfe"]) == [len(drawn) - warm] == [3]
    assert list(plan(pipe, setting, 5, PictureCost(1.0, 0.0, 1.0, None))["evaluations"]) == [5 * 3]
    spent = calibrate(pipe, PROMPTS[:1], guidance_scale=3.5, num_steps=2, **options).evaluations
    setting = replace(setting, methods=("combined",), calibrate_on=1, calibrate_steps=2)
    assert calibration(pipe, setting) == spent


def test_second_order_solvers_of_a_flow_model_have_a_reference_that_it_can_draw(tmp_path):
    pipe, options = ZOO["flux-dev"]()
    setting = Setting(
        methods=("trailing",),
        solvers=("unipc", "dpm++"),
        steps=(2,),
        guidance_scales=(1.0,),
        reference_steps=4,
        call=json.dumps(options),
    )
    assert (evaluate(pipe, OWN, setting, tmp_path)["distance"] > 0).all()


def test_both_encoders_reach_the_search(small, encoders, tmp_path):
    """Which refuses one that would check itself, and one that cannot be loaded."""
    own = encoders[0].name
    setting = Setting(methods=("tuned",), steps=(2,), encoder=own, check_encoder=own)
    with refuses("check_encoder"):
        evaluate(small, OWN, setting, tmp_path)
    for name in ("encoder", "check_encoder"):
        setting = Setting(methods=("ddim",), steps=(2,), **{name: str(tmp_path / "none")})
        with refuses("encoder"):
            evaluate(small, OWN, setting, tmp_path / name)
        assert not (tmp_path / name).exists(), "nothing was drawn"


@pytest.mark.parametrize("cell", ["drawn", "reference"])
def test_a_cell_of_which_all_pictures_failed_is_judged_without_figures(small, tmp_path, cell):
    """Nothing looks at its pictures, so that nothing knows how many features they have."""
    setting = Setting(methods=("ddim", "trailing"), steps=(2,), reference_steps=4, batch_size=2)
    generate(small, PROMPTS, setting, grids_of(small.scheduler, setting), tmp_path)
    steps, name = (2, "ddim-ddim") if cell == "drawn" else (4, "ddim-trailing-ddim")
    for batch in sorted((tmp_path / "images").glob(f"{name}-*-k{steps}-*.safetensors")):
        kept = store.load(batch)
        kept["finite"][:] = False
        kept["latents"][:] = torch.nan
        meta = json.dumps(store.made_from(batch))
        save_tensors(batch, kept, meta)
    records, features = score_pictures(small, TABLE, setting, tmp_path)
    summary = summarize(records, features).set_index("method")
    assert len(records) == 2 * len(PROMPTS)
    assert summary.loc["trailing", ["clip", "right", "kid"]].notna().all()
    assert summary["n"].tolist() == ([0, 3] if cell == "drawn" else [3, 3])
    figures = ["clip", "right", "kid", "distance"] if cell == "drawn" else []
    assert summary.loc["ddim", figures].isna().all()
    if cell == "reference":
        assert "distance" not in summary or summary["distance"].isna().all()
