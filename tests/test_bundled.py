"""The bundled model, its judge and the experiment, as a user meets them."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load, load_file

from asddim_lib import ASDDIMScheduler, calibrate, load_pipeline, metrics
from asddim_lib.experiment import evaluate as experiment
from asddim_lib.experiment import grids as finder
from asddim_lib.experiment import score as scoring
from asddim_lib.experiment import setting as design
from asddim_lib.experiment import store as pictures
from asddim_lib.models.load import load_scheduler_config, quicken
from asddim_lib.models.prompts import check_prompts, load_prompts

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


def test_pins_agree():
    lock = {line for line in (ROOT / "requirements.lock").read_text().splitlines() if line}
    environment = {
        line.strip()[2:]
        for line in (ROOT / "environment.yml").read_text().splitlines()
        if line.startswith("    - ")
    }
    assert lock == environment
    assert all("==" in pin for pin in lock)
    names = {pin.split("==")[0].lower().replace("_", "-") for pin in lock}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    apart = extras.pop("inception")  # has an environment of its own, which the Makefile pins
    assert all(f" {d.split('>')[0]}==" in (ROOT / "Makefile").read_text() for d in apart)
    wanted = [*project["dependencies"], *(d for extra in extras.values() for d in extra)]
    assert {d.replace("<", ">").split(">")[0].lower() for d in wanted} <= names


def test_text_encoder_bears_stable_diffusions_names():  # else transformers 4 keeps random weights and only warns
    names = set(load_file(ROOT / "data" / "model" / "text_encoder" / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"text_model"}


def test_data_is_small():
    assert sum(f.stat().st_size for f in (ROOT / "data").rglob("*") if f.is_file()) < 60e6


def test_fid_equals_closed_form():  # Eq 14
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    b = 2 * a + 3
    mean, cov = (b.mean(0) - a.mean(0)).square().sum(), torch.cov(a.T)
    assert metrics.fid(b, a) == pytest.approx(
        float(mean + cov.trace()), rel=1e-6
    )  # commuting covariances: tr(C + 4C − 2·2C) = tr C


def test_kid_interval_covers():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    found = [
        metrics.kid(
            1.1 * torch.randn(100, 8, generator=generator, dtype=torch.float64) + 0.2, reference
        )
        for _ in range(60)
    ]
    values, halves = torch.tensor(found).T
    covered = ((values - values.mean()).abs() < halves).double().mean()
    assert (
        0.85 <= covered <= 1
    )  # 95 % is meant; of 60, fewer than 85 % would come by chance once in 500 times
    assert halves.mean() < 2.5 * values.std()


def test_kid_equals_its_definition():
    draw = np.random.default_rng(0)
    x, y = draw.normal(0.2, 1.1, (150, 8)), draw.normal(size=(150, 8))
    own, other, cross = ((a @ b.T / 8 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    apart = [(k.sum() - np.trace(k)) / (150 * 149) for k in (own, other)]
    assert metrics.kid(torch.from_numpy(x), torch.from_numpy(y))[0] == pytest.approx(
        sum(apart) - 2 * cross.mean(), rel=1e-6
    )


def test_clip_cosine_is_that_of_the_embeddings():  # Eq 15
    images = torch.randint(
        0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    prompts, (model, processor) = list(load_prompts("bundled", 5)["prompt"]), metrics.load_clip()
    with torch.no_grad():
        seen = (
            model.visual_projection(
                model.vision_model(
                    processor(images=list(images), return_tensors="pt")["pixel_values"]
                ).pooler_output
            )
            .double()
            .numpy()
        )
        words = processor.tokenizer(prompts, padding=True, return_tensors="pt")
        said = model.text_projection(model.text_model(**words).pooler_output).double().numpy()
    direct = (seen * said).sum(1) / np.sqrt((seen**2).sum(1) * (said**2).sum(1))
    assert metrics.clip_cosine(images, prompts).numpy() == pytest.approx(direct, rel=1e-6)


def test_clip_score_equals_mean_cosine():  # Eqs 15–16
    images = torch.randint(
        0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    prompts = list(load_prompts("bundled", 8)["prompt"])
    found = metrics.clip_cosine(images, prompts)
    assert metrics.clip_score(images, prompts) == pytest.approx(float(found.mean()), abs=1e-5)


def test_a_network_is_loaded_once_however_it_is_asked_for():
    assert (
        metrics.load_clip()
        is metrics.load_clip(None, "cpu")
        is metrics.load_clip("bundled", device="cpu")
    )
    assert metrics.load_judge() is metrics.load_judge("cpu") is metrics.load_judge(device="cpu")


def test_clip_sees_what_its_processor_makes():
    images = torch.randint(
        0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model, processor = metrics.load_clip()
    theirs = processor(images=list(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        metrics._pixels(processor.image_processor, model.config.vision_config.image_size, images),
        theirs,
        rtol=0,
        atol=1e-5,
    )


def test_fid_s_interval_is_that_of_torchmetrics_over_resamples():
    reference = torch.randn(300, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = (
        1.3 * torch.randn(80, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        + 0.2
    )
    draw = np.random.default_rng(3)
    values = [metrics.fid(features[draw.integers(0, 80, 80)], reference) for _ in range(5)]
    assert metrics.fid_interval(features, reference, 5, 3)[1] == pytest.approx(
        1.959964 * np.std(values, ddof=1), rel=1e-6
    )


def test_fid_of_endlessly_many_pictures_is_near_what_it_is_known_to_be():
    draw = torch.Generator().manual_seed(4)
    reference = torch.randn(50_000, 16, generator=draw, dtype=torch.float64)
    plain, endless = [], []
    for _ in range(20):
        features = 1.5 * torch.randn(200, 16, generator=draw, dtype=torch.float64) + 0.5
        plain.append(metrics.fid(features, reference))
        endless.append(metrics.fid_infinity(features, reference))
    known = 16 * (0.5**2 + (1.5 - 1) ** 2)  # of N(0.5, 1.5²) from N(0, 1), in closed form
    assert np.mean(plain) > 1.05 * known
    assert np.mean(endless) == pytest.approx(
        known, abs=3 * np.std(endless) / np.sqrt(20) + 0.02 * known
    )
    assert abs(np.mean(endless) - known) < abs(np.mean(plain) - known) / 3
    with pytest.raises(
        ValueError,
        match="features is 33 × 16; the extrapolation needs more than twice as many images as feature dimensions",
    ):
        metrics.fid_infinity(features[:33], reference)


def test_calibrated_methods_draw_and_resume(pipe, tmp_path):
    table = load_prompts("bundled", 6)
    setting = design.Setting(
        methods=("ddim", "combined"),
        steps=(3,),
        solvers=("ddim", "dpm++", "unipc"),
        reference_steps=12,
        batch_size=4,
    )
    profile = calibrate(pipe, list(table["prompt"])[:2], num_steps=3)
    grids = {
        cell: finder.grid_for(pipe.scheduler, cell, setting, profile)
        for cell in (*design.cells(setting), *design.references(setting))
    }
    experiment.generate(pipe, table, setting, grids, tmp_path)
    files = sorted((tmp_path / "images").glob("*.safetensors"))
    kept = {f.name: f.read_bytes() for f in files}
    files[0].write_bytes(files[0].read_bytes()[:100])  # a truncated batch is drawn again
    files[1].unlink()
    experiment.generate(pipe, table, setting, grids, tmp_path)
    for name, before in kept.items():
        one, other = load(before), load((tmp_path / "images" / name).read_bytes())
        assert torch.equal(one["images"], other["images"]), name
    records, features = scoring.judge(table, setting, tmp_path)
    assert len(records) == 36
    assert len(kept) == 14
    assert features[design.Cell("ddim", 3, 7.5)].shape == (6, 192)
    assert set(records["nfe"]) == {6}
    with pytest.raises(ValueError, match="another batch_size"):
        experiment.generate(
            pipe,
            table,
            design.Setting(methods=("ddim",), steps=(3,), batch_size=2),
            grids,
            tmp_path,
        )
    moved = {**grids, design.Cell("ddim", 3, 7.5): [900, 500, 100]}
    with pytest.raises(ValueError, match=r"another grid of ddim-ddim-g7\.5-k3"):
        experiment.generate(pipe, table, setting, moved, tmp_path)


def test_paired_differences_are_those_of_the_same_picture():
    rows = [
        {
            "guidance_scale": 3.0,
            "steps": 5,
            "solver": "ddim",
            "method": m,
            "index": i,
            "distance": i + d,
        }
        for m, d in (("a", 0.0), ("b", 0.5))
        for i in range(40)
    ]
    found = scoring.paired(pd.DataFrame(rows), "a", "distance")
    assert found[["method", "difference", "half"]].to_numpy().tolist() == [["b", 0.5, 0.0]]
    assert found["p_value"][0] < 1e-6
    with pytest.raises(ValueError, match="baseline is c"):
        scoring.paired(pd.DataFrame(rows), "c", "distance")


def test_distance_is_that_of_the_latents_from_the_fine_solution(pipe, tmp_path):
    table, setting = (
        load_prompts("bundled", 5),
        design.Setting(methods=("ddim-trailing",), steps=(4, 40), reference_steps=80, batch_size=5),
    )
    grids = {
        cell: finder.grid_for(pipe.scheduler, cell, setting)
        for cell in (*design.cells(setting), *design.references(setting))
    }
    experiment.generate(pipe, table, setting, grids, tmp_path)
    records, _ = scoring.judge(table, setting, tmp_path)
    ends = {}
    pipe.scheduler, original = (
        ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="trailing"),
        pipe.scheduler,
    )
    for steps in (4, 40, 80):
        starts = [torch.Generator().manual_seed(i) for i in range(5)]
        ends[steps] = pipe(
            list(table["prompt"]), num_inference_steps=steps, generator=starts, output_type="latent"
        ).images.flatten(1)
    pipe.scheduler = original
    spread = (ends[80] - ends[80].mean(0)).norm(dim=1).square().mean().sqrt()
    for steps in (4, 40):
        expected = ((ends[steps] - ends[80]).norm(dim=1) / spread).tolist()
        assert list(records[records["steps"] == steps]["distance"]) == pytest.approx(
            expected, rel=1e-3
        )


def test_estimators_agree_on_a_real_network(pipe):
    prompts, how = (
        ["a red boot on a white ground", "two blue bags on a tan ground"],
        {"num_steps": 3, "probes": 16},
    )
    found = [
        calibrate(pipe, prompts, estimator=estimator, **how).g
        for estimator in ("vjp", "jvp", "difference")
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=0.03)
    spectral = calibrate(pipe, prompts, norm="spectral", **how).g
    assert all(
        s < f for s, f in zip(spectral, found[0], strict=True)
    )  # the largest singular value against all of them together
    assert (
        len(calibrate(pipe, prompts, estimator="path", **how).timesteps) == 3
    )  # between three points and timestep 0 lie three differences


def test_calibration_in_parts_equals_calibration_at_once(pipe):
    prompts = [
        "a red boot on a white ground",
        "two blue bags on a tan ground",
        "a pink dress above a red bag on a navy ground",
    ]
    whole, parts = (
        calibrate(pipe, prompts, num_steps=3, estimator="path", batch_size=n).g for n in (3, 2)
    )
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_calibration_that_was_stopped_goes_on(pipe, tmp_path):
    prompts = [
        "a red boot on a white ground",
        "two blue bags on a tan ground",
        "a pink dress on a black ground",
    ]
    how = {"num_steps": 3, "batch_size": 1, "adjoint_probes": 2}
    calls, handle = [], pipe.unet.register_forward_hook(lambda *_: calls.append(1))

    def stops(starts):
        yield from starts[:2]
        raise KeyboardInterrupt

    try:
        whole = calibrate(pipe, prompts, **how)
        alone = len(calls)
        with pytest.raises(KeyboardInterrupt):
            calibrate(pipe, prompts, **how, cache=tmp_path, progress=stops)
        kept = sorted(tmp_path.iterdir())
        assert len(kept) == 2
        kept[0].write_bytes(kept[0].read_bytes()[:50])  # cut short: measured again
        calls.clear()
        assert calibrate(pipe, prompts, **how, cache=tmp_path) == whole
        assert len(calls) == 2 * alone // 3
        calls.clear()
        assert calibrate(pipe, prompts, **how, cache=tmp_path) == whole
        assert not calls
        for other in ({"guidance_scale": 3.0}, {"height": 32, "width": 32}, {"seed": 1}):
            assert calibrate(pipe, prompts[:1], **how, cache=tmp_path, **other).g != whole.g
        assert len(calls) == alone
    finally:
        handle.remove()


def test_a_profile_counts_its_evaluations(pipe):
    seen, handle = (
        [],
        pipe.unet.register_forward_hook(lambda network, args, result: seen.append(len(args[0]))),
    )
    try:
        made = calibrate(
            pipe,
            ["a red boot on a white ground", "two blue bags on a tan ground"],
            num_steps=4,
            probes=2,
            adjoint_probes=3,
        )
    finally:
        handle.remove()
    # 5 points on the path, 4 of them with 2 probes, and 3 sweeps over all: each probe a call with its derivative, which counts as two more
    assert made.evaluations == (5 + 4 * 2 * 3 + 5 * 3 * 3) * 2 * 2
    assert sum(seen) == (5 + 4 * 2 + 5 * 3) * 2 * 2


def test_a_record_from_elsewhere_does_not_stop_a_new_run(pipe, tmp_path):
    record = ROOT / "results" / "guidance-7.5" / "steps-20"
    for file in record.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    setting = design.Setting(methods=("ddim",), steps=(1,), guidance_scales=(7.5,), calibrate_on=1)
    experiment.evaluate(pipe, load_prompts("bundled-tune", 200), setting, tmp_path)
    assert list(pd.read_csv(tmp_path / "summary.csv")["steps"]) == [1]


def test_uniform_draws_what_the_pipeline_draws(pipe):
    original, how = (
        pipe.scheduler,
        {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"},
    )
    theirs = pipe(
        "a red boot on a white ground", generator=torch.Generator().manual_seed(1), **how
    ).images
    pipe.scheduler = ASDDIMScheduler.from_config(original.config, allocation="uniform")
    ours = pipe(
        "a red boot on a white ground", generator=torch.Generator().manual_seed(1), **how
    ).images
    pipe.scheduler = original
    assert torch.equal(theirs, ours)


def run(arguments, folder, before="", env=None):
    """The command line, in a process and a folder of its own."""
    code = before + "from asddim_lib.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        check=False,
    )


@pytest.mark.parametrize("prompt", ["", "  ", "a red boot " * 20])
def test_wrong_prompts_are_refused(pipe, prompt):
    with pytest.raises(ValueError, match="prompt is"):
        check_prompts(pipe, [prompt])


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", ""],
        ["generate", "a red boot", "--steps", "0"],
        ["evaluate", "--methods", "magic"],
        ["generate", "a boot", "--model", "/nowhere/at-all"],
        ["export", "--format", "word"],
        ["export", "--model", "/nowhere/at-all"],
    ],
)
def test_command_line_refuses_in_one_line(arguments, tmp_path):
    done = run(arguments, tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("asddim: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a red boot on a white ground", "x.png", "--steps", "2"],
        ["calibrate", "p.json", "--count", "1", "--num-steps", "100"],
        ["evaluate", "--out", "o", "--count", "200", "--steps", "1", "--methods", "ddim"],
    ],
)
def test_a_full_disk_ends_in_one_line_and_leaves_nothing_half_written(arguments, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
    untold = {
        key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")
    }  # its data would meet the limit too
    done = run(arguments, tmp_path, before=limit, env=untold)
    assert done.returncode == 2
    assert "could not be written" in done.stderr.strip().splitlines()[-1]
    left = {f.name for f in tmp_path.rglob("*") if f.is_file()}
    assert left <= {
        "profile-g7.5.json",
        "claim.json",
        "tuning.json",
        ".lock",
    }  # what was whole before the disk was full


def test_compare_sets_grids_beside_the_trailing_one(tmp_path):
    arguments = [
        "--out",
        "o",
        "--count",
        "193",
        "--grids",
        "noise",
        "--steps",
        "2",
        "--guidance-scale",
        "1",
        "--reference-steps",
        "6",
    ]
    arguments += ["--calibrate-on", "1", "--calibrate-steps", "6"]
    done = run(["compare", *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    against, summary = (
        pd.read_csv(tmp_path / "o" / f"{name}.csv").set_index("method")
        for name in ("paired", "summary")
    )
    assert list(against.index) == ["noise"]
    change = summary["distance"]["noise"] - summary["distance"]["trailing"]
    assert against["difference"]["noise"] == pytest.approx(change, abs=1e-9)
    assert "noise" in done.stdout


def test_export_prints_the_same_grid_for_each_program(tmp_path):
    found = {
        form: run(["export", "--steps", "7", "--format", form], tmp_path).stdout.strip()
        for form in ("diffusers", "comfyui", "a1111")
    }
    ours = json.loads(found["diffusers"])
    assert len(ours["timesteps"]) == 7
    assert (
        json.loads(found["a1111"])
        == ours["sigmas"]
        == [float(v) for v in found["comfyui"].split(", ")]
    )
    solver = EulerDiscreteScheduler.from_config(
        load_scheduler_config(), timestep_spacing="trailing", final_sigmas_type="zero"
    )
    solver.set_timesteps(timesteps=ours["timesteps"])
    assert solver.sigmas.tolist() == pytest.approx(ours["sigmas"], rel=1e-3)


@pytest.mark.parametrize(
    "hurt",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "tokenizer",
    ],
)
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_missing_or_truncated_weights_are_named(hurt, how, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ROOT / "data" / "model", model)
    for file in (model / hurt).iterdir() if (model / hurt).is_dir() else [model / hurt]:
        if how == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged") as caught:
        load_pipeline(model)
    assert "\n" not in str(caught.value)


def test_few_pictures_get_every_figure_but_a_fid(pipe, tmp_path):
    setting = design.Setting(
        methods=("trailing", "chosen"),
        steps=(2,),
        guidance_scales=(1.0,),
        reference_steps=6,
        calibrate_on=1,
        calibrate_steps=6,
        adjoint_probes=1,
        try_on=2,
    )
    found = experiment.evaluate(pipe, load_prompts("bundled", 4), setting, tmp_path)
    assert "fid" not in found
    assert found[["distance", "kid", "clip", "right"]].notna().all(axis=None)
    assert (
        found["distance"][1] <= found["distance"][0] * 1.5
    )  # chosen for other prompts, but by the same measure


def test_a_quick_pipeline_draws_and_measures_the_same():
    prompts, how = (
        ["a red boot on a white ground", "two blue bags on a tan ground"],
        {"num_inference_steps": 10, "guidance_scale": 7.5},
    )
    plain, quick = load_pipeline(), quicken(load_pipeline())
    drawn = [pictures.draw(pipe, prompts, [0, 1], **how) for pipe in (plain, quick)]
    assert drawn[1].latents.dtype == torch.float32
    assert not torch.equal(drawn[0].latents, drawn[1].latents)
    assert (drawn[0].images.double() - drawn[1].images.double()).div(
        255
    ).square().mean() < 1e-4  # 40 dB
    g = [calibrate(pipe, prompts, num_steps=4).g for pipe in (plain, quick)]
    assert g[1] == pytest.approx(g[0], rel=0.03)
    assert quick.unet.config["in_channels"] == 4
    assert not hasattr(quick.unet, "nothing")
