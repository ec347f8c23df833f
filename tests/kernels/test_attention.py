"""Attention beside softmax written out in float64."""

import warnings

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from longreel.kernels import attention_cpu
from longreel.kernels.attention import (
    attend,
    attend_causal,
    attend_dense,
    attend_reference,
    empty_state,
    merge,
)
from longreel.kernels.blocks import Blocks, all_blocks, even_starts

# of values of size 1, over a few hundred terms: float32 keeps 24 bits, seen 5e-7
FP32 = {"atol": 2e-6, "rtol": 0.0}
SHAPES = [(7, 13), (1, 5), (64, 1), (33, 129)]  # queries, keys


def _inputs(queries, keys, dtype=torch.float32, *, heads=3, channels=20):
    return [
        torch.randn(2, tokens, heads, channels, dtype=dtype) for tokens in (queries, keys, keys)
    ]


def by_hand(q, k, v, visible=None):
    """Head by head, row by row of the batch, in float64; `visible` says which keys a query sees."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h].double() @ k[b, :, h].double().T / q.shape[-1] ** 0.5
            weights = torch.exp(scores - scores.amax(1, keepdim=True))
            if visible is not None:
                weights = weights * visible
            out[b, :, h] = weights @ v[b, :, h].double() / weights.sum(1, keepdim=True)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", [attend, attend_reference])
def test_it_is_softmax_attention_with_its_log_sum_exp(op, shape):
    q, k, v = _inputs(*shape)
    out, lse = op(q, k, v)
    torch.testing.assert_close(out.double(), by_hand(q, k, v), **FP32)
    scores = torch.einsum("blhd,bshd->bhls", q.double(), k.double()) / q.shape[-1] ** 0.5
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), **FP32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_lists_it_has_the_bits_of_torchs_own(dtype, shape):
    q, k, v = _inputs(*shape, dtype)
    theirs = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    assert torch.equal(attend(q, k, v)[0], theirs.transpose(1, 2))
    assert torch.equal(attend_dense(q, k, v), theirs.transpose(1, 2))


def _lists(num_queries, num_keys, share, *, batch=2, heads=3):
    """Random lists of ragged tiles, for each head its own; the first row of the first is empty."""
    q_starts, k_starts = even_starts(num_queries, 6), even_starts(num_keys, 5)
    mask = torch.rand(batch, heads, len(q_starts) - 1, len(k_starts) - 1) < share
    mask[0, 0, 0] = False
    return Blocks.from_mask(mask, q_starts, k_starts)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", [attend, attend_reference])
def test_lists_are_masked_attention(op, shape, share):
    q, k, v = _inputs(*shape)
    blocks = _lists(*shape, share)
    out, lse = op(q, k, v, blocks)
    visible = blocks.visible()
    scores = torch.einsum("blhd,bshd->bhls", q.double(), k.double()) / q.shape[-1] ** 0.5
    expected = scores.masked_fill(~visible, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(lse.double(), expected, **FP32)
    seen = visible.any(-1)
    for b, h in [(0, 0), (1, 2)]:
        if not seen[b, h].all():  # by hand a row without keys is 0 / 0
            assert (out[b, ~seen[b, h], h] == 0).all()
        by_head = by_hand(*(x[b : b + 1, :, h : h + 1] for x in (q, k, v)), visible[b, h])
        torch.testing.assert_close(
            out[b, seen[b, h], h].double(), by_head[0, seen[b, h], 0], **FP32
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_that_go_through_together_change_nothing(shape, monkeypatch):
    q, k, v = _inputs(*shape)
    blocks = _lists(*shape, 0.4)
    alone = attend(q, k, v, blocks)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 13)
    for together, each in zip(attend(q, k, v, blocks), alone, strict=True):
        torch.testing.assert_close(together, each, **FP32)


@pytest.mark.parametrize("tiles", [0, 1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_list_in_parts_is_the_list(tiles, dtype, monkeypatch):
    """Parts of so many tiles; a tile that is larger than a part is one."""
    q, k, v = _inputs(40, 100, dtype)
    blocks = _lists(40, 100, 0.6)
    a_tile = 5 * q.shape[-1] * q.element_size()
    monkeypatch.setattr(attention_cpu, "_CACHED_BYTES", tiles * a_tile)
    out, lse = attend(q, k, v, blocks)
    exact, exact_lse = attend_reference(q.double(), k.double(), v.double(), blocks)
    near, near_lse = FP32, FP32
    if dtype == torch.bfloat16:  # of the result; ATen's sum of exponentials: seen 4e-5
        near, near_lse = ({"atol": x, "rtol": 0.0} for x in (2**-8 * v.abs().max().item(), 1e-4))
    torch.testing.assert_close(lse.double(), exact_lse, **near_lse)
    torch.testing.assert_close(out.double(), exact, **near)


def test_empty_tiles_of_keys_are_passed_over():
    starts = torch.tensor([0, 0, 5, 5, 10], dtype=torch.int32)
    q, k, v = _inputs(10, 10)
    blocks = Blocks.from_mask(torch.ones(1, 1, 4, 4, dtype=torch.bool), starts, starts)
    for ours, exact in zip(attend(q, k, v, blocks), attend_reference(q, k, v), strict=True):
        torch.testing.assert_close(ours, exact, **FP32)


@pytest.mark.parametrize("op", [attend, attend_reference])
def test_a_previous_state_is_merged_and_keeps_its_type(op):
    q, k, v = _inputs(19, 33, torch.bfloat16)
    blocks = _lists(19, 33, 0.4)
    begun = op(q, k, v, blocks, empty_state(q))
    assert begun[0].dtype == torch.float32
    out, lse = op(q, k, v, blocks.complement(), begun)
    dense, dense_lse = attend_reference(q.float(), k.float(), v.float())
    torch.testing.assert_close(lse, dense_lse, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(out, dense, atol=2**-8 * v.abs().max().item(), rtol=0.0)


def test_flex_attention_agrees_on_even_tiles():
    """torch's own block-sparse attention, not compiled: a cross-check that none of us wrote."""
    q, k, v = _inputs(40, 60)
    mask = torch.rand(2, 3, 3, 4) < 0.5
    mask[0, 0, 0] = False
    blocks = Blocks.from_mask(mask, even_starts(40, 16), even_starts(60, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is not compiled
        flex = attend(q, k, v, blocks, backend="flex")
    ours = attend(q, k, v, blocks)
    torch.testing.assert_close(ours[0], flex[0], **FP32)
    torch.testing.assert_close(ours[1], flex[1], **FP32)


@pytest.mark.parametrize("blocks", [None, all_blocks(0, 11, torch.device("cpu"))])
def test_no_queries_see_nothing(blocks):
    q, k, v = _inputs(5, 11)
    out, lse = attend(q[:, :0], k, v, blocks)
    assert out.shape == q[:, :0].shape
    assert lse.shape == (q.shape[0], q.shape[2], 0)


def test_merged_parts_are_attention_to_all_keys():
    q, k, v = _inputs(17, 30)
    states = [attend(q, k[:, run], v[:, run]) for run in (slice(0, 4), slice(4, 29), slice(29, 30))]
    out, lse = merge(states)
    whole, whole_lse = attend(q, k, v)
    torch.testing.assert_close(out, whole, **FP32)
    torch.testing.assert_close(lse, whole_lse, **FP32)


def test_empty_states_add_nothing_wherever_they_stand():
    q, k, v = _inputs(9, 11)
    state = attend(q, k, v)
    poisoned = torch.full_like(q, torch.nan), empty_state(q)[1]
    for states in ([poisoned, state], [state, poisoned], [poisoned, state, poisoned]):
        out, lse = merge(states)
        assert torch.equal(out, state[0])
        assert torch.equal(lse, state[1])
    out, lse = merge([poisoned, poisoned])
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_rounds_weights_and_result_and_nothing_else(shape):
    q, k, v = _inputs(*shape, torch.bfloat16)
    # each is rounded once, by 2**-9 of itself; the weights sum to one, so their roundings add up
    # to no more than that of the largest value
    largest = 2**-9 * v.abs().max().item()
    expected = by_hand(q, k, v)
    ours = attend_dense(q, k, v)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), expected, atol=largest, rtol=2**-8)


def test_large_scores_do_not_overflow():
    q, k, v = _inputs(7, 13)
    ours = attend_dense(100 * q, 100 * k, v)
    assert ours.isfinite().all()
    torch.testing.assert_close(
        ours.double(), by_hand(100 * q, 100 * k, v), atol=1e-3, rtol=0.0
    )  # scores near 1e4 keep 1e-3 in float32, which exp turns into a share


def test_heads_may_lie_anywhere_in_memory():
    q, k, v = _inputs(7, 13)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(attend_dense(*apart), attend_dense(q, k, v), **FP32)


@pytest.mark.parametrize("tokens", [1, 4, 5, 12])
def test_causal_runs_are_masked_attention(tokens):
    q, k, v = _inputs(19, 19)  # the last run is shorter
    run = torch.arange(19) // tokens
    visible = run[:, None] >= run[None, :]
    ours = attend_causal(q, k, v, tokens)
    torch.testing.assert_close(ours.double(), by_hand(q, k, v, visible), **FP32)
    masked = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=visible
    )
    torch.testing.assert_close(ours, masked.transpose(1, 2), **FP32)


@pytest.mark.parametrize("tokens", [19, 40])
def test_one_causal_run_is_plain_attention(tokens):
    q, k, v = _inputs(19, 19)
    assert torch.equal(attend_causal(q, k, v, tokens), attend_dense(q, k, v))


def test_a_later_run_changes_no_bit_of_an_earlier_one():
    q, k, v = _inputs(12, 12)
    before = attend_causal(q, k, v, 4)[:, :8]
    for x in (q, k, v):
        x[:, 8:] = 50.0
    assert torch.equal(attend_causal(q, k, v, 4)[:, :8], before)
