"""Attention beside softmax written out in float64."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from longreel.kernels.attention import attend, attend_causal, attend_reference

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
def test_it_is_softmax_attention(op, shape):
    q, k, v = _inputs(*shape)
    torch.testing.assert_close(op(q, k, v).double(), by_hand(q, k, v), **FP32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_rounds_weights_and_result_and_nothing_else(shape):
    q, k, v = _inputs(*shape, torch.bfloat16)
    # each is rounded once, by 2**-9 of itself; the weights sum to one, so their roundings add up
    # to no more than that of the largest value
    largest = 2**-9 * v.abs().max().item()
    expected = by_hand(q, k, v)
    ours = attend(q, k, v)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), expected, atol=largest, rtol=2**-8)


def test_large_scores_do_not_overflow():
    q, k, v = _inputs(7, 13)
    ours = attend(100 * q, 100 * k, v)
    assert ours.isfinite().all()
    torch.testing.assert_close(
        ours.double(), by_hand(100 * q, 100 * k, v), atol=1e-3, rtol=0.0
    )  # scores near 1e4 keep 1e-3 in float32, which exp turns into a share


def test_heads_may_lie_anywhere_in_memory():
    q, k, v = _inputs(7, 13)
    apart = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(attend(*apart), attend(q, k, v), **FP32)


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
    assert torch.equal(attend_causal(q, k, v, tokens), attend(q, k, v))


def test_a_later_run_changes_no_bit_of_an_earlier_one():
    q, k, v = _inputs(12, 12)
    before = attend_causal(q, k, v, 4)[:, :8]
    for x in (q, k, v):
        x[:, 8:] = 50.0
    assert torch.equal(attend_causal(q, k, v, 4)[:, :8], before)
