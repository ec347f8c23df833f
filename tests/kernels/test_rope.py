"""Rotary positions beside rotation written out pair by pair in float64."""

import itertools
import math

import pytest
import torch

from longreel.kernels.rope import rotary_table, rotate

CPU = torch.device("cpu")
SPLITS = (8, 6, 6)  # of 20 channels
TIMES, HEIGHT, WIDTH = (3, 0, 1023), 2, 5


def _table(times=TIMES):
    return rotary_table(times, HEIGHT, WIDTH, SPLITS, CPU)


def angles(times=TIMES, theta=10000.0):
    """Of every token and pair: position * theta ** -(2 i / channels), axis after axis."""
    rows = []
    for position in itertools.product(times, range(HEIGHT), range(WIDTH)):
        row = []
        for p, channels in zip(position, SPLITS, strict=True):
            row += [p * theta ** (-2 * i / channels) for i in range(channels // 2)]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def turned(x, angle_LC):
    """Each neighbouring pair of channels turned by its angle, in float64."""
    even, odd = x[..., 0::2].double(), x[..., 1::2].double()
    cos, sin = angle_LC.cos()[None, :, None], angle_LC.sin()[None, :, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def test_the_table_holds_every_tokens_angles():
    expected = torch.polar(torch.ones_like(angles()), angles())
    table = _table()
    assert table.dtype == torch.complex64
    # rounded once to float32: half of its last bit, in each part
    torch.testing.assert_close(table.to(torch.complex128), expected, atol=2**-24, rtol=0.0)


# float32 inside whatever the input: a product and a sum each; then one rounding, to 8 bits
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, {"atol": 2e-6, "rtol": 0.0}),
        (torch.bfloat16, {"atol": 2e-6, "rtol": 2**-8}),
    ],
    ids=["fp32", "bf16"],
)
def test_rotation_turns_neighbouring_channels_of_every_head(dtype, tolerance):
    x = torch.randn(2, 30, 3, 20).to(dtype)
    ours = rotate(x, _table())
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), turned(x, angles()), **tolerance)


def test_position_zero_turns_nothing():
    x = torch.randn(1, 30, 2, 20)
    table = rotary_table((0,), 1, 1, SPLITS, CPU).expand(30, -1)
    assert torch.equal(rotate(x, table), x)


def test_a_token_given_in_another_order_has_the_same_row():
    rows = _table().unflatten(0, (3, -1))
    again = _table((1023, 3, 0)).unflatten(0, (3, -1))
    assert torch.equal(again, rows[[2, 0, 1]])


def test_only_the_distance_between_tokens_matters():
    q, k = torch.randn(1, 30, 2, 20), torch.randn(1, 30, 2, 20)

    def scores(start):
        table = _table((start, start + 1, start + 5))
        return torch.einsum("blhd,bshd->bhls", rotate(q, table), rotate(k, table))

    # 20 products below 10, of factors rounded at 2**-24: the window may stand anywhere
    torch.testing.assert_close(scores(900), scores(0), atol=1e-5, rtol=0.0)


def test_turning_keeps_lengths():
    x = torch.randn(1, 30, 2, 20)
    lengths = rotate(x, _table()).norm(dim=-1)
    torch.testing.assert_close(lengths, x.norm(dim=-1), atol=0.0, rtol=1e-6)
    assert math.isclose(lengths.sum().item(), x.norm(dim=-1).sum().item(), rel_tol=1e-6)
