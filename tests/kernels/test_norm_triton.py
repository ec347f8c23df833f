"""The fused kernels beside their definitions, in Triton's interpreter."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="needs Triton")

from longreel.kernels import norm_triton
from longreel.kernels.norm import gated_residual_reference, norm_modulate_reference
from longreel.kernels.norm_triton import (
    gated_residual_triton,
    norm_modulate_triton,
    rms_norm_rotate_triton,
)
from longreel.kernels.rope import rms_norm_rotate, rotary_table, rotate

BATCH, TOKENS, WIDTH, HEADS = 2, 9, 60, 3
EPS = 1e-6
# sums in another order; bfloat16: one rounding, which the interpreter makes by cutting bits off
TOLERANCE = {
    torch.float32: {"atol": 5e-6, "rtol": 1e-6},
    torch.bfloat16: {"atol": 5e-6, "rtol": 2**-7},
}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])
RUNS = pytest.mark.parametrize("runs", [None, 1, 3, TOKENS])


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What a kernel does not write is NaN."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(
            norm_triton.torch, name, lambda *a, _make=make, **k: _make(*a, **k).fill_(torch.nan)
        )


def _tokens(dtype, width=WIDTH):
    return (3 * torch.randn(BATCH, TOKENS, 2 * width) + 1).to(dtype)[..., :width]  # with a stride


def _levels(runs, width=WIDTH):
    """Rows that lie apart, as those of six modulations do."""
    num = 1 if runs is None else 4
    rows = torch.randn(num, 2, width)
    return *rows.unbind(1), None if runs is None else torch.randint(4, (BATCH, runs))


@RUNS
@DTYPES
def test_norm_and_modulation(dtype, runs):
    x, (scale, shift, index) = _tokens(dtype), _levels(runs)
    ours = norm_modulate_triton(x, scale, shift, index, EPS)
    expected = norm_modulate_reference(x, scale, shift, index, EPS)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), expected.float(), **TOLERANCE[dtype])


@RUNS
@DTYPES
def test_gated_residual(dtype, runs):
    x, y, (gate, _, index) = _tokens(dtype), _tokens(dtype), _levels(runs)
    ours = gated_residual_triton(x, y, gate, index)
    expected = gated_residual_reference(x, y, gate, index)
    torch.testing.assert_close(ours.float(), expected.float(), **TOLERANCE[dtype])


def test_levels_of_one_sample_serve_all():
    x, (scale, shift, index) = _tokens(torch.float32), _levels(3)
    ours = norm_modulate_triton(x, scale, shift, index[:1], EPS)
    expected = norm_modulate_reference(x, scale, shift, index[:1].expand(BATCH, -1), EPS)
    torch.testing.assert_close(ours, expected, **TOLERANCE[torch.float32])


@DTYPES
def test_rows_without_an_index_are_those_of_the_runs_in_turn(dtype):
    x, y, rows = _tokens(dtype), _tokens(dtype), torch.randn(BATCH * 3, 2, WIDTH)
    (scale, shift), index = rows.unbind(1), torch.arange(BATCH * 3).view(BATCH, 3)
    for modulate in (norm_modulate_triton, norm_modulate_reference):
        in_turn, indexed = (modulate(x, scale, shift, of_run, EPS) for of_run in (None, index))
        assert torch.equal(in_turn, indexed)
    for gate in (gated_residual_triton, gated_residual_reference):
        in_turn, indexed = (gate(x, y, scale, of_run) for of_run in (None, index))
        assert torch.equal(in_turn, indexed)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@DTYPES
def test_rms_norm_over_all_heads_and_rotary_position(dtype, weights):
    norm = nn.RMSNorm(WIDTH, EPS).requires_grad_(False).to(weights)
    norm.weight.normal_()
    table = rotary_table((3, 0, 700), 1, 3, (8, 6, 6), torch.device("cpu"))
    x = _tokens(dtype)
    ours = rms_norm_rotate_triton(x, norm, table, HEADS)
    assert ours.shape == (BATCH, TOKENS, HEADS, WIDTH // HEADS)
    # the definition rounds between norm and rotation, the kernel does not: held to float32
    exact = rms_norm_rotate(x.float(), norm.float(), table, HEADS)
    rounding = TOLERANCE[dtype]["rtol"] * x.float().abs().max().item()
    largest = 5e-6 if dtype == torch.float32 else rounding
    torch.testing.assert_close(ours.float(), exact, atol=largest, rtol=0.0)


@DTYPES
def test_rotary_position_alone(dtype):
    table = rotary_table((3, 0, 700), 1, 3, (8, 6, 6), torch.device("cpu"))
    x = _tokens(dtype)
    ours = rms_norm_rotate_triton(x, None, table, HEADS)
    expected = rotate(x.unflatten(-1, (HEADS, -1)).float(), table)
    atol = 5e-6 if dtype == torch.float32 else 1e-5
    torch.testing.assert_close(ours.float(), expected, atol=atol, rtol=2**-7)
