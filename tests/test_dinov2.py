"""FD-DINOv2: what its network sees, and its figures beside Inception's."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from asddim_lib import cli
from asddim_lib.cli.experiment import features
from asddim_lib.metrics.features import inception, reference
from asddim_lib.metrics.features.dinov2 import Dinov2

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


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A folder of a tiny DINOv2 with random weights, as the hub lays it."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("dino")
    Dinov2Model(
        Dinov2Config(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56
        )
    ).save_pretrained(place)
    return str(place)


def test_dinov2_sees_what_pillow_would_show_it(folder, dino):
    from transformers import Dinov2Model

    how = Dinov2(str(folder), dino)
    shown = torch.stack(
        [
            torch.from_numpy(
                np.array(
                    Image.fromarray(one.permute(1, 2, 0).numpy()).resize(
                        (224, 224), Image.Resampling.BICUBIC
                    )
                )
            )
            for one in PICTURES
        ]
    )
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = ((shown / 255 - mean) / spread).permute(0, 3, 1, 2)
    assert (how.prepared(PICTURES) - wanted).abs().max() < 2.01 / 255 / 0.224, (
        "two levels of grey, by rounding"
    )
    model = Dinov2Model.from_pretrained(dino).eval()
    with torch.no_grad():
        token = model.layernorm(
            model.encoder(model.embeddings(how.prepared(PICTURES))).last_hidden_state
        )[:, 0]
    torch.testing.assert_close(how.features(PICTURES), token.double())


def test_the_experiment_adds_dinov2_s_figures_beside_inception_s(folder, tmp_path, eight, dino):
    done = command(folder, tmp_path / "out", "--dinov2", dino)
    assert done.exit_code == 0, (done.output, done.exception)
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert (summary[["inception_fid", "dinov2_fid"]] > 0).all(axis=None)
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert said["dinov2"]["weights"] == dino
    assert said["dinov2"]["reference_sha256"] != said["inception"]["reference_sha256"]
    for how, message in (
        ("nowhere", "dinov2 is 'nowhere', which could not be loaded"),
        ("", "reference is ; give a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            Dinov2(str(folder), how).network() if how else features("", "", "paper", dino)
