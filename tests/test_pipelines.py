"""Real pipeline classes run unchanged with the scheduler, and a profile is measured on them."""

import pytest
import torch

from asddim_lib import ASDDIMScheduler, calibrate
from tests.tiny import controlnet, img2img, inpaint, sd, sdxl, sdxl_base

ALLOCATIONS = ("uniform", "noise", "ays-sd15")


@pytest.mark.parametrize("build", [sd, sdxl, sdxl_base, img2img, inpaint, controlnet])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_pipelines_run_unchanged(build, dtype, guidance_scale):
    """Uniform draws what the pipeline's own DDIM draws; noise does not."""
    pipe, how = build()
    pipe.to(dtype=dtype).set_progress_bar_config(disable=True)
    how |= {"num_inference_steps": 4, "guidance_scale": guidance_scale, "output_type": "latent"}

    def draw(scheduler):
        pipe.scheduler = scheduler
        return pipe("a red boot", generator=torch.Generator().manual_seed(0), **how).images

    own = pipe.scheduler
    theirs = draw(own)
    uniform, noise, ays = (
        draw(ASDDIMScheduler.from_config(own.config, allocation=name)) for name in ALLOCATIONS
    )
    assert all(latents.isfinite().all() for latents in (theirs, uniform, noise, ays))
    assert torch.equal(theirs, uniform)
    assert not torch.equal(uniform, noise)


@pytest.mark.parametrize("build", [sd, sdxl])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_profile_is_measured_on_any_of_them(build, guidance_scale):
    pipe, how = build()
    pipe.set_progress_bar_config(disable=True)
    profile = calibrate(
        pipe,
        ["a red boot", "a blue bag"],
        guidance_scale=guidance_scale,
        num_steps=4,
        adjoint_probes=1,
    )
    for allocation in ("combined", "fitted", "equidistributed", "dual-weighted"):
        pipe.scheduler = ASDDIMScheduler.from_config(
            pipe.scheduler.config, allocation=allocation, profile=profile.to_dict()
        )
        options = {"guidance_scale": guidance_scale, "output_type": "latent", **how}
        pipe("a red boot", num_inference_steps=3, **options)
        assert pipe.scheduler.timesteps[0] == 999


def test_custom_timesteps_go_through_the_pipeline():
    pipe, how = sd()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = ASDDIMScheduler.from_config(pipe.scheduler.config, allocation="noise")
    grid = [999, 700, 300, 40]
    seen = []
    pipe.unet.register_forward_pre_hook(lambda network, args: seen.append(int(args[1])))
    pipe("a red boot", timesteps=grid, guidance_scale=1.0, output_type="latent", **how)
    assert seen == grid
