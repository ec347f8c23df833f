"""A window that several devices share comes out as on one."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from shares import on_every_rank
from tiny_wan import T2V, diffusers_model, our_model

from longreel.configs.attention import AttentionConfig
from longreel.kernels import attention, attention_triton
from longreel.kernels.attention import attend_reference
from longreel.kernels.blocks import Blocks, even_starts
from longreel.kernels.rope import rotate
from longreel.parallel import sequence
from longreel.parallel.cache import KeyValueCache
from longreel.parallel.heads import to_heads
from longreel.parallel.shards import cut_tokens, share_heads
from longreel.parallel.sparse import SparseAttention
from longreel.parallel.stage import Activation, Stage
from longreel.parallel.tasks import Entry, Part, Task

ARCH = replace(T2V, num_heads=5, head_dim=12)
MESHES = [(1, 2), (2, 1), (1, 3), (1, 4), (2, 2), (4, 1)]  # ring, ulysses


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return our_model(ARCH, diffusers_model(ARCH))


def window(model, batch=1, levels=1, causal=0, context=()):
    """Three latents of 3 x 5 tokens: rows that two and four ranks do not share evenly."""
    g = torch.Generator().manual_seed(3)
    latents = torch.randn(batch, 16, 3, 6, 10, generator=g)
    timesteps = torch.tensor([[700.0, 300.0, 500.0][:levels]]).expand(batch, -1)
    text = torch.randn(batch, 4, 24, generator=g)
    return model.embed(latents, timesteps, text, causal_latents=causal, context_positions=context)


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


class Everything:
    """A cache of one device: all tokens, all heads."""

    def __init__(self):
        self.kept = {}

    def write(self, layer, k_BLHD, v_BLHD):
        self.kept[layer] = k_BLHD, v_BLHD

    def read(self, layer):
        return None


def task(number, start, stores=(), reads=(), frees=()):
    part = Part(block=number, start=start, stop=start + 3, step=0, write=True)
    return Task(number=number, tick=number, parts=(part,), stores=stores, reads=reads, frees=frees)


@pytest.mark.parametrize("mesh", MESHES)
@torch.inference_mode()
def test_cached_keys_are_read_where_they_were_made(model, mesh):
    """A window leaves two of its latents, of which the next reads one and a list says what."""
    kept = Entry(block=0, step=0, start=1, stop=3)
    read = Entry(block=0, step=0, start=2, stop=3)
    first, second = task(0, 0, stores=(kept,)), task(1, 3, reads=(read,), frees=(kept.key,))
    layers, latent = range(ARCH.num_layers), 15
    before, state = window(model), window(model, context=(7,))
    lists = random_lists(3 * latent, 4 * latent, 5)
    table = model.rotary(state.window, torch.device("cpu"))

    everything = Everything()
    model.run_layers(before, layers, everything)

    def whole(blocks, layer, q, k, v):
        """The definition: own keys, then those of the one latent that is read."""
        old_k, old_v = (x[:, 2 * latent :] for x in everything.kept[layer])
        k, v = torch.cat([k, old_k], dim=1), torch.cat([v, old_v], dim=1)
        q, k = rotate(q, table.own_LC), rotate(k, table.all_LC)
        return attend_reference(q, k, v, blocks)[0]

    expected = [
        model.run_layers(state, layers, None, partial(whole, blocks)).tokens_BLD
        for blocks in (None, lists)
    ]

    @torch.inference_mode()
    def work(share):
        cache = KeyValueCache()

        def run(task, state, blocks=None):
            part = share.take(state)
            shards, mine = share.shards(state.window), share.ring.rank
            here = cache.window(task, 0, shards, mine)
            return share.run_layers(model, part, layers, here, lambda layer: blocks).tokens_BLD

        run(first, before)
        held = cache.num_bytes()
        results = [run(second, state), run(second, state, lists)]
        cache.free(second)
        assert cache.num_bytes() == 0
        return held, results

    held, results = zip(*on_every_rank(*mesh, work), strict=True)
    for expected_BLD, parts in zip(expected, zip(*results, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts, dim=1), expected_BLD, rtol=1e-5, atol=1e-5)
    # keys and values of two latents in three layers, each head and token of them once
    assert sum(held) == 2 * 2 * latent * ARCH.dim * 4 * len(layers)


@pytest.mark.parametrize("ulysses", [2, 3])
@pytest.mark.parametrize("builder", ["pooled", "spatiotemporal", "stale", "stale-published"])
@torch.inference_mode()
def test_builders_that_read_inputs_see_whole_windows_of_each_devices_heads(model, builder, ulysses):
    """Two steps of one block: the second uses what the first has kept, each of its own heads."""
    few = {"pooled": {"keep": 0.4}, "stale": {"radius": 0}, "stale-published": {"radius": 0}}
    config = AttentionConfig(builder=builder, tile=16, dense_steps=0.0, **few.get(builder, {}))

    def velocities(run_layers):
        sparse = SparseAttention(config, ARCH.num_layers, 5)
        for step in (1, 2):
            part = Part(block=0, start=0, stop=3, step=step, write=True)
            at = Task(number=step, tick=step, parts=(part,), positions=(0, 1, 2))
            g = torch.Generator().manual_seed(step)
            latents, text = torch.randn(1, 16, 3, 6, 10, generator=g), torch.zeros(1, 4, 24)
            state = model.embed(latents, torch.tensor([[500.0]]), text, order=sparse.order(at))
            yield run_layers(state, sparse.window(at, 0, state.window))
            kept = sparse.num_bytes()
            assert bool(kept) == builder.startswith("stale")

    layers = range(ARCH.num_layers)

    def whole(state, attention):
        return model.head(model.run_layers(state, layers, attend_tokens=attention))

    @torch.inference_mode()
    def work(share):
        def shared(state, attention):
            part = share.take(state)
            part = share.run_layers(model, part, layers, attend_heads=attention)
            return share.head(model, part)

        return list(velocities(shared))

    expected = list(velocities(whole))
    ours, *_ = on_every_rank(1, ulysses, work)
    for velocity, of_one in zip(ours, expected, strict=True):
        torch.testing.assert_close(velocity, of_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("builder", "mesh"),
    [
        ("dense", (1, 2)),
        ("dense", (2, 1)),
        ("local", (1, 2)),
        ("local", (2, 2)),
        ("pooled", (1, 2)),
    ],
)
@torch.inference_mode()
def test_what_is_asked_to_compute_attention_does(model, builder, mesh):
    lists = {} if builder == "dense" else {"tile": 16}
    config = AttentionConfig(builder=builder, backend="triton", **lists)
    part = Part(block=0, start=0, stop=3, step=0, write=True)
    at = Task(number=0, tick=0, parts=(part,), positions=(0, 1, 2))
    latents, text = torch.randn(1, 16, 3, 6, 10), torch.zeros(1, 4, 24)

    @torch.inference_mode()
    def work(share):
        sparse = SparseAttention(config, ARCH.num_layers, 5)
        stage = Stage(lambda expert: model, range(1), sparse)
        stage.join(share)
        state = model.embed(latents, torch.tensor([[500.0]]), text, order=sparse.order(at))
        x = Activation(state=share.take(state), passing=0, is_last=True, expert=0)
        stage.run(at, x)

    with (
        patch.object(attention, "choose_lists", side_effect=attention.choose_lists) as chosen,
        # the interpreter runs in one thread at a time
        patch.object(attention_triton, "attend_lists_triton", attend_reference),
    ):
        on_every_rank(*mesh, work)  # for this backend all keys are a list, too
    assert {asked for (_, asked), _ in chosen.call_args_list} == {"triton"}


@pytest.mark.parametrize("ulysses", [2, 4])
@torch.inference_mode()
def test_heads_whose_lists_differ_are_dealt_by_what_they_listed_last(ulysses):
    """Which changes no bit, as a render that goes on knows nothing of that."""
    arch, layers = replace(T2V, num_heads=8, head_dim=12), range(2)
    torch.manual_seed(0)
    model = our_model(arch, diffusers_model(arch))
    for layer in model.blocks.values():
        layer.attn1.norm_q.weight[:36] *= 30  # three heads look at few keys
    config = AttentionConfig(builder="pooled", tile=16, mass=0.5)
    part = Part(block=0, start=0, stop=3, step=1, write=True)
    at = Task(number=1, tick=1, parts=(part,), positions=(0, 1, 2))
    g = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 16, 3, 12, 10, generator=g), torch.tensor([[500.0]])
    order = SparseAttention(config, len(layers), 5).order(at)
    state = model.embed(*inputs, torch.zeros(1, 4, 24), order=order)

    def attention(sparse):
        return sparse.window(at, 0, state.window)

    alone = attention(SparseAttention(config, len(layers), 5))
    expected = model.head(model.run_layers(state, layers, attend_tokens=alone))
    listed = {(0, layer): counts.sum((0, 2)).tolist() for layer, counts in alone.listed.items()}

    of_rank = {}  # what an actor has for as long as a render runs

    @torch.inference_mode()
    def work(share):
        new = SparseAttention(config, len(layers), 5)
        sparse = of_rank.setdefault(share.ulysses.rank, new)

        def run():
            mine = share.take(state)
            mine = share.run_layers(model, mine, layers, attend_heads=attention(sparse))
            return share.head(model, mine)

        return run(), dict(share.costs), run(), dict(share.costs)

    with patch.object(sequence, "to_heads", side_effect=to_heads) as moved:
        results = on_every_rank(1, ulysses, work)
    dealt = [call.args[1] for call in moved.call_args_list]
    assert all(before == after == listed for _, before, _, after in results)
    first, _, again, _ = results[0]
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, first)
    even = [tuple(run) for run in cut_tokens(8, ulysses, 1)]
    for layer in layers:
        by_cost = share_heads(listed[0, layer], ulysses)
        assert by_cost != even
        assert dealt.count(by_cost) == ulysses
    assert dealt.count(even) == len(layers) * ulysses
    del of_rank[1]  # it is lost, and another comes, who knows nothing of all that
    assert torch.equal(on_every_rank(1, ulysses, work)[0][0], first)


@torch.inference_mode()
def test_what_is_sent_is_what_has_to_be(model):
    """Per layer: queries, keys, values and results of the others' heads; a ring's keys and values
    as often as there are others, and none where no tile is listed."""
    state, layers = window(model), range(2)
    token = ARCH.dim * 4
    near = Blocks.from_mask(torch.eye(9, dtype=torch.bool)[None, None], *[even_starts(45, 5)] * 2)

    def sent(ring, ulysses, blocks=None):
        @torch.inference_mode()
        def work(share):
            part = share.take(state)
            share.run_layers(model, part, layers, None, lambda layer: blocks)
            return sum(line.group.sent_bytes for line in (share.ring, share.ulysses) if line.group)

        return on_every_rank(ring, ulysses, work)

    # runs of 15 tokens; two ranks have 2 heads and one has 1
    heads, width = (1, 2, 2), ARCH.head_dim * 4
    away = [3 * 15 * (5 - mine) * width + 30 * mine * width for mine in heads]
    assert sent(1, 3) == [2 * bytes_ for bytes_ in away]
    assert sent(3, 1) == [2 * 2 * 2 * 15 * token] * 3
    assert sent(3, 1, near) == [0] * 3


@torch.inference_mode()
def test_a_window_makes_the_same_bits_again(model):
    state = window(model, batch=2, levels=3)
    lists = random_lists(45, 45, 5)

    @torch.inference_mode()
    def work(share):
        part = share.take(state)
        return [
            [share.run_layers(model, part, range(3), None, ways.get).tokens_BLD for _ in range(2)]
            for ways in ({}, dict.fromkeys(range(3), lists))
        ]

    for ways in on_every_rank(2, 2, work):
        for first, again in ways:
            assert torch.equal(first, again)


@torch.inference_mode()
def test_lists_that_take_turns_are_cut_once_and_few_are_kept(model):
    state = window(model)
    many = [random_lists(45, 45, 5, seed) for seed in range(12)]

    @torch.inference_mode()
    def work(share):
        part = share.take(state)
        for lists in (*many, *many[-2:], *many[-2:]):
            share.run_layers(model, part, range(2), None, lambda layer, lists=lists: lists)
        return [blocks for blocks, _, _ in share.dealt]

    with patch.object(Blocks, "cut", autospec=True, side_effect=Blocks.cut) as cut:
        assert on_every_rank(2, 1, work) == [many[-8:]] * 2
    # each rank cuts the lists of either shard's queries on either shard's keys
    assert cut.call_count == len(many) * 2 * 2 * 2
