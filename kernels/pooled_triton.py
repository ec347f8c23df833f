"""Means of tiles and the lists of those that score highest: a kernel each, and nothing is sorted.

B batch, L tokens, H heads, D channels of a head, N tiles, R tiles of queries, C tiles of keys,
K columns of a list.

A program finds the list of one row by its smallest score: positive floats are ordered as their bits
are, so thirty halvings of the range of bits find it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import where_its_tensors_are

_TOKENS = 64  # of a tile that a program reads at once


@triton.jit
def _means_kernel(
    x_ptr, starts_ptr, y_ptr, x_b, x_l, x_h, tiles, heads, channels,
    BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0), tl.program_id(1)
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    first, last = tl.load(starts_ptr + tile), tl.load(starts_ptr + tile + 1)
    d = tl.arange(0, BLOCK_D)
    inside = d < channels
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(first, last, BLOCK_L):
        token = start + tl.arange(0, BLOCK_L)
        at = x_ptr + b * x_b + token.to(tl.int64)[:, None] * x_l + h * x_h + d[None, :]
        x = tl.load(at, mask=(token < last)[:, None] & inside[None, :], other=0.0)
        total += tl.sum(x.to(tl.float32), 0)
    at = (head.to(tl.int64) * tiles + tile) * channels + d
    tl.store(y_ptr + at, total / tl.maximum(last - first, 1), mask=inside)


@triton.jit
def _keep_kernel(
    scores_ptr, columns_ptr, counts_ptr, tiles, width, limit,
    BY_MASS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < tiles
    score = tl.load(scores_ptr + row * tiles + c, mask=inside, other=-float("inf"))
    part = tl.exp(score - tl.max(score, 0))
    part = part / tl.sum(part, 0)
    weight = tl.where(inside, part if BY_MASS else 1.0, 0.0)
    bits = tl.where(inside, part.to(tl.int32, bitcast=True), -1)
    # what lies above `high` weighs less than the limit, above `low` it does not, or `low` is -1
    low, high = -1, 0x3F800000  # the bits of 1
    for _ in range(30):
        middle = (low + high) // 2
        fits = tl.sum(tl.where(bits > middle, weight, 0.0), 0) < limit
        low, high = tl.where(fits, low, middle), tl.where(fits, middle, high)
    above, equal = bits > high, bits == high
    before = tl.cumsum(tl.where(equal, weight, 0.0), 0) - weight
    before += tl.sum(tl.where(above, weight, 0.0), 0)
    kept = above | (equal & (before < limit))
    count = tl.sum(kept.to(tl.int32), 0)
    place = tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(columns_ptr + row * width + place, c, mask=kept)
    # behind its end a list holds the last tile
    tl.store(columns_ptr + row * width + c, tiles - 1 + c * 0, mask=(c >= count) & (c < width))
    tl.store(counts_ptr + row, count)


@where_its_tensors_are
def means_triton(x_BLHD: Tensor, starts: Tensor) -> Tensor:
    """(B, H, N, D) float32."""
    if x_BLHD.stride(-1) != 1:
        x_BLHD = x_BLHD.contiguous()
    batch, _, heads, channels = x_BLHD.shape
    tiles = len(starts) - 1
    means_BHND = torch.empty(
        batch, heads, tiles, channels, dtype=torch.float32, device=x_BLHD.device
    )
    _means_kernel[(tiles, batch * heads)](
        x_BLHD, starts, means_BHND, *x_BLHD.stride()[:3], tiles, heads, channels,
        BLOCK_L=_TOKENS, BLOCK_D=triton.next_power_of_2(channels), num_warps=4,
    )  # fmt: skip
    return means_BHND


@where_its_tensors_are
def keep_triton(scores_BHRC: Tensor, num: int, mass: float | None) -> tuple[Tensor, Tensor]:
    """Columns (B, H, R, K) and counts (B, H, R), int32; K is `num`, or by mass all there are."""
    *rows, tiles = scores_BHRC.shape
    width = num if mass is None else tiles
    columns_BHRK = torch.empty(*rows, width, dtype=torch.int32, device=scores_BHRC.device)
    counts_BHR = columns_BHRK.new_empty(rows)
    if counts_BHR.numel():
        block = triton.next_power_of_2(tiles)
        _keep_kernel[(counts_BHR.numel(),)](
            scores_BHRC.contiguous(), columns_BHRK, counts_BHR, tiles, width,
            float(num) if mass is None else mass,
            BY_MASS=mass is not None, BLOCK=block, num_warps=min(8, max(1, block // 256)),
        )  # fmt: skip
    return columns_BHRK, counts_BHR
