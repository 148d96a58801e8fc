"""Modular pipelines: the parts of the others, in blocks. Guidance is a part of its own there."""

from diffusers import StableDiffusionXLAutoBlocks
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import FluxAutoBlocks

from tests.zoo import flow, unet

#: SDXL's guider has this scale, as its blocks ignore an argument `guidance_scale`.
GUIDANCE = 3.0


def modular(blocks, build, **more):
    """Blocks filled with a pipeline's components. What a call returns is asked for by its name."""
    pipe, options = build()
    filled = blocks().init_pipeline()
    own = {name: part for name, part in pipe.components.items() if part is not None}
    filled.update_components(**own, **more)
    return filled, {**options, "output": "images"}


def modular_sdxl():
    guider = ClassifierFreeGuidance(guidance_scale=GUIDANCE)
    return modular(StableDiffusionXLAutoBlocks, unet.sdxl, guider=guider)


def modular_flux():
    return modular(FluxAutoBlocks, flow.flux)


MODULAR = {"modular-sdxl": modular_sdxl, "modular-flux": modular_flux}
