"""A guidance plan beside hooks, offloading, adapters, caches and compilers.

Whatever is put on first, and taken off first, the pictures and the rows are those of the plan.
"""

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading
from torch import nn

from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.guidance.rows import SEAM
from tests import tiny, zoo
from tests.guided import at_scale
from tests.refusals import refuses
from tests.zoo.entry import Entry

SCALES = [7.5, 1.0, 2.0, 1.0]
PLAN = GuidancePlan.steps(SCALES)
ROWS, SKIPPED = 2 * (2 + 1 + 2 + 1), 2 * 2
CPU = torch.device("cpu")


def drawn(pipe, scales=None):
    """The latents of two pictures, at the scales in turn without a plan; a 1 is a little more."""
    values = [max(scale, 1 + 1e-6) for scale in scales or SCALES[:1]]

    def change(pipe, step, timestep, given):
        pipe._guidance_scale = values[min(step + 1, len(values) - 1)]
        return given

    return pipe(
        ["a red boot", "a blue bag"],
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        num_inference_steps=len(SCALES),
        guidance_scale=values[0],
        output_type="latent",
        callback_on_step_end=change if scales else None,
    ).images


# What is put on a network; each returns what takes it off


def torch_hooks(unet):
    """They double what goes in, and halve what comes out."""
    before = unet.register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:]))
    after = unet.register_forward_hook(lambda _, args, output: (output[0] / 2, *output[1:]))
    return lambda: (before.remove(), after.remove())


def diffusers_hook(unet):
    class Doubled(ModelHook):
        def pre_forward(self, module, sample, *args, **kwargs):
            return (2 * sample, *args), kwargs

    registry = HookRegistry.check_if_exists_or_initialize(unet)
    registry.register_hook(Doubled(), "doubled")
    return lambda: registry.remove_hook("doubled")


def model_offload(unet):
    """What `enable_model_cpu_offload` puts on a network."""
    _, hook = accelerate.cpu_offload_with_hook(unet, CPU)
    return hook.remove


def sequential_offload(unet):
    """What `enable_sequential_cpu_offload` puts on it: its weights lie on "meta"."""
    accelerate.cpu_offload(unet, execution_device=CPU)
    return lambda: remove_hook_from_module(unet, recurse=True)


class Adapted(nn.Module):
    """A linear layer with a low-rank addition, as LoRA puts it in the layer's place."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        torch.manual_seed(3)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def adapters(unet):
    parents = [
        part for part in unet.modules() if isinstance(getattr(part, "to_q", None), nn.Linear)
    ]
    assert parents
    for part in parents:
        part.to_q = Adapted(part.to_q)

    def remove():
        for part in parents:
            part.to_q = part.to_q.layer

    return remove


BESIDE = (torch_hooks, diffusers_hook, model_offload, sequential_offload, adapters)
ORDERS = (
    "thing on, plan on, draw, plan off, draw, thing off",
    "thing on, plan on, draw, thing off, draw, plan off",
    "plan on, thing on, draw, thing off, draw, plan off",
    "plan on, thing on, draw, plan off, draw, thing off",
    "plan on, draw, thing on, draw, plan off, plan on, draw, plan off, thing off",
)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("put_on", BESIDE)
def test_in_any_order_the_pictures_and_the_rows_are_the_plan_s(put_on, order):
    pipe, _ = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    first, plain = drawn(pipe), {False: drawn(pipe, SCALES)}
    take_off = put_on(pipe.unet)
    plain[True] = drawn(pipe, SCALES)
    take_off()
    assert torch.equal(drawn(pipe), first)
    planned = thing = False
    for one in order.split(", "):
        if one == "draw":
            found = drawn(pipe, None if planned else SCALES)
            torch.testing.assert_close(found, plain[thing], rtol=1e-4, atol=1e-4)
        elif one.startswith("plan"):
            planned = one == "plan on"
            if planned:
                rows, begun = PLAN.apply(pipe), 0
            else:
                GuidancePlan.remove(pipe)
        else:
            thing = one == "thing on"
            if thing:
                take_off = put_on(pipe.unet)
            else:
                take_off()
        if one == "draw" and planned:
            begun += 1
            assert (rows.count, rows.skipped) == (begun * ROWS, begun * SKIPPED)
    assert torch.equal(drawn(pipe), first)
    assert SEAM not in vars(pipe.unet)
    with refuses("pipe"):
        GuidancePlan.remove(pipe)


def test_a_network_that_is_offloaded_in_groups_draws_with_a_plan():
    pipe, _ = tiny.sd()
    pipe.set_progress_bar_config(disable=True)
    wanted = drawn(pipe, SCALES)
    how = {"onload_device": CPU, "offload_device": CPU, "offload_type": "leaf_level"}
    apply_group_offloading(pipe.unet, **how)
    with PLAN.on(pipe) as rows:
        torch.testing.assert_close(drawn(pipe), wanted, rtol=1e-4, atol=1e-4)
    assert rows.count == ROWS


def transformer():
    """A pipeline whose network is compiled quickly."""
    pipe, _ = tiny.sd3()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compiled(pipe, whole):
    if whole:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    else:
        pipe.transformer.compile(backend="eager")


@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_network_draws_with_a_plan_and_stays_compiled(whole):
    pipe = transformer()
    wanted = drawn(pipe, SCALES)
    compiled(pipe, whole)
    network, before = pipe.transformer, vars(pipe.transformer).get(SEAM)
    for _ in range(2):
        with PLAN.on(pipe) as rows:
            torch.testing.assert_close(drawn(pipe), wanted, rtol=1e-4, atol=1e-4)
        assert (rows.count, rows.skipped) == (ROWS, SKIPPED)
        assert pipe.transformer is network
        assert vars(network).get(SEAM) is before
    assert (before is None) == whole


@pytest.mark.parametrize("whole", [False, True])
def test_a_network_that_is_compiled_under_a_plan_is_refused_and_stays_compiled(whole):
    pipe = transformer()
    own = pipe.transformer
    PLAN.apply(pipe)
    compiled(pipe, whole)
    network, before = pipe.transformer, vars(pipe.transformer).get(SEAM)
    with refuses("pipe"):
        drawn(pipe)
    GuidancePlan.remove(pipe)
    assert pipe.transformer is network
    assert vars(network).get(SEAM) is before
    assert (SEAM in vars(own)) != whole


def test_a_network_that_is_replaced_under_a_plan_is_refused():
    pipe, _ = tiny.sd()
    own = pipe.unet
    with PLAN.on(pipe):
        pipe.unet = tiny.unet()
        with refuses("pipe"):
            drawn(pipe)
    assert SEAM not in vars(own)
    assert SEAM not in vars(pipe.unet)


def broadcast(pipe):
    kinds = ("spatial_attention", "temporal_attention", "cross_attention")
    every = {f"{kind}_block_skip_range": 2 for kind in kinds}
    whole = {f"{kind}_timestep_skip_range": (-1, 1001) for kind in kinds}
    now = {"current_timestep_callback": lambda: pipe.current_timestep}
    return PyramidAttentionBroadcastConfig(**every, **whole, **now)


def faster(pipe):
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
        tensor_format="BFCHW",
    )


CACHES = {
    "pyramid": broadcast,
    "faster": faster,
    "first-block": lambda _: FirstBlockCacheConfig(threshold=0.5),
}


def with_two_blocks(name):
    one = Entry(*zoo.ZOO[name]())
    torch.manual_seed(4)
    kind, config = type(one.pipe.transformer), one.pipe.transformer.config
    one.pipe.transformer = kind.from_config(config, num_layers=2).eval()
    return one


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("cogvideox", "pyramid"),  # both branches in one call
        ("cogvideox", "faster"),
        ("cogvideox", "first-block"),
        ("wan-2.1", "pyramid"),  # a call for each
        ("wan-2.1", "first-block"),
    ],
)
def test_beside_a_cache_all_rows_are_made_and_the_scale_is_the_plan_s(name, cache, scale):
    """A cache keeps what blocks have made of each row, for the next step's same rows."""
    one, plan = with_two_blocks(name), GuidancePlan(bands=((0.0, scale),))
    network, how = one.pipe.transformer, {"num_inference_steps": 5}
    whole = at_scale(one, max(scale, 1 + 1e-6), **how)
    network.enable_cache(CACHES[cache](one.pipe))
    wanted = at_scale(one, max(scale, 1 + 1e-6), **how)
    if scale == 2:
        assert (wanted - whole).norm() > 1e-3 * whole.norm()  # the cache is at work
    for while_on in (False, True):
        if while_on:
            network.disable_cache()
        with plan.on(one.pipe) as rows:
            if while_on:
                network.enable_cache(CACHES[cache](one.pipe))
            for _ in range(2):  # the first learns how the pipeline guides
                found = zoo.draw(one.pipe, one.options, **how)
                assert (found - wanted).norm() <= 1e-4 * wanted.norm()
        assert (rows.count, rows.skipped) == (20, 0)
    network.disable_cache()
    with plan.on(one.pipe) as rows:
        for _ in range(2):
            found = zoo.draw(one.pipe, one.options, **how)
            assert (found - whole).norm() <= 1e-4 * whole.norm()
    assert (rows.skipped > 0) == (scale == 1)
