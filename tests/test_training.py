"""Training keeps nothing that a changed part would meet again."""

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from tests.refusals import refuses
from training import compositions, flow, latents, loop, vae


@pytest.fixture
def photographs(monkeypatch):
    rng = np.random.default_rng(0)
    pictures = {
        garment: rng.integers(0, 256, (2, 2, 28, 28), dtype=np.uint8)
        for garment in compositions.GARMENTS
    }
    monkeypatch.setattr(latents, "load_photographs", lambda split: pictures)
    return pictures


def test_a_retrained_autoencoder_gets_latents_of_its_own(tmp_path, photographs):
    torch.manual_seed(0)
    model = vae.make_model().eval()
    first = latents.encode(tmp_path, model, 64, seed=1)
    assert torch.equal(latents.encode(tmp_path, model, 64, seed=1), first)
    assert len(list(tmp_path.iterdir())) == 1, "the second time they were read"
    with torch.no_grad():
        model.encoder.conv_in.weight.mul_(1.5)
    second = latents.encode(tmp_path, model, 64, seed=1)
    pixels = np.stack([compositions.sample(1, i, photographs)[1] for i in range(64)])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean = model.encode(images).latent_dist.mean
    assert torch.equal(second, (mean * model.config.scaling_factor).half())
    assert not torch.equal(second, first)


def test_each_input_of_the_latents_changes_their_name(photographs):
    model = vae.make_model()
    keys = {
        latents.latents_key(model, photographs, 64, 1),
        latents.latents_key(model, photographs, 128, 1),
        latents.latents_key(model, photographs, 64, 2),
    }
    changed = {garment: pictures.copy() for garment, pictures in photographs.items()}
    changed["bag"][0, 0, 0, 0] ^= 1
    keys.add(latents.latents_key(model, changed, 64, 1))
    model.register_to_config(scaling_factor=0.5)
    keys.add(latents.latents_key(model, photographs, 64, 1))
    with torch.no_grad():
        next(iter(model.parameters())).flatten()[0].add_(1e-3)
    keys.add(latents.latents_key(model, photographs, 64, 1))
    assert len(keys) == 6


def text_tower():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    return CLIPTextModel(CLIPTextConfig(**sizes, num_attention_heads=1))


def train(folder, inputs, steps=6, save_every=2):
    """Trains a linear layer on noise that depends on the step alone."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)

    def loss(step):
        return {"loss": model(torch.randn(4, 3)).square().mean()}

    options = {"lr": 0.1, "seed": 1, "save_every": save_every, "inputs": inputs}
    return loop.fit("unet", model, loss, steps=steps, runs=folder, **options)


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", "a").state_dict()
    update = loop.Training.update

    def stop(self, *rest):
        if self.step == 5:  # one step after the checkpoint
            raise KeyboardInterrupt
        return update(self, *rest)

    monkeypatch.setattr(loop.Training, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", "a")
    monkeypatch.undo()
    resumed = train(tmp_path / "stopped", "a").state_dict()
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.parametrize("stamp", ["a", None], ids=["other", "none, as before the stamp"])
def test_a_checkpoint_of_other_inputs_is_refused_in_one_line(tmp_path, stamp):
    train(tmp_path, "a")
    file = tmp_path / "unet" / "checkpoint.pt"
    if stamp is None:
        state = torch.load(file, weights_only=True)
        del state["inputs"]
        torch.save(state, file)
    before = file.read_bytes()
    with refuses("checkpoint") as refusal:
        train(tmp_path, "b", steps=8)
    assert "\n" not in str(refusal.value)
    assert file.read_bytes() == before


def test_each_weight_of_the_autoencoder_and_the_text_tower_changes_the_stamp():
    autoencoder, text = vae.make_model(), text_tower()
    stamps = {latents.weights_hash(autoencoder, text)}
    for model in (autoencoder, text):
        for weight in model.parameters():
            with torch.no_grad():
                weight.flatten()[-1].add_(1e-3)
            stamps.add(latents.weights_hash(autoencoder, text))
    weights = sum(len(list(model.parameters())) for model in (autoencoder, text))
    assert len(stamps) == 1 + weights


def test_one_token_of_zeros_that_counts_many_times_is_many_tokens():
    torch.manual_seed(0)
    model = flow.make_model(16, 8).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    picture, words, pooled = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16), torch.randn(2, 8)

    def velocity(zeros):
        text = torch.cat([words, torch.zeros(2, zeros, 16)], 1)
        return model(picture, text, pooled, torch.tensor([500.0, 900.0])).sample

    with torch.no_grad():
        many, one = velocity(37), velocity(1)
        with flow.Zeros(37):
            counted = velocity(1)
    assert (counted - many).abs().max() < 1e-5 * many.abs().max()
    assert (one - many).abs().max() > 1e-2 * many.abs().max(), "their number counts"


def test_a_new_transformer_predicts_nothing():
    model = flow.make_model(16, 8)
    given = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 16), torch.randn(2, 8), torch.ones(2)
    assert not model(*given).sample.any()
