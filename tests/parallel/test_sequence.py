"""A window that several devices share comes out as on one."""

from dataclasses import replace

import pytest
import torch
from shares import on_every_rank
from tiny_wan import T2V, diffusers_model, our_model

from longreel.kernels.attention import attend_reference
from longreel.kernels.blocks import Blocks, even_starts
from longreel.kernels.rope import rotate

ARCH = replace(T2V, num_heads=5, head_dim=12)
MESHES = [(1, 2), (2, 1), (1, 3), (1, 4), (2, 2), (4, 1)]  # ring, ulysses


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return our_model(ARCH, diffusers_model(ARCH))


def window(model, batch=1, levels=1, causal=0):
    """Three latents of 3 x 5 tokens: rows that two and four ranks do not share evenly."""
    g = torch.Generator().manual_seed(3)
    latents = torch.randn(batch, 16, 3, 6, 10, generator=g)
    timesteps = torch.tensor([[700.0, 300.0, 500.0][:levels]]).expand(batch, -1)
    text = torch.randn(batch, 4, 24, generator=g)
    return model.embed(latents, timesteps, text, causal_latents=causal)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    "shape", [{}, {"batch": 2, "levels": 3}, {"causal": 1}, {"causal": 2, "levels": 3}]
)
@torch.inference_mode()
def test_tokens_and_heads_that_are_shared_give_the_velocity_of_one_device(model, mesh, shape):
    state = window(model, **shape)
    layers = range(ARCH.num_layers)
    expected = model.head(model.run_layers(state, layers))

    @torch.inference_mode()
    def work(share):
        return share.head(model, share.run_layers(model, share.take(state), layers))

    velocity, *others = on_every_rank(*mesh, work)
    assert others == [None] * len(others)
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)


def random_lists(num_tokens, num_keys, num_heads, seed=0):
    """Tiles that shards cut, heads of very unlike cost, and rows that see nothing."""
    g = torch.Generator().manual_seed(seed)
    q_starts, k_starts = even_starts(num_tokens, 7), even_starts(num_keys, 4)
    density = torch.linspace(0.05, 0.9, num_heads)[torch.randperm(num_heads, generator=g)]
    mask = torch.rand(1, num_heads, len(q_starts) - 1, len(k_starts) - 1, generator=g)
    mask = mask < density[None, :, None, None]
    mask[:, :, 2] = False
    mask[:, 1] = False
    return Blocks.from_mask(mask, q_starts, k_starts)


@pytest.mark.parametrize("mesh", MESHES)
@torch.inference_mode()
def test_listed_tiles_are_those_of_one_device(model, mesh):
    state = window(model)
    num = state.tokens_BLD.shape[1]
    per_layer = [random_lists(num, num, 5, seed) for seed in range(ARCH.num_layers)]
    table = model.rotary(state.window, torch.device("cpu")).own_LC

    def whole(layer, q, k, v):
        return attend_reference(rotate(q, table), rotate(k, table), v, per_layer[layer])[0]

    expected = model.run_layers(state, range(ARCH.num_layers), None, whole)

    @torch.inference_mode()
    def work(share):
        part = share.take(state)
        lists = per_layer.__getitem__
        return share.run_layers(model, part, range(ARCH.num_layers), None, lists).tokens_BLD

    tokens = torch.cat(on_every_rank(*mesh, work), dim=1)
    torch.testing.assert_close(tokens, expected.tokens_BLD, rtol=1e-5, atol=1e-5)
