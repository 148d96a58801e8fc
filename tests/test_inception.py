"""FID by Inception's features.

Through a stand-in everywhere, and through the real network, with random weights, where torchvision
is. And by DINOv2's.
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

from asddim_lib import cli, metrics
from asddim_lib.experiment.evaluate import commit
from asddim_lib.metrics.features import inception, reference
from asddim_lib.metrics.features.inception import Inception, cropped

REAL = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="needs torchvision: make inception"
)
PICTURES = torch.randint(
    0, 256, (12, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture
def folder(tmp_path):
    """Real pictures of several shapes, one of them grey, and a file that is none."""
    place = tmp_path / "real" / "more"
    place.mkdir(parents=True)
    draw = np.random.default_rng(1)
    for k, shape in enumerate([(40, 40, 3), (50, 30, 3), (30, 60, 3), (40, 40)] * 3):
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{k}.png")
    (place / "labels.txt").write_text("no picture")
    return tmp_path / "real"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """No test finds what another kept."""
    monkeypatch.setattr(reference, "CACHE", tmp_path / "cache")


@pytest.fixture
def eight(monkeypatch):
    """In the network's place: eight numbers a picture. Counts what it is asked."""
    asked = []

    def network(images):
        asked.append(len(images))
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), (2, 4)).mean(1).flatten(1)

    monkeypatch.setattr(inception, "_network", lambda weights, device: network)
    return asked


def test_the_paper_s_preparation_brings_the_shorter_side_to_256_and_cuts_the_middle():
    wide = torch.zeros(1, 3, 128, 512, dtype=torch.uint8)
    wide[..., 192:320] = 200
    assert cropped(wide).shape == (1, 3, 256, 256)
    assert (cropped(wide)[..., 8:-8] == 200).all(), "the middle alone is left"
    square = PICTURES[:, :, :32, :32].repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(cropped(square), square), "what has the size stays as it is"


def test_real_pictures_are_looked_at_once_for_the_same_content(folder, tmp_path, eight):
    found, name = Inception(str(folder)).real()
    assert found.shape == (12, 8)
    looked = sum(eight)
    again, same = Inception(str(folder)).real()
    assert (sum(eight), same) == (looked, name)
    assert torch.equal(found, again)
    (tmp_path / "w.pth").write_bytes(b"w")
    others = [
        Inception(str(folder), prepare="plain"),
        Inception(str(folder), weights=str(tmp_path / "w.pth")),
    ]
    names = {name, *(other.real()[1] for other in others)}
    Image.new("RGB", (9, 9)).save(folder / "more" / "0.png")
    assert len(names | {Inception(str(folder)).real()[1]}) == 4
    torch.testing.assert_close(
        found[1],
        Inception(str(folder)).features(reference._read(sorted(folder.rglob("*.png"))[1]))[0],
    )


def test_what_is_wrong_is_named(folder, tmp_path, monkeypatch):
    for how, message in (
        ({"reference": "nowhere"}, "reference is nowhere"),
        ({"reference": str(folder), "prepare": "crop"}, "prepare is crop"),
    ):
        with pytest.raises(ValueError, match=message):
            Inception(**how)
    (folder / "bad.png").write_text("no picture")
    monkeypatch.setattr(inception, "_network", lambda weights, device: lambda images: images)
    with pytest.raises(ValueError, match=r"bad\.png, which is no picture"):
        Inception(str(folder)).real()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder needs pictures"):
        Inception(str(tmp_path / "empty")).real()
    done = CliRunner().invoke(cli.app, ["evaluate", "--inception", "w.pth"])
    assert "reference is ; give a folder of real pictures, too" in str(done.exception)


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is not None, reason="it is installed"
)
def test_without_torch_fidelity_the_remedy_is_named(folder):
    with pytest.raises(ValueError, match=r"pip install 'asddim-lib\[inception\]'"):
        Inception(str(folder)).network()


def command(folder, out, *more):
    return CliRunner().invoke(
        cli.app,
        [
            "evaluate",
            "--count",
            "5",
            "--steps",
            "1,2",
            "--methods",
            "ddim,noise",
            "--guidance-scale",
            "2",
            "--reference",
            str(folder),
            "--out",
            str(out),
            *more,
        ],
    )


def test_the_experiment_adds_its_figures(folder, tmp_path, eight, monkeypatch):
    done = command(folder, tmp_path / "out")
    assert done.exit_code == 0, (done.output, done.exception)
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert (summary["inception_fid"] > 0).all()
    assert summary[["inception_fid_ci", "inception_kid", "inception_kid_ci"]].notna().all(axis=None)
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())["inception"]
    name = Inception(str(folder)).real()[1]
    assert said == {
        "reference": str(folder),
        "weights": "",
        "prepare": "paper",
        "reference_sha256": name,
        "reference_n": 12,
    }
    shown = CliRunner().invoke(cli.app, ["report", str(tmp_path / "out")]).stdout
    assert (
        f"model bundled, clip bundled, weights c3c9c36f409fdb59, commit {commit()}, "
        "judge against 10000 real pictures" in shown
    )
    assert f"inception against 12 real pictures ({name}, prepared as paper)" in shown
    assert (
        "| steps | method | KID | FID, Inception | KID, Inception | CLIP | all right, % |" in shown
    )


def test_a_fid_of_too_few_pictures_is_given_to_who_asks():
    few, many = (
        torch.randn(5, 8, generator=torch.Generator().manual_seed(1)),
        torch.randn(90, 8, generator=torch.Generator().manual_seed(2)),
    )
    with pytest.raises(ValueError, match="more images than feature dimensions"):
        metrics.fid(few, many)
    assert metrics.fid(few, many, rank_deficient=True) == pytest.approx(
        frechet(few, many), rel=1e-6
    )


def frechet(features, reference):
    """FID again, by SciPy's matrix root in float64."""
    x, y = features.double().numpy(), reference.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(
        np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root
    )


# DINOv2


# the real network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of random weights, with the keys and shapes of the published one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file, load = (
        tmp_path_factory.mktemp("weights") / "random.pth",
        FeatureExtractorInceptionV3.load_state_dict,
    )
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
def test_figures_are_torchmetrics_own(weights, folder, tmp_path):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    how = Inception(str(folder), weights, "plain")
    features, others = how.features(PICTURES), how.features(255 - PICTURES)
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
    kid = KernelInceptionDistance(how.network(), subset_size=12, subsets=2)
    kid.update(255 - PICTURES, real=True)
    kid.update(PICTURES, real=False)
    assert metrics.kid(features, others)[0] == pytest.approx(
        float(kid.compute()[0]), rel=1e-3, abs=1e-5
    )


@REAL
def test_the_whole_command_runs_on_it(weights, folder, tmp_path, monkeypatch):
    done = command(
        folder, tmp_path / "out", "--inception", weights, "--steps", "1", "--methods", "ddim"
    )
    assert done.exit_code == 0, (done.output, done.exception)
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert summary[["inception_fid", "inception_fid_ci", "inception_kid"]].notna().all(axis=None)
    assert "inception_fid_infinity" not in summary, "five pictures tell nothing of infinity"


@REAL
def test_a_damaged_checkpoint_is_named(folder, tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"inception is '.*bad\.pth', which could not be loaded"):
        Inception(str(folder), str(tmp_path / "bad.pth")).network()
