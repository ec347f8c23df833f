"""Norms and modulation beside their formulas in float64."""

import pytest
import torch
from torch import nn

from longreel.kernels import norm as kernels
from longreel.kernels.norm import affine_norm, rms_norm

EPS = 1e-6
BATCH, TOKENS, WIDTH = 2, 15, 37
# (batch, runs) of the rows: one for all, one per sample, runs of five and of one token
ROWS = [(1, 1), (BATCH, 1), (BATCH, 3), (BATCH, TOKENS)]
# computed in float32 whatever the input: seen 1e-6 for values up to 10
FP32 = {"atol": 5e-6, "rtol": 0.0}
# and then rounded once, to 8 bits: 2**-8 of the result at most
BF16 = {"atol": 5e-6, "rtol": 2**-8}
DTYPES = [(torch.float32, FP32), (torch.bfloat16, BF16)]
in_both_types = pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["fp32", "bf16"])
with_rows = pytest.mark.parametrize("rows", ROWS, ids=str)


def _tokens(dtype):
    return (3 * torch.randn(BATCH, TOKENS, WIDTH) + 1).to(dtype)


def per_token(rows_BFD):
    """A row for every token, in float64."""
    rows = rows_BFD.double().expand(BATCH, -1, -1)
    return rows.repeat_interleave(TOKENS // rows.shape[1], dim=1)


def _levels(*rows_BFD):
    """Rows of levels, and which each run has; none where there is one."""
    batch, runs = rows_BFD[0].shape[:2]
    index = None if batch == runs == 1 else torch.arange(batch * runs).view(batch, runs)
    return *(rows.flatten(0, 1) for rows in rows_BFD), index


def norm_modulate(x, scale, shift, eps):
    return kernels.norm_modulate(x, *_levels(scale, shift), eps)


def gated_residual(x, y, gate):
    return kernels.gated_residual(x, y, *_levels(gate))


def layer_norm(x):
    x = x.double()
    variance = x.var(-1, keepdim=True, correction=0)
    return (x - x.mean(-1, keepdim=True)) / (variance + EPS).sqrt()


def _check(ours, expected, dtype, tolerance):
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, **tolerance)


@with_rows
@in_both_types
def test_modulation_is_norm_times_one_plus_scale_plus_shift(dtype, tolerance, rows):
    x, scale, shift = _tokens(dtype), torch.randn(*rows, WIDTH), torch.randn(*rows, WIDTH)
    expected = layer_norm(x) * (1 + per_token(scale)) + per_token(shift)
    _check(norm_modulate(x, scale, shift, EPS), expected, dtype, tolerance)


@with_rows
def test_a_scale_smaller_than_bfloat16_keeps_beside_one_counts(rows):
    """bfloat16 has nothing between 1 and 1.0078, so 1.0035 would be 1."""
    x = torch.full((BATCH, TOKENS, WIDTH), 1.0)
    x[..., 0] = 1.0 + WIDTH  # its norm is 6, and 6 * 1.0035 no longer rounds to 6
    x, scale = x.bfloat16(), torch.full((*rows, WIDTH), 0.0035)
    modulated = norm_modulate(x, scale, torch.zeros(*rows, WIDTH), EPS)
    assert (modulated[..., 0] > norm_modulate(x, 0 * scale, 0 * scale, EPS)[..., 0]).all()


@with_rows
@in_both_types
def test_a_gated_residual_is_x_plus_gate_times_y(dtype, tolerance, rows):
    x, y, gate = _tokens(dtype), _tokens(dtype), torch.randn(*rows, WIDTH)
    expected = x.double() + y.double() * per_token(gate)
    _check(gated_residual(x, y, gate), expected, dtype, tolerance)


@in_both_types
def test_an_affine_norm_is_layer_norm_with_its_weights(dtype, tolerance):
    norm = nn.LayerNorm(WIDTH, EPS).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    x = _tokens(dtype)
    expected = layer_norm(x) * norm.weight.double() + norm.bias.double()
    _check(affine_norm(x, norm), expected, dtype, tolerance)


@in_both_types
def test_an_rms_norm_divides_by_the_root_of_the_mean_square(dtype, tolerance):
    norm = nn.RMSNorm(WIDTH, EPS).requires_grad_(False).to(dtype)
    norm.weight.normal_()
    x = _tokens(dtype)
    mean_square = x.double().square().mean(-1, keepdim=True)
    expected = x.double() / (mean_square + EPS).sqrt() * norm.weight.double()
    _check(rms_norm(x, norm), expected, dtype, tolerance)


@pytest.mark.parametrize("op", ["modulate", "residual"])
def test_tokens_of_a_sample_do_not_touch_each_other(op):
    rows = torch.randn(BATCH, 3, WIDTH)

    def run(x):
        if op == "modulate":
            return norm_modulate(x, rows, rows, EPS)
        return gated_residual(x, x, rows)

    x = _tokens(torch.float32)
    before = run(x)
    x[1, 4] += 1.0
    changed = (run(x) != before).any(-1).nonzero().tolist()
    assert changed == [[1, 4]]
