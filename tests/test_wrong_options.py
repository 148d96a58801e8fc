"""Wrong input is refused in one line, before the network is asked anything, and named."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FirstBlockCacheConfig

from asddim_lib import calibrate
from asddim_lib.calibration import Measurement, record
from asddim_lib.digest import of_values
from asddim_lib.errors import WrongUse
from asddim_lib.models.calls import default_scale, parameters, per_prompt
from asddim_lib.pipeline.run import Run
from tests import tiny
from tests.refusals import refuses
from tests.zoo import ZOO
from tests.zoo.entry import Entry
from tests.zoo.first import counted

PROMPTS = ["a red boot", "a blue bag", "a pink shirt"]
SMALL = {"height": 32, "width": 32}


@functools.cache
def entry(name):
    return Entry(*ZOO[name]())


def measured(one, **how):
    return calibrate(one.pipe, PROMPTS[:1], num_steps=3, guidance_scale=one.guidance, **how)


def recorded(one, **how):
    return record(one.pipe, PROMPTS[:1], num_steps=3, guidance_scale=one.guidance, **how)


def run(one, **how):
    return Run(one.pipe, PROMPTS[:1], None, one.guidance, options=how).ends([900, 300])


@pytest.mark.parametrize("act", [measured, recorded, run])
@pytest.mark.parametrize(
    "name", ["sd15", "animatediff", "flux-dev", "modular-sdxl", "pixart-sigma"]
)
@pytest.mark.parametrize("typo", ["hieght", "adjoint_probe", "foo", "callback_on_step_end"])
def test_an_option_that_a_pipeline_does_not_know_is_refused(act, name, typo):
    """Also where its call swallows any name, as **kwargs."""
    one = entry(name)
    with counted(one.pipe) as rows, pytest.raises(WrongUse) as refused:
        act(one, **{**one.options, typo: 2})
    assert not rows
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{typo} is 2; ")
    meant = {"hieght": "height", "adjoint_probe": "adjoint_probes"}.get(typo, "")
    meant = "" if typo == "adjoint_probe" and act is run else meant
    assert not meant or f"did you mean {meant}? " in line


@pytest.mark.parametrize("name", ZOO)
def test_every_option_that_a_call_names_is_known(name):
    """None of the zoo's own options, and no argument that a signature states, is refused."""
    one = entry(name)
    assert set(one.options) - {"output"} <= set(parameters(one.pipe))
    one.run()


@pytest.mark.parametrize(
    "prompts",
    [pd.DataFrame({"prompt": PROMPTS}), {"prompt": "a", "seed": "b"}, 3, None, [3], [""], []],
)
def test_prompts_that_are_no_list_of_texts_are_refused(prompts):
    pipe = entry("sd15").pipe
    for act in (Run, calibrate, record):
        with pytest.raises(WrongUse, match=r"^prompts? is "):
            act(pipe, prompts)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, int])
def test_seeds_of_numpy_are_python_s(kind):
    plain = Run(entry("sd15").pipe, PROMPTS, [1, 2, 3], options=SMALL)
    made = Run(entry("sd15").pipe, PROMPTS, np.array([1, 2, 3], kind), options=SMALL)
    assert of_values(made.inputs) == of_values(plain.inputs)
    drawn, same = (run.pictures(num_inference_steps=2).images for run in (made, plain))
    assert torch.equal(drawn, same)
    profile = calibrate(
        entry("sd15").pipe, PROMPTS[:1], num_steps=2, estimator="path", seed=kind(7), **SMALL
    )
    assert json.loads(json.dumps(profile.to_dict()))["seed"] == 7


@pytest.mark.parametrize("seed", [0.5, "1", None, True, 2**64, float("nan")])
def test_what_is_no_seed_is_refused(seed):
    with refuses("seed"):
        Run(entry("sd15").pipe, PROMPTS[:1], [seed])


@pytest.mark.parametrize("steps", [0, 1, -3, 1001, 2.5, None, "4"])
@pytest.mark.parametrize("feature_probes", [0, 1])
def test_a_number_of_steps_that_no_path_has_is_refused(steps, feature_probes):
    one = entry("sd15")
    how = {"num_steps": steps, "estimator": "path"}
    with counted(one.pipe) as rows:
        with refuses("num_steps"):
            calibrate(one.pipe, PROMPTS, feature_probes=feature_probes, encoder=None, **how)
        with refuses("num_steps"):
            record(one.pipe, PROMPTS, num_steps=steps)
        with refuses("num_inference_steps"):
            one.run().pictures(num_inference_steps=0)
    assert not rows


def test_a_cache_that_cannot_be_written_is_named_before_the_measurement(tmp_path):
    (tmp_path / "file").touch()
    one = entry("sd15")
    with counted(one.pipe) as rows, refuses("cache"):
        measured(one, cache=tmp_path / "file")
    assert not rows


@pytest.mark.parametrize("name", ["pixart-sigma", "modular-sdxl", "sd15"])
def test_pictures_have_their_latents_without_a_callback(name):
    one = entry(name)
    drawn = one.run(prompts=2, batch_size=1, scheduler=one.watched([])).pictures([900, 300])
    ends = one.run(prompts=2, batch_size=1, scheduler=one.watched([])).ends([900, 300])
    assert torch.equal(drawn.latents.flatten(1), ends)
    assert drawn.finite.all()


# what is cut for each prompt


@pytest.mark.parametrize("name", ["skip_guidance_layers", "timesteps", "sigmas", "cross_attention"])
def test_what_is_as_long_as_the_prompts_by_chance_is_not_cut(name):
    pipe = entry("sd3").pipe
    assert not per_prompt(pipe, name, [7, 8, 9], 3)
    assert not per_prompt(pipe, name, torch.ones(3), 3)


@pytest.mark.parametrize(
    "name", ["negative_prompt", "prompt_2", "image", "latents", "prompt_embeds"]
)
def test_what_is_one_for_each_prompt_is_cut(name):
    pipe = entry("sd3").pipe
    assert per_prompt(pipe, name, ["a", "b", "c"], 3)
    assert per_prompt(pipe, name, torch.ones(3, 2), 3)
    assert not per_prompt(pipe, name, "abc", 3)
    assert not per_prompt(pipe, name, ["a", "b"], 3)


def test_layers_that_are_skipped_are_all_skipped_in_every_batch(monkeypatch):
    pipe = tiny.sd3()[0]
    pipe.set_progress_bar_config(disable=True)
    given, call = [], type(pipe).__call__

    @functools.wraps(call)
    def watched(self, *args, **how):
        given.append(how["skip_guidance_layers"])
        return call(self, *args, **{**how, "skip_guidance_layers": None})

    monkeypatch.setattr(type(pipe), "__call__", watched)
    options = {**SMALL, "skip_guidance_layers": [7, 8, 9]}
    Run(pipe, PROMPTS, None, 3.0, 2, options).ends([900, 300])
    Run(pipe, PROMPTS, None, 3.0, 2, options).part(slice(0, 1)).ends([900, 300])
    assert len(given) >= 3  # and the calls that ask for the steps
    assert all(one == [7, 8, 9] for one in given)


# the network outside its pipeline


@pytest.mark.parametrize("estimator", ["vjp", "jvp", "difference", "path"])
def test_a_cache_s_missing_context_is_said_before_the_work(estimator):
    one = Entry(*ZOO["flux-dev"]())
    one.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert len(measured(one, estimator="path", **one.options).g) == 3
    with counted(one.pipe) as rows:
        for how in ({"estimator": estimator}, {"adjoint_probes": 1, "estimator": "path"}):
            if how == {"estimator": "path"}:
                continue
            with refuses("estimator"):
                measured(one, **how, **one.options)
        with refuses("estimator"):
            recorded(one, adjoint_probes=1, **one.options)
    assert not rows
    one.pipe.transformer.disable_cache()
    assert len(measured(one, estimator=estimator, **one.options).g) == 3


def test_weights_in_float8_have_no_backward_pass():
    pipe = tiny.sd()[0]
    pipe.set_progress_bar_config(disable=True)
    kinds = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
    pipe.unet.enable_layerwise_casting(**kinds)
    how = {"num_steps": 3, **SMALL}
    found = [calibrate(pipe, PROMPTS[:1], estimator=e, **how).g for e in ("jvp", "difference")]
    np.testing.assert_allclose(*found, rtol=1e-2)
    with counted(pipe) as rows:
        for wrong in ({"estimator": "vjp"}, {"estimator": "path", "adjoint_probes": 1}):
            with refuses("estimator"):
                calibrate(pipe, PROMPTS[:1], **wrong, **how)
    assert not rows


@pytest.mark.parametrize("estimator", ["vjp", "jvp"])
def test_autocast_is_refused_where_a_derivative_is_taken(estimator):
    pipe, how = tiny.sd()[0], {"num_steps": 3, **SMALL}
    pipe.set_progress_bar_config(disable=True)
    with torch.autocast("cpu", torch.bfloat16):
        with refuses("estimator"):
            calibrate(pipe, PROMPTS[:1], estimator=estimator, **how)
        assert len(calibrate(pipe, PROMPTS[:1], estimator="path", **how).g) == 3


@pytest.mark.parametrize("name", ["flux-dev", "qwen-image"])
def test_prompts_are_encoded_once_for_each_batch_and_once_for_the_shift(name):
    one, texts = entry(name), []
    hook = one.pipe.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    how = {"guidance_scale": one.guidance, "num_steps": 3, "estimator": "path", **one.options}
    counts = []
    for size in (3, 1):
        calibrate(one.pipe, PROMPTS, batch_size=size, **how)
        counts.append(len(texts))
        texts.clear()
    hook.remove()
    each = counts[0] // 2  # one for the shift, one for a batch of all
    assert counts == [2 * each, 4 * each]


# one default scale, and one count


@pytest.mark.parametrize("name", ZOO)
def test_the_default_scale_is_what_a_call_without_one_uses(name):
    one = entry(name)
    options = {k: v for k, v in one.options.items() if k != "true_cfg_scale"}
    plain = Run(one.pipe, PROMPTS[:1], options=options, scheduler=one.watched([]))
    bare = Run(one.pipe, PROMPTS[:1], options=options, scheduler=one.watched([]))
    object.__setattr__(bare, "guidance_scale", None)
    assert torch.equal(plain.ends([900, 300]), bare.ends([900, 300]))
    assert plain.guidance_scale == default_scale(one.pipe)


def test_the_bundled_models_default_is_3(pipe):
    assert Run(pipe, PROMPTS[:1]).guidance_scale == 3.0
    assert calibrate(pipe, PROMPTS[:1], num_steps=2, estimator="path").guidance_scale == 3.0


@pytest.mark.parametrize("estimator", ["vjp", "path", "difference"])
@pytest.mark.parametrize(("adjoint", "feature"), [(0, 0), (1, 0), (0, 2), (2, 1)])
def test_what_a_plan_counts_is_what_a_measurement_counts(pipe, estimator, adjoint, feature):
    probes = {"adjoint_probes": adjoint, "feature_probes": feature}
    profile = calibrate(pipe, PROMPTS[:1], num_steps=2, estimator=estimator, **probes)
    assert profile.evaluations == 2 * Measurement(2, estimator=estimator, **probes).evaluations
