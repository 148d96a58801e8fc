"""Anything that a picture or a profile depends on makes another fingerprint; a call makes none."""

import accelerate
import numpy as np
import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FirstBlockCacheConfig,
    LayerSkipConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.configuration_utils import FrozenDict
from diffusers.hooks import apply_first_block_cache, apply_group_offloading, apply_layer_skip
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from asddim_lib import ASDDIMScheduler, calibrate
from asddim_lib.digest import of_values
from asddim_lib.pipeline.manifest import manifest, of_pipeline
from asddim_lib.pipeline.run import Run
from experiments.stopping import stopped
from tests.refusals import refuses
from tests.tiny import sd
from tests.zoo import ZOO
from tests.zoo.entry import Entry

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


def entry(name):
    """A pipeline of the zoo that no other test has."""
    return Entry(*ZOO[name]())


class Switch:
    """What a fingerprint knows by its class alone."""


def skip(pipe):
    apply_layer_skip(pipe.transformer, LayerSkipConfig([0], fqn="transformer_blocks"))


def cache(**how):
    return lambda pipe: pipe.transformer.enable_cache(FirstBlockCacheConfig(**how))


BROADCAST = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
)
#: Each is another one beside a network's weights.
SWITCHES = {
    "cache": cache(threshold=10.0),
    "its threshold": cache(threshold=0.1),
    "another cache": lambda pipe: pipe.transformer.enable_cache(BROADCAST),
    "skipped layers": skip,
    "forward": lambda pipe: setattr(pipe.transformer, "forward", lambda *_: None),
    "another method": lambda pipe: setattr(pipe.transformer, "forward", skip),
    "of a processor": lambda pipe: setattr(
        pipe.transformer.transformer_blocks[0].attn.processor, "switch", Switch()
    ),
    "of a helper": lambda pipe: setattr(
        pipe, "image_processor", VaeImageProcessor(do_normalize=False)
    ),
    "shift": lambda pipe: pipe.scheduler.set_shift(2.5),
    "end": lambda pipe: setattr(pipe, "scheduler", stopped(pipe.scheduler, 0.1)),
    "another end": lambda pipe: setattr(pipe, "scheduler", stopped(pipe.scheduler, 0.2)),
}


def test_no_two_switches_beside_the_weights_are_the_same():
    found = {"none": of_pipeline(entry("flux-dev").pipe)}
    for name, change in SWITCHES.items():
        pipe = entry("flux-dev").pipe
        change(pipe)
        found[name] = of_pipeline(pipe)
        pipe = entry("flux-dev").pipe
        change(pipe)
        assert of_pipeline(pipe) == found[name], name  # no address of an object is in it
    assert len(set(found.values())) == len(SWITCHES) + 1


@pytest.mark.parametrize("change", [*map(SWITCHES.get, ("cache", "another cache")), lambda _: 0])
def test_a_cache_that_is_filled_says_nothing(change):
    one = entry("flux-dev")
    change(one.pipe)
    before = of_pipeline(one.pipe)
    one.run().ends([999, 700, 400])
    assert of_pipeline(one.pipe) == before


def test_a_cache_that_is_switched_off_again_says_nothing():
    pipe = entry("flux-dev").pipe
    before = of_pipeline(pipe)
    SWITCHES["cache"](pipe)
    pipe.transformer.disable_cache()
    assert of_pipeline(pipe) == before


def test_a_cache_is_the_same_by_its_method_and_by_its_hook():
    one, other = entry("flux-dev").pipe, entry("flux-dev").pipe
    SWITCHES["cache"](one)
    apply_first_block_cache(other.transformer, FirstBlockCacheConfig(threshold=10.0))
    assert of_pipeline(one) == of_pipeline(other)


def test_a_setting_that_a_later_version_adds_says_nothing():
    """A folder saved before has no value for it, and its class's default is what it always was."""
    one, other = sd()[0], sd()[0]
    one.scheduler.register_to_config(rescale_betas_zero_snr=False)
    config = {k: v for k, v in other.scheduler.config.items() if k != "rescale_betas_zero_snr"}
    other.scheduler._internal_dict = FrozenDict(config)
    assert manifest(one) == manifest(other)


def test_a_manifest_names_the_part_that_differs():
    one, other = sd()[0], sd()[0]
    weight(other)
    changed = {name for name, part in manifest(one).items() if manifest(other)[name] != part}
    assert changed == {"unet"}


def test_a_decoder_s_memory_of_frames_says_nothing():
    one = entry("wan-2.1")
    before = of_pipeline(one.pipe)
    one.run().pictures([999, 500])
    assert of_pipeline(one.pipe) == before


def test_where_a_module_lies_says_nothing():
    pipe, cpu = sd()[0], torch.device("cpu")
    before = of_pipeline(pipe)
    accelerate.cpu_offload(pipe.unet, execution_device=cpu)  # its weights lie on "meta"
    assert of_pipeline(pipe) == before
    accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
    assert of_pipeline(pipe) == before
    how = {"onload_device": cpu, "offload_device": cpu, "offload_type": "leaf_level"}
    apply_group_offloading(pipe.unet, **how)
    assert of_pipeline(pipe) == before


def test_a_cached_measurement_is_of_the_same_switches(tmp_path):
    one = entry("flux-dev")
    how = {"num_steps": 4, "estimator": "path", "cache": tmp_path, **one.options}
    calibrate(one.pipe, PROMPTS, guidance_scale=one.guidance, **how)
    files = len(list(tmp_path.iterdir()))
    SWITCHES["cache"](one.pipe)
    calibrate(one.pipe, PROMPTS, guidance_scale=one.guidance, **how)
    assert len(list(tmp_path.iterdir())) == 2 * files


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
    "tensor": {"options": {"latents": torch.zeros(2)}},
    "another tensor": {"options": {"latents": torch.tensor([0.0, 1e-7])}},
    "shape": {"options": {"latents": torch.zeros(1, 2)}},
    "dtype": {"options": {"latents": torch.zeros(2, dtype=torch.float64)}},
    "array": {"options": {"latents": np.zeros(2)}},
    "picture": {"options": {"latents": Image.new("RGB", (4, 4))}},
    "another picture": {"options": {"latents": Image.new("RGB", (4, 4), (0, 0, 1))}},
    "truncate": {"truncate": True},
    "end": {"end": "zero"},
    "scheduler": {"scheduler": ASDDIMScheduler()},
    "its settings": {"scheduler": ASDDIMScheduler(allocation="noise", p=0.7)},
    "its end": {"scheduler": stopped(ASDDIMScheduler(), 0.05)},
    "another end of it": {"scheduler": stopped(ASDDIMScheduler(), 1.0)},
}


def test_any_one_change_to_a_run_is_seen():
    pipe = sd()[0]
    plain = {"prompts": PROMPTS, "guidance_scale": 5.0}
    runs = [Run(pipe, **{**plain, **change}) for change in ({}, *RUNS.values())]
    assert len({of_values(run.inputs) for run in runs}) == len(RUNS) + 1
    run = Run(pipe, PROMPTS, options={"cross_attention_kwargs": {"scale": lambda: None}})
    with refuses("option"):
        of_values(run.inputs)


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
