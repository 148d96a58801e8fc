"""Training keeps nothing that a changed part would meet again."""

import numpy as np
import pytest
import torch

from training import compositions, unet, vae


@pytest.fixture
def photographs(monkeypatch):
    rng = np.random.default_rng(0)
    pictures = {
        garment: rng.integers(0, 256, (2, 2, 28, 28), dtype=np.uint8)
        for garment in compositions.GARMENTS
    }
    monkeypatch.setattr(unet, "load_photographs", lambda split: pictures)
    return pictures


def test_a_retrained_autoencoder_gets_latents_of_its_own(tmp_path, photographs):
    torch.manual_seed(0)
    model = vae.make_model().eval()
    first = unet.encode(tmp_path, model, 64, seed=1)
    assert torch.equal(unet.encode(tmp_path, model, 64, seed=1), first)
    assert len(list(tmp_path.iterdir())) == 1, "the second time they were read"
    with torch.no_grad():
        model.encoder.conv_in.weight.mul_(1.5)
    second = unet.encode(tmp_path, model, 64, seed=1)
    pixels = np.stack([compositions.sample(1, i, photographs)[1] for i in range(64)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean = model.encode(images).latent_dist.mean
    assert torch.equal(second, (mean * model.config.scaling_factor).half())
    assert not torch.equal(second, first)


def test_each_input_of_the_latents_changes_their_name(photographs):
    model = vae.make_model()
    keys = {
        unet.latents_key(model, photographs, 64, 1),
        unet.latents_key(model, photographs, 128, 1),
        unet.latents_key(model, photographs, 64, 2),
    }
    changed = {garment: pictures.copy() for garment, pictures in photographs.items()}
    changed["bag"][0, 0, 0, 0] ^= 1
    keys.add(unet.latents_key(model, changed, 64, 1))
    model.register_to_config(scaling_factor=0.5)
    keys.add(unet.latents_key(model, photographs, 64, 1))
    with torch.no_grad():
        next(iter(model.parameters())).flatten()[0].add_(1e-3)
    keys.add(unet.latents_key(model, photographs, 64, 1))
    assert len(keys) == 6
