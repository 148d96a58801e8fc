"""Real pipelines of diffusers, tiny and with random weights, each with its checkpoint's scheduler.

A function of `ZOO` returns a pipeline and the options that a call needs beside prompt, generator,
num_inference_steps, guidance_scale and output_type. Prompts go in by name, as `FluxKontextPipeline`
takes a picture first; and in a list of their own, as `ZImagePipeline` writes into it.
"""

import torch

from tests.zoo.dit import DITS
from tests.zoo.flow import FLOWS
from tests.zoo.modular import GUIDANCE, MODULAR
from tests.zoo.unet import UNETS
from tests.zoo.video import VIDEOS

ZOO = {**UNETS, **DITS, **FLOWS, **VIDEOS, **MODULAR}


def draw(pipe, options, prompt="a red boot", seed=0, **how):
    """The latents of one picture, or of its frames, after 3 steps; `how` overrules any option."""
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed)]
    call = {"num_inference_steps": 3, "guidance_scale": GUIDANCE, "output_type": "latent"}
    result = pipe(prompt=[prompt], generator=generator, **{**call, **options, **how})
    return result if torch.is_tensor(result) else result[0]
