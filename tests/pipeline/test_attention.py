"""Whole renders with every way to choose who attends to whom."""

from functools import cache

import pytest
import torch
from tiny_blocks import ARCHS as TINY
from tiny_blocks import POLICIES
from tiny_wan import T2V, TEXT_DIM, diffusers_model, our_model, run

from longreel.configs.attention import AttentionConfig
from longreel.jobs.render import plan_render, render_latents
from longreel.models import arch as archs
from longreel.models.protocol import TokenOrder
from longreel.models.wan import WanDiT
from longreel.parallel.sparse import SparseAttention
from longreel.parallel.stage import Inputs, Stage
from longreel.parallel.tasks import Entry, Part, Task
from longreel.pipeline import backend as backends
from longreel.pipeline.plan import describe
from longreel.pipeline.plan_attention import make_sparse

BUILDERS = [
    "tile-window",
    "radial",
    "spatiotemporal",
    "pooled",
    "local",
    "stale",
    "stale-published",
]
FEW = {  # settings with which it leaves out much of a small window
    "tile-window": ["attention.window=[2,4,4]"],
    "pooled": ["attention.keep=0.3"],
    "local": ["attention.radius=1"],
}
EVERYTHING = {  # settings with which a builder leaves nothing out
    "tile-window": ["attention.window=[99,99,99]"],
    "spatiotemporal": ["attention.band=1.0"],
    "pooled": ["attention.keep=1.0"],
    "local": ["attention.radius=99"],
    "stale": ["attention.radius=99"],
}
CACHED = ["blocks.policy=dualparal-grouped", "blocks.size=2", "blocks.left=2", "blocks.right=1"]


@pytest.fixture(autouse=True)
def _archs(monkeypatch):
    for name, arch in TINY.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)


def _plan(*overrides, frames=9):
    return plan_render(
        "a red circle",
        frames=frames,
        overrides=[
            "model.arch=test-blocks",
            "model.checkpoint=random",
            "model.text_cache=",
            "video.height=128",  # 8 x 8 tokens a latent
            "video.width=128",
            "sampling.steps=3",
            *overrides,
        ],
    )


@cache
def _latents(*overrides, frames=9):
    return render_latents(_plan(*overrides, frames=frames))


def _sparse(builder, *more):
    return [f"attention.builder={builder}", "attention.tile=16", *more]


@pytest.mark.parametrize("by_latent", [False, True])
def test_another_order_of_tokens_changes_nothing_but_the_last_bits(by_latent):
    model = our_model(T2V, diffusers_model(T2V))
    latents, text = torch.randn(1, 16, 3, 14, 10), torch.randn(1, 7, TEXT_DIM)
    for timesteps in (torch.tensor([[417.0]]), torch.tensor([[0.0, 417.0, 988.0]])):
        expected = run(model, latents, timesteps, text)
        order = TokenOrder("tiles", by_latent, tile=16)
        ours = run(model, latents, timesteps, text, order=order)
        # the same sums in another order
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks", [[], CACHED], ids=["whole", "cached context"])
@pytest.mark.parametrize("builder", EVERYTHING)
def test_lists_of_everything_render_what_dense_attention_does(builder, blocks):
    dense = _latents(*blocks)
    shares = ["attention.dense_steps=0", "attention.dense_layers=0"]
    ours = _latents(*_sparse(builder, *EVERYTHING[builder], *shares), *blocks)
    # steps of guidance 4 multiply the last bits of sums in another order: seen 2e-5 after five
    torch.testing.assert_close(ours, dense, atol=2e-4, rtol=0.0)


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_sparse_render_differs_and_is_finite(builder):
    shares = ["attention.dense_steps=0", "attention.dense_layers=0"]
    ours = _latents(*_sparse(builder, *FEW.get(builder, []), *shares))
    assert ours.isfinite().all()
    assert not torch.allclose(ours, _latents(), atol=1e-3)


@pytest.mark.parametrize("builder", ["pooled", "stale"])
def test_stages_and_branches_change_no_bit(builder):
    overrides = _sparse(builder, "attention.dense_steps=0.3", *CACHED)
    whole = _latents(*overrides, frames=13)
    cut = _latents(*overrides, "parallel.num_stages=2", "parallel.backend=local", frames=13)
    assert torch.equal(cut, whole)


def test_a_disc_may_be_of_any_size():
    huge = _latents(*_sparse("local", f"attention.radius={10**15}"))
    assert torch.equal(huge, _latents(*_sparse("local", "attention.radius=99")))


@pytest.mark.parametrize("policy", ["whole", "causal"])
def test_a_share_of_one_leaves_everything_dense(policy):
    blocks = [f"blocks.policy={policy}", *POLICIES[policy]]
    dense = _latents(*blocks, frames=25)
    share = _sparse("radial", "attention.dense_steps=1.0")
    # radial's order is the raster: the same bits, also of passes for keys and values alone
    assert torch.equal(_latents(*blocks, *share, frames=25), dense)


def test_published_shares_count_first_steps_and_layers():
    plan = plan_render("a", preset="wan2.1-t2v-1.3b", overrides=["attention.builder=radial"])
    assert "radial; dense in 12 of 50 steps and 1 of 30 layers" in describe(plan)
    plan = plan_render("a", preset="wan2.1-t2v-1.3b", overrides=["attention.builder=stale"])
    assert "stale; dense in 15 of 50 steps and 0 of 30 layers" in describe(plan)


def test_what_is_kept_is_let_go_with_its_block():
    plan = _plan(*_sparse("stale", "attention.dense_steps=0", *CACHED), frames=33)
    sparse, most = make_sparse(plan), 0
    q, k = torch.randn(1, 64, 2, 16), torch.randn(1, 64, 2, 16)
    shape_of = archs.ARCHS["test-blocks"].dit.num_layers
    assert shape_of == 5
    for task in plan.schedule.tasks():
        window = _shape(task, sparse)
        own, keys = 64 * len(window.times), 64 * (len(window.times) + len(window.context_times))
        q, k = torch.randn(1, own, 2, 16), torch.randn(1, keys, 2, 16)
        sparse.window(task, 0, window)(0, q, k, k)
        sparse.free(task)
        most = max(most, len(sparse._kept))
    assert sparse.num_bytes() == 0
    assert 0 < most <= plan.schedule.max_inflight


@torch.inference_mode()
def test_what_another_expert_saw_or_tokens_in_another_order_is_not_merged():
    arch = TINY["test-blocks"].dit
    experts = [WanDiT(arch).eval() for _ in range(2)]
    config = AttentionConfig(builder="stale", tile=16, dense_steps=0.0)
    latents = torch.randn(1, 16, 3, 16, 16)

    def velocities(*steps):
        sparse = SparseAttention(config, arch.num_layers, 10)
        stage = Stage(experts.__getitem__, range(arch.num_layers), sparse)
        for step, expert, stores in steps:
            part = Part(block=0, start=0, stop=3, step=step, write=True)
            task = Task(number=step, tick=step, parts=(part,), positions=(0, 1, 2), stores=stores)
            inputs = Inputs(
                latents_BCTHW=latents + step,
                timesteps_BT=torch.tensor([[500.0]]),
                texts_BSD=(torch.zeros(1, 8, 16),),
                image_BND=None,
                expert=expert,
                causal_latents=0,
                fps=16,
            )
            yield stage.head(stage.run(task, stage.embed(task, inputs, 0)))[0]

    left = (Entry(block=0, step=1, start=0, stop=1),)  # keys: then each latent's tokens are apart
    (at_first,) = velocities((2, 1, ()))
    for before, merged in (((1, 1, ()), True), ((1, 0, ()), False), ((1, 1, left), False)):
        *_, ours = velocities(before, (2, 1, ()))
        assert torch.equal(ours, at_first) != merged


def _shape(task, sparse):
    from longreel.models.protocol import WindowShape

    return WindowShape(
        times=task.positions,
        context_times=task.context_positions,
        height=8,
        width=8,
        causal_latents=0,
        order=sparse.order(task),
    )


def test_dense_attention_needs_no_part_in_the_stages():
    assert make_sparse(_plan()) is None
    assert isinstance(make_sparse(_plan("attention.backend=sdpa")), SparseAttention)
    assert AttentionConfig().dense_shares == (0.0, 0.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attention.builder=radail"], r"did you mean radial"),
        (["attention.keep=1.5"], r"attention.keep=1.5 is no share"),
        (["attention.window=[3,3]"], r"attention.window=\[3,3\] is no box"),
        (["attention.radius=far"], r"attention.radius=far is not a whole number or null"),
        (
            ["attention.builder=tile-window", "video.width=112", "video.height=176"],
            r"there are none; use attention.builder=local",
        ),
        (["attention.backend=flash-attn"], r"attention.backend=flash-attn .*; .*set "),
        (
            ["attention.builder=stale", "blocks.policy=buffer"],
            r"no window stays the same",
        ),
        (
            ["attention.builder=stale", "sampling.steps=2"],
            r"of sampling.steps=2 the first 1 are dense .* set a larger sampling.steps",
        ),
        (
            ["attention.builder=stale", "attention.dense_steps=0", "attention.refresh=1"],
            r"one in attention.refresh=1 .* or attention.refresh, or attention.builder=dense",
        ),
        (
            ["attention.builder=stale", "attention.dense_layers=0.9"],
            r"attention.dense_layers=0.9 makes all 5 layers dense, .* set a smaller share",
        ),
        (["attention.keep=0.3"], r"keep=0.3 would be ignored, .*=dense .* that does: pooled"),
        (
            ["attention.builder=local", "attention.window=[2,2,2]"],
            r"attention.window=\[2,2,2\] would be ignored, .*=local .* that does: tile-window",
        ),
        (["attention.backend=flex"], r"attention.builder=dense has none, so it would be ignored"),
        (
            ["attention.builder=local", "attention.backend=flex", "attention.tile=24", *CACHED],
            r"attention.tile=24 makes others of a window of \d latents of 8 x 8 .*backend=auto",
        ),
        (
            [
                "attention.builder=local",
                "attention.backend=flex",
                "parallel.gpus_per_stage=2",
                "parallel.ring=2",
            ],
            r"parallel.ring=2 cuts a window's .* set parallel.ring=1",
        ),
        (
            ["attention.builder=pooled", "parallel.gpus_per_stage=2", "parallel.ring=2"],
            r"parallel.ring=2 no device has those of any head; set parallel.ring=1",
        ),
        (
            [
                "attention.builder=local",
                "blocks.policy=forcing",
                "blocks.causal=2",
                "blocks.size=2",
                "blocks.left=2",
            ],
            r"see no later ones, .* blocks.causal=2",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_loaded(overrides, message):
    with pytest.raises(ValueError, match=message):
        _plan(*overrides, frames=33)


def test_a_stage_elsewhere_says_what_its_machine_lacks_before_it_loads(monkeypatch):
    monkeypatch.setattr(backends, "Experts", None)
    plan = _plan("attention.backend=flash-attn", "parallel.gpus_per_stage=2")
    with pytest.raises(ValueError, match=r"attention.backend=flash-attn .*; .*set "):
        backends.make_stage(plan, range(1), "cpu")
