"""Pipelines from folders and single files; every refusal in one line."""

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.loaders import FromSingleFileMixin
from safetensors.torch import save_file

from asddim_lib import ASDDIMScheduler, UniPCGridScheduler, load_pipeline
from asddim_lib.errors import WrongUse
from asddim_lib.models.load import data_folder, load_scheduler_config
from experiments.quick import quicken
from tests.refusals import refuses

HOW = {"num_inference_steps": 2, "output_type": "latent"}


def draw(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe("a red boot on a white ground", generator=generator, **HOW).images


class OneFile(StableDiffusionPipeline):
    """A real pipeline whose UNet comes from a single file; its other parts are the bundled ones.

    The conversion of diffusers needs a checkpoint of the published size.
    """

    @classmethod
    def from_single_file(cls, path, dtype=None, **options):
        from safetensors.torch import load_file

        pipe = cls.from_pretrained(data_folder() / "model", dtype=dtype, **options)
        pipe.unet.load_state_dict(load_file(path))
        return pipe


@pytest.fixture
def single(tmp_path):
    """The bundled UNet, doubled, in one file."""
    unet = load_pipeline().unet
    file = tmp_path / "model.safetensors"
    save_file({name: (2 * value).contiguous() for name, value in unet.state_dict().items()}, file)
    return file


def test_a_single_file_loads_as_its_class(single):
    pipe = load_pipeline(single, pipeline_class=OneFile, dtype=torch.float64)
    assert type(pipe) is OneFile
    assert pipe.unet.dtype == torch.float64
    assert pipe.config["_name_or_path"] == str(single)
    weight = next(iter(load_pipeline().unet.parameters()))
    assert torch.equal(next(iter(pipe.unet.parameters())), 2 * weight.double())


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_a_class_s_name_finds_diffusers_own_loader(single, monkeypatch, name):
    """Both classes get the method from one mixin, which is given the file and the dtype."""
    calls = []

    def loader(cls, path, **options):
        calls.append((cls.__name__, path, options))
        return StableDiffusionPipeline.from_pretrained(data_folder() / "model")

    monkeypatch.setattr(FromSingleFileMixin, "from_single_file", classmethod(loader))
    load_pipeline(str(single), pipeline_class=name, config="a/folder")
    options = {"dtype": torch.float32, "config": "a/folder"}
    assert calls == [(name, str(single), options)]


@pytest.mark.parametrize(
    ("ending", "options", "message"),
    [
        ("safetensors", {}, r"model is '.*', a single file; name its class, such as pipeline_cl"),
        ("ckpt", {}, r"a single file; name its class"),
        ("gone.safetensors", {"pipeline_class": "StableDiffusionPipeline"}, r"^model is '.*gone"),
        ("ckpt", {"pipeline_class": "NoPipeline"}, r"pipeline_class is NoPipeline; give the name"),
        ("ckpt", {"pipeline_class": "DiTPipeline"}, r"^model is .*; give the pipeline_class"),
        (
            "safetensors",
            {"pipeline_class": OneFile},
            r"could not be loaded \(.*\); give the pipeline_class it was saved from, or fetch .*",
        ),
    ],
)
def test_a_single_file_that_cannot_load_is_refused(tmp_path, ending, options, message):
    file = tmp_path / f"model.{ending}"
    if not ending.startswith("gone"):
        file.write_bytes(b"no weights")
    with pytest.raises(WrongUse, match=message) as caught:
        load_pipeline(file, **options)
    assert "damaged" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [ASDDIMScheduler, UniPCGridScheduler])
def test_a_pipeline_saved_with_our_scheduler_loads(tmp_path, kind):
    pipe = load_pipeline()
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path)
    assert type(again.scheduler) is kind
    assert torch.equal(draw(again), draw(pipe))
    assert type(DiffusionPipeline.from_pretrained(tmp_path).scheduler) is kind


#: A device that this machine has not, whatever it has.
LACKING = f"cuda:{torch.cuda.device_count()}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: load_pipeline(folder), "its files are damaged; fetch the folder again"),
        (lambda folder: load_scheduler_config(folder), "^model is .*scheduler"),
        (lambda folder: load_pipeline(save_memory=["disk"]), "save_memory is disk; use some of"),
        (lambda folder: load_pipeline(save_memory=["offload"]), "offload on a CPU; leave it out"),
        (lambda folder: load_pipeline(device="tpu-7"), "device is 'tpu-7', which cannot be used"),
        (lambda folder: load_pipeline(device=LACKING), f"device is '{LACKING}', which cannot be"),
        (lambda folder: quicken(object()), "pipe is object; give a pipeline with a UNet"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, call, message):
    with pytest.raises(WrongUse, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_missing_is_not_damage(tmp_path, monkeypatch):
    def missing(*args, **options):
        raise ImportError("no sentencepiece")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", missing)
    with refuses("model"):
        load_pipeline(tmp_path)


def test_a_full_memory_is_not_damage(tmp_path, monkeypatch):
    def full(*args, **options):
        raise MemoryError

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", full)
    with pytest.raises(MemoryError):
        load_pipeline(tmp_path)
