"""Pipelines around a U-Net: Stable Diffusion 1.5, SDXL and what was built on them."""

import torch
from diffusers import (
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)

from tests import tiny

SIZE = {"height": 64, "width": 64}
BETAS = {name: tiny.SD[name] for name in ("beta_start", "beta_end", "beta_schedule")}


def pndm():
    """The scheduler of Stable Diffusion 1.5."""
    return PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)


def euler():
    """The scheduler of SDXL, of its refiner and of its inpainting model."""
    return EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)


def changed(unet, **changes):
    """A U-Net like another one but for some of its config."""
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(unet.config, **changes).eval()


def like_sdxl(kind, options, changes=None, **more):
    """A pipeline of another class with SDXL's parts, its U-Net changed."""
    made = {**tiny.sdxl()[0].components, "scheduler": euler(), **more}
    made["unet"] = changed(made["unet"], **(changes or {}))
    return kind(**made, add_watermarker=False), options


def sd15():
    pipe, options = tiny.sd()
    pipe.scheduler = pndm()
    return pipe, options


def sd15_pag():
    return StableDiffusionPAGPipeline(**tiny.parts(scheduler=pndm()), **tiny.PLAIN), {}


def instruct_pix2pix():
    """Its U-Net sees the picture beside the latents: 8 channels, and three rows under guidance."""
    made = tiny.parts(
        unet=tiny.unet(in_channels=8),
        scheduler=EulerAncestralDiscreteScheduler(**BETAS, steps_offset=1),
    )
    pipe = StableDiffusionInstructPix2PixPipeline(**made, **tiny.PLAIN)
    return pipe, {"image": tiny.PICTURE, "image_guidance_scale": 1.5}


def sdxl():
    pipe, options = tiny.sdxl()
    pipe.scheduler = euler()
    return pipe, options


def sdxl_refiner():
    """The second text encoder alone, and an aesthetic score where the base has a target size."""
    return like_sdxl(
        StableDiffusionXLImg2ImgPipeline,
        {"image": tiny.PICTURE, "strength": 0.7, "aesthetic_score": 6.0},
        {"cross_attention_dim": 16, "projection_class_embeddings_input_dim": 8 * 5 + 16},
        text_encoder=None,
        tokenizer=None,
        requires_aesthetics_score=True,
    )


def sdxl_img2img():
    options = {"image": tiny.PICTURE, "strength": 0.7}
    return like_sdxl(StableDiffusionXLImg2ImgPipeline, options)


def sdxl_inpaint():
    mask = (tiny.PICTURE[:, :1] > 0.5).float()
    options = {"image": tiny.PICTURE, "mask_image": mask, "strength": 0.99, **SIZE}
    return like_sdxl(StableDiffusionXLInpaintPipeline, options, {"in_channels": 9})


def sdxl_controlnet():
    torch.manual_seed(3)
    unet = tiny.sdxl()[0].unet
    guide = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16))
    last = [guide.controlnet_cond_embedding.conv_out, guide.controlnet_mid_block]
    for layer in (*last, *guide.controlnet_down_blocks):  # untrained, they add nothing
        torch.nn.init.normal_(layer.weight, std=0.1)
    options = {"image": tiny.PICTURE, **SIZE}
    return like_sdxl(StableDiffusionXLControlNetPipeline, options, controlnet=guide.eval())


UNETS = {
    "sd15": sd15,
    "sd15-pag": sd15_pag,
    "instruct-pix2pix": instruct_pix2pix,
    "sdxl": sdxl,
    "sdxl-refiner": sdxl_refiner,
    "sdxl-img2img": sdxl_img2img,
    "sdxl-inpaint": sdxl_inpaint,
    "sdxl-controlnet": sdxl_controlnet,
}
