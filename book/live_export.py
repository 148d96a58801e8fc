"""The bundled model as ONNX files for browsers.

Four files: the UNet for the two rows of one guided evaluation, the VAE's decoder for one picture,
the text encoder for an empty prompt and a prompt, and the bundled judge for one picture. The
weights lie there as float16, as which they were saved, so that no digit is lost; the first nodes of
each file make float32 of them.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

#: Fewer numbers than this are not worth a node of their own.
SMALLEST = 64


def export_model(folder: Path) -> None:
    """Writes unet.onnx, decoder.onnx, text.onnx and judge.onnx into `folder`.

    Needs the packages onnx and onnxscript.
    """
    import torch

    from asddim_lib import load_pipeline
    from asddim_lib.metrics.attributes import load_judge

    pipe = load_pipeline("bundled")
    size = (
        pipe.unet.config.in_channels,
        pipe.unet.config.sample_size,
        pipe.unet.config.sample_size,
    )
    length = pipe.tokenizer.model_max_length
    context = torch.zeros(2, length, pipe.unet.config.cross_attention_dim)
    ids = torch.zeros(2, length, dtype=torch.int64)
    timestep = torch.tensor([999])
    parts = {
        "unet": (_predict, pipe.unet, (torch.zeros(2, *size), timestep, context)),
        "decoder": (_decode, pipe.vae, (torch.zeros(1, *size),)),
        "text": (_encode, pipe.text_encoder, (ids,)),
        "judge": (_judge, load_judge(), (torch.zeros(1, 3, *[pipe.vae.config.sample_size] * 2),)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (call, module, inputs) in parts.items():
        model = _exported(call, module, inputs)
        _halve(model.graph)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())


def _predict(unet: Any, sample: Any, timestep: Any, context: Any) -> Any:
    return unet(sample, timestep, context, return_dict=False)[0]


def _decode(vae: Any, latents: Any) -> Any:
    return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]


def _encode(text_encoder: Any, ids: Any) -> Any:
    return text_encoder(ids)[0]


def _judge(judge: Any, images: Any) -> Any:
    """The features, and after them the logits of each head."""
    import torch

    features = judge.features(images)
    return torch.cat([features, *judge.logits(features).values()], 1)


def _exported(call: Any, module: Any, inputs: tuple[Any, ...]) -> Any:
    """The ONNX model of one call of a module; its inputs are named after the call's arguments."""
    import torch

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module.eval()

        def forward(self, *values: Any) -> Any:
            return call(self.module, *values)

    code = call.__code__
    names = list(code.co_varnames[1 : code.co_argcount])
    # Without torchvision the exporter says on each call that torchvision's operators are skipped.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Called(), inputs, input_names=names, output_names=["out"], dynamo=True, verbose=False
        )
    model = program.model_proto
    # Where each node came from in Python: a tenth of the file, of use to no browser.
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
        del node.metadata_props[:]
    return model


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
