"""FD-DINOv2: what its network sees, and its figures beside Inception's."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from asddim_lib.errors import WrongUse
from asddim_lib.metrics.encoders import embed
from experiments.cli import app
from experiments.dinov2 import load_dinov2
from tests.refusals import refuses
from tests.runs import COMMAND

pytestmark = pytest.mark.usefixtures("no_cache")
PICTURES = torch.randint(
    0, 256, (12, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A folder of a tiny DINOv2 with random weights, as the hub keeps it."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Dinov2Config(**shape, image_size=224, patch_size=56)
    Dinov2Model(config).save_pretrained(folder)
    return str(folder)


def resized(picture):
    """The picture in Pillow's bicubic size for the network, 224 × 224 × 3."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(image.resize((224, 224), Image.Resampling.BICUBIC)))


def test_dinov2_sees_what_pillow_would_show_it(dino):
    """Up to two levels of grey, by rounding."""
    pixels = load_dinov2(dino).prepare(PICTURES)
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.stack([resized(picture) for picture in PICTURES]) / 255 - mean) / spread
    assert (pixels - expected.permute(0, 3, 1, 2)).abs().max() < 2.01 / 255 / 0.224


@torch.no_grad()
def test_features_are_the_network_s_class_token(dino):
    from transformers import Dinov2Model

    encoder, model = load_dinov2(dino), Dinov2Model.from_pretrained(dino).eval()
    hidden = model.encoder(model.embeddings(encoder.prepare(PICTURES))).last_hidden_state
    token = model.layernorm(hidden)[:, 0]
    torch.testing.assert_close(embed(encoder, PICTURES), token)
    torch.testing.assert_close(embed(encoder, PICTURES / 255), token)


def test_the_experiment_adds_its_figures_beside_inception_s(
    preloaded, real_pictures, tmp_path, eight, dino
):
    places = ["--reference", str(real_pictures), "--out", str(tmp_path / "out"), "--dinov2", dino]
    done = CliRunner().invoke(app, [*COMMAND.split(), *places])
    assert done.exit_code == 0, done.exception
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert (summary[["inception_fid", "dinov2_fid"]] > 0).all(axis=None)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    dinov2, inception = provenance["dinov2"], provenance["inception"]
    assert dinov2["weights"] == dino
    assert dinov2["reference_sha256"] != inception["reference_sha256"]


def test_wrong_use_is_named(dino):
    with refuses("dinov2"):
        load_dinov2("nowhere")
    done = CliRunner().invoke(app, ["evaluate", "--dinov2", dino])
    assert isinstance(done.exception, WrongUse)
    assert str(done.exception).startswith("reference is ")
