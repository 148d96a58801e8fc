"""Anything that a picture or a profile depends on makes another fingerprint; a call makes none."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from asddim_lib import ASDDIMScheduler, calibrate
from asddim_lib.errors import WrongUse
from asddim_lib.measure.fingerprint import of_pipeline, of_values
from asddim_lib.measure.run import Run
from tests.tiny import sd

PROMPTS = ["a red boot", "a blue bag"]


def weight(pipe):
    with torch.no_grad():
        next(pipe.unet.parameters()).flatten()[0] += 1e-3


def bias(pipe):
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).flatten()[-1] += 1e-3


def decoder(pipe):
    with torch.no_grad():
        next(pipe.vae.decoder.parameters()).flatten()[0] += 1e-3


CHANGES = {
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
    "FreeU's own numbers": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4),
    "attention": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
    "slicing": lambda pipe: pipe.vae.enable_slicing(),
    "one weight of the network": weight,
    "one weight of the text encoder": bias,
    "one weight of the decoder": decoder,
    "dtype": lambda pipe: pipe.unet.to(torch.bfloat16),
    "prediction type": lambda pipe: pipe.scheduler.register_to_config(prediction_type="sample"),
    "scheduler class": lambda pipe: setattr(
        pipe, "scheduler", EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    ),
    "allocation": lambda pipe: setattr(
        pipe, "scheduler", ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="noise")
    ),
    "network's config": lambda pipe: pipe.unet.register_to_config(center_input_sample=True),
    "scaling of latents": lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5),
    "tokenizer": lambda pipe: pipe.tokenizer.add_tokens(["bootlike"]),
    "prompt length": lambda pipe: setattr(pipe.tokenizer, "model_max_length", 32),
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_one_change_to_a_pipeline_is_seen(name):
    pipe, same = sd()[0], sd()[0]
    assert of_pipeline(pipe) == of_pipeline(same)
    CHANGES[name](pipe)
    assert of_pipeline(pipe) != of_pipeline(same)


def test_no_two_changes_are_the_same():
    found = {}
    for name, change in CHANGES.items():
        pipe = sd()[0]
        change(pipe)
        found[name] = of_pipeline(pipe)
    assert len(set(found.values())) == len(CHANGES)


def test_a_call_a_measurement_and_a_hook_change_nothing():
    pipe = sd()[0]
    pipe.set_progress_bar_config(disable=True)
    before = of_pipeline(pipe)
    pipe("a red boot", num_inference_steps=2, guidance_scale=3.0, guidance_rescale=0.5)
    pipe.unet.register_forward_hook(lambda *_: None)
    calibrate(pipe, PROMPTS, num_steps=3, height=32, width=32)
    assert of_pipeline(pipe) == before


RUNS = {
    "prompt": {"prompts": ["a red boot", "a blue boot"]},
    "seed": {"seeds": [0, 2]},
    "guidance": {"guidance_scale": 3.0},
    "batch": {"batch_size": 1},
    "option": {"options": {"height": 32}},
    "tensor": {"options": {"image": torch.zeros(2)}},
    "another tensor": {"options": {"image": torch.tensor([0.0, 1e-7])}},
    "shape": {"options": {"image": torch.zeros(1, 2)}},
    "dtype": {"options": {"image": torch.zeros(2, dtype=torch.float64)}},
    "array": {"options": {"image": np.zeros(2)}},
    "picture": {"options": {"image": Image.new("RGB", (4, 4))}},
    "another picture": {"options": {"image": Image.new("RGB", (4, 4), (0, 0, 1))}},
    "truncate": {"truncate": True},
    "end": {"end": "zero"},
    "scheduler": {"scheduler": ASDDIMScheduler()},
    "its settings": {"scheduler": ASDDIMScheduler(look_ahead=0.2)},
}


def test_any_one_change_to_a_run_is_seen():
    pipe = sd()[0]
    plain = {"prompts": PROMPTS, "guidance_scale": 5.0}
    prints = [Run(pipe, **{**plain, **change}).fingerprint for change in ({}, *RUNS.values())]
    assert len(set(prints)) == len(RUNS) + 1
    with pytest.raises(WrongUse, match="option is a function, whose content cannot be compared"):
        _ = Run(pipe, PROMPTS, options={"callback": lambda: None}).fingerprint


@pytest.mark.parametrize("a", [1, 1.0, True, "1", [1], (1, 1), None, {"a": 1}])
@pytest.mark.parametrize("b", [2, 0.0, False, "", [2], (1,), "None", {"b": 1}])
def test_values_of_other_kinds_are_other_values(a, b):
    assert (of_values(a) == of_values(b)) == (type(a) is type(b) and a == b)


def test_a_changed_pipeline_is_measured_again(tmp_path):
    pipe = sd()[0]
    pipe.set_progress_bar_config(disable=True)
    how = {"num_steps": 3, "estimator": "path", "cache": tmp_path, "height": 32, "width": 32}
    first = calibrate(pipe, PROMPTS, **how)
    files = len(list(tmp_path.iterdir()))
    assert calibrate(pipe, PROMPTS, **how) == first
    assert len(list(tmp_path.iterdir())) == files
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    calibrate(pipe, PROMPTS, **how)
    assert len(list(tmp_path.iterdir())) == 2 * files


def test_one_flipped_bit_of_a_cached_part_is_found(tmp_path, caplog):
    pipe = sd()[0]
    pipe.set_progress_bar_config(disable=True)
    how = {"num_steps": 3, "estimator": "path", "cache": tmp_path, "height": 32, "width": 32}
    first = calibrate(pipe, PROMPTS, **how)
    file = next(tmp_path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert calibrate(pipe, PROMPTS, **how) == first
    assert f"{file.name} is damaged" in caplog.text


def test_a_set_has_no_order(monkeypatch):
    """Python orders a set of words otherwise in every process, and so do two processes of a run."""
    one, other = {0, 8}, {8, 0}
    assert one == other
    assert list(one) != list(other)
    names, pipe = [], sd()[0]
    for values in (one, other):
        monkeypatch.setattr(pipe.unet, "words", values, raising=False)
        names.append(of_pipeline(pipe))
    assert names[0] == names[1]
