"""FID by Inception's features.

A stand-in takes the network's place everywhere. The real network, with random weights, runs where
torchvision is installed.
"""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from PIL import Image
from typer.testing import CliRunner

from asddim_lib import metrics
from asddim_lib.errors import WrongUse
from asddim_lib.metrics import real
from asddim_lib.metrics.encoders import PREPARATIONS, embed, load_inception
from asddim_lib.metrics.kid import kid
from asddim_lib.metrics.real import real_features
from experiments.cli import app
from experiments.evaluate import commit
from tests.refusals import refuses
from tests.runs import COMMAND, flip

pytestmark = pytest.mark.usefixtures("no_cache")
LACKING = importlib.util.find_spec("torchvision") is None


def REAL(test):  # noqa: N802
    """Marks a test that needs torchvision, which `make inception` brings."""
    needs = pytest.mark.skipif(LACKING, reason="there is no torchvision; `make inception` has it")
    return pytest.mark.inception(needs(test))


PICTURES = torch.randint(
    0, 256, (12, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture
def folder(real_pictures):
    return str(real_pictures)


def test_the_paper_s_preparation_brings_the_shorter_side_to_256_and_cuts_the_middle():
    wide = torch.zeros(1, 3, 128, 512, dtype=torch.uint8)
    wide[..., 192:320] = 200
    cropped = PREPARATIONS["paper"]
    assert cropped(wide).shape == (1, 3, 256, 256)
    assert (cropped(wide)[..., 8:-8] == 200).all()
    square = PICTURES[:, :, :32, :32].repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(cropped(square), square)  # it has that size already


def test_the_same_real_pictures_pass_through_the_network_once(folder, eight):
    features, name = real_features(load_inception(), folder)
    assert features.shape == (12, 8)
    seen = sum(eight)
    again, same = real_features(load_inception(), folder)
    assert (sum(eight), same) == (seen, name)
    assert torch.equal(features, again)


@pytest.mark.parametrize(
    "damage", [lambda f: flip(f, -2), lambda f: f.write_bytes(f.read_bytes()[:99])]
)
def test_a_damaged_file_of_features_is_named_and_computed_again(
    folder, eight, tmp_path, damage, warnings_of_the_library
):
    features, name = real_features(load_inception(), folder)
    (file,) = (tmp_path / "cache").iterdir()
    damage(file)
    again, same = real_features(load_inception(), folder)
    assert torch.equal(features, again)
    assert same == name
    assert f"{file} is damaged" in warnings_of_the_library.text
    warnings_of_the_library.clear()
    seen = sum(eight)
    assert torch.equal(features, real_features(load_inception(), folder)[0])
    assert (sum(eight), warnings_of_the_library.text) == (seen, "")


def test_other_pictures_weights_or_preparation_have_another_name(
    real_pictures, folder, tmp_path, eight
):
    (tmp_path / "w.pth").write_bytes(b"w")
    weights = str(tmp_path / "w.pth")
    ways = [{}, {"prepare": "plain"}, {"weights": weights}]
    names = {real_features(load_inception(**how), folder)[1] for how in ways}
    Image.new("RGB", (9, 9)).save(real_pictures / "more" / "0.png")
    assert len(names | {real_features(load_inception(), folder)[1]}) == 4


def test_a_real_picture_passes_as_a_drawn_one(real_pictures, folder, eight):
    features, _ = real_features(load_inception(), folder)
    second = real._read(sorted(real_pictures.rglob("*.png"))[1])
    torch.testing.assert_close(features[1], embed(load_inception(), second)[0])
    numbers = embed(load_inception(), second / 255)
    torch.testing.assert_close(features[1], numbers[0])


def test_a_wrong_argument_is_named_before_any_picture_is_drawn(folder, tmp_path):
    with refuses("prepare"):
        load_inception(prepare="crop")
    wrong = {"prepare": ["--reference", folder, "--prepare", "crop"]}
    wrong |= {"reference": ["--reference", "nowhere"]}
    for name, options in wrong.items():
        done = CliRunner().invoke(app, ["evaluate", *options, "--out", str(tmp_path / "out")])
        assert isinstance(done.exception, WrongUse)
        assert str(done.exception).startswith(f"{name} is ")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pictures_and_a_file_that_is_none_are_named(
    real_pictures, folder, tmp_path, eight
):
    (real_pictures / "bad.png").write_text("no picture")
    with refuses("reference"):
        real_features(load_inception(), folder)
    (tmp_path / "empty").mkdir()
    with refuses("reference"):
        real_features(load_inception(), str(tmp_path / "empty"))


def test_a_checkpoint_without_real_pictures_is_refused():
    done = CliRunner().invoke(app, ["evaluate", "--inception", "w.pth"])
    assert "reference is ''; give a folder of real pictures, too" in str(done.exception)


def test_without_torch_fidelity_the_remedy_is_named(monkeypatch):
    load_inception.cache_clear()
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(WrongUse, match="torch-fidelity"):
        load_inception()


def command(folder, out, *more):
    places = ["--reference", folder, "--out", str(out)]
    return CliRunner().invoke(app, [*COMMAND.split(), *places, *more])


def test_the_experiment_adds_its_figures(preloaded, folder, tmp_path, eight):
    done = command(folder, tmp_path / "out")
    assert done.exit_code == 0, done.exception
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert (summary["inception_fid"] > 0).all()
    assert summary[["inception_fid_ci", "inception_kid", "inception_kid_ci"]].notna().all(axis=None)
    name = real_features(load_inception(), folder)[1]
    expected = {"reference": folder, "weights": "", "prepare": "paper"}
    expected |= {"reference_sha256": name, "reference_n": 12}
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["inception"] == expected
    text = CliRunner().invoke(app, ["report", str(tmp_path / "out")]).stdout
    model = f"model bundled, clip bundled, weights c3c9c36f409fdb59, commit {commit()}"
    columns = "steps | method | KID | FID, Inception | KID, Inception | CLIP | all right, %"
    assert f"{model}, judge against 10000 real pictures" in text
    assert f"inception against 12 real pictures ({name}, prepared as paper)" in text
    assert f"| {columns} |" in text


def frechet(features, reference):
    """FID again, by SciPy's matrix root in float64."""
    x, y = features.double().numpy(), reference.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(
        a + b - 2 * scipy.linalg.sqrtm(a @ b).real
    )


def test_a_fid_of_too_few_pictures_is_given_on_request():
    few = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    many = torch.randn(90, 8, generator=torch.Generator().manual_seed(2))
    with refuses("features"):
        metrics.fid(few, many)
    value = metrics.fid(few, many, rank_deficient=True)
    assert value == pytest.approx(frechet(few, many), rel=1e-6)


# the real network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of random weights, with the keys and shapes of the published one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = tmp_path_factory.mktemp("weights") / "random.pth"
    load = FeatureExtractorInceptionV3.load_state_dict
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:  # it is made with the weights that it was made with
        patch.setattr(
            FeatureExtractorInceptionV3,
            "load_state_dict",
            lambda self, state: load(self, self.state_dict()),
        )
        torch.save({}, file)
        state = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file)).state_dict()
    assert len(state) == 566
    assert state["fc.weight"].shape == (1008, 2048)
    torch.save(state, file)
    return str(file)


@REAL
def test_figures_are_torchmetrics_own(weights):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    encoder = load_inception(weights, "plain")
    features, others = embed(encoder, PICTURES), embed(encoder, 255 - PICTURES)
    assert features.shape == (12, 2048)
    assert features.std() > 0
    fid = FrechetInceptionDistance(2048, feature_extractor_weights_path=weights).set_dtype(
        torch.float64
    )
    fid.update(255 - PICTURES, real=True)
    fid.update(PICTURES, real=False)
    assert metrics.fid(features, others, rank_deficient=True) == pytest.approx(
        float(fid.compute()), rel=1e-3, abs=1e-6
    )  # its network is float64 then, ours float32
    theirs = KernelInceptionDistance(encoder.network, subset_size=12, subsets=2)
    theirs.update(255 - PICTURES, real=True)
    theirs.update(PICTURES, real=False)
    expected = float(theirs.compute()[0])
    assert kid(features, others)[0] == pytest.approx(expected, rel=1e-3, abs=1e-5)


@REAL
def test_the_whole_command_runs_on_it(preloaded, weights, folder, tmp_path):
    options = ["--inception", weights, "--steps", "1", "--methods", "ddim"]
    done = command(folder, tmp_path / "out", *options)
    assert done.exit_code == 0, done.exception
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary[["inception_fid", "inception_fid_ci", "inception_kid"]].notna().all(axis=None)
    assert "inception_fid_infinity" not in summary  # five pictures are too few


@REAL
def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"no")
    with pytest.raises(WrongUse, match=r"inception is .*bad\.pth"):
        load_inception(str(tmp_path / "bad.pth"))
