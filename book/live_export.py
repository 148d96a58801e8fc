"""The bundled models as ONNX files for browsers.

Two files for each model: the network for one row, of which a guided step needs two, and the text
encoders for an empty prompt and a prompt. Both models' files take the same inputs. Two more are
shared: the VAE's decoder, which is the same in both models, and the bundled judge, each for one
picture. The weights lie there as float16, as which they were saved, so that no digit is lost; the
first nodes of each file make float32 of them.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from live_models import MODELS

#: Fewer numbers than this are not worth a node of their own.
SMALLEST = 64
#: Each model's own networks.
OWN = {name: (f"{name}.onnx", f"{name}-text.onnx") for name in MODELS}
NETWORKS = (*[file for own in OWN.values() for file in own], "decoder.onnx", "judge.onnx")


def export_models(folder: Path) -> None:
    """Writes `NETWORKS` into `folder`. Needs the package onnx."""
    import torch

    from asddim_lib import load_pipeline
    from experiments.attributes import load_judge

    folder.mkdir(parents=True, exist_ok=True)
    pipes = [load_pipeline(model.pipeline) for model in MODELS.values()]
    vae, judge = pipes[0].vae, load_judge()
    latents = torch.zeros(1, vae.config.latent_channels, 16, 16)
    images = torch.zeros(1, 3, 64, 64)
    calls = [call for pipe in pipes for call in model_calls(pipe)]
    calls += [(_decode, vae, (latents,)), (_judge, judge, (images,))]
    for file, call in zip(NETWORKS, calls, strict=True):
        model = _exported(*call)
        _halve(model.graph)
        (folder / file).write_bytes(model.SerializeToString())


def model_calls(pipe: Any) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """For each of a model's `OWN` files: a function, the module that it calls, and inputs."""
    import torch

    flow = hasattr(pipe, "transformer")
    network = pipe.transformer if flow else pipe.unet
    encoders = [pipe.text_encoder, pipe.text_encoder_2] if flow else [pipe.text_encoder]
    texts = torch.nn.ModuleList(encoders)
    told, predict = (_told_both, _predict_flow) if flow else (_told, _predict)
    ids = torch.zeros(2, pipe.tokenizer.model_max_length, dtype=torch.int64)
    latents = torch.zeros(1, network.config.in_channels, *[network.config.sample_size] * 2)
    with torch.no_grad():
        context = told(texts, ids)[:1]
    return [
        (predict, network, (latents, torch.tensor([999.0]), context)),
        (told, texts, (ids,)),
    ]


def _predict(unet: Any, sample: Any, timestep: Any, context: Any) -> Any:
    rows = context.unflatten(1, (-1, unet.config.cross_attention_dim))
    return unet(sample, timestep, rows, return_dict=False)[0]


def _predict_flow(transformer: Any, sample: Any, timestep: Any, context: Any) -> Any:
    """`context` is what `_told_both` makes."""
    size = transformer.config.pooled_projection_dim
    rows = context[:, :-size].unflatten(1, (-1, transformer.config.joint_attention_dim))
    times = timestep.expand(len(sample))
    return transformer(sample, rows, context[:, -size:], times, return_dict=False)[0]


def _decode(vae: Any, latents: Any) -> Any:
    return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]


def _told(texts: Any, ids: Any) -> Any:
    return texts[0](ids)[0].flatten(1)


def _told_both(texts: Any, ids: Any) -> Any:
    """What Stable Diffusion 3's pipeline tells its transformer, each prompt in one row.

    First both encoders' last layer but one, beside each other, and a row of zeros in T5's place.
    At the end both encoders' sums of the prompt.
    """
    import torch

    told = [encoder(ids, output_hidden_states=True) for encoder in texts]
    rows = torch.cat([one.hidden_states[-2] for one in told], -1)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, 1))
    return torch.cat([rows.flatten(1), *[one[0] for one in told]], 1)


def _judge(judge: Any, images: Any) -> Any:
    """The features, and after them the logits of each head."""
    import torch

    features = judge.features(images)
    return torch.cat([features, *judge.logits(features).values()], 1)


def _exported(call: Any, module: Any, inputs: tuple[Any, ...]) -> Any:
    """The ONNX model of one call of a module; its inputs are named after the call's arguments."""
    import onnx
    import torch

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module.eval()

        def forward(self, *values: Any) -> Any:
            return call(self.module, *values)

    code, file = call.__code__, io.BytesIO()
    names = list(code.co_varnames[1 : code.co_argcount])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Tracing takes 2 s for the UNet; torch.export, the default, takes 20 s.
        torch.onnx.export(
            Called(), inputs, file, input_names=names, output_names=["out"], dynamo=False
        )
    return onnx.load_from_string(file.getvalue())


def _halve(graph: Any) -> None:
    """Stores as float16 each weight of a graph that is float16 exactly, with a cast after it."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < SMALLEST:
            continue
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):  # the mask's lowest number: it stays as it is
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = f"{weight.name}.half"
        casts.append(helper.make_node("Cast", [name], [weight.name], to=TensorProto.FLOAT))
        weight.CopyFrom(numpy_helper.from_array(half, name))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
