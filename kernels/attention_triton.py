"""Attention over lists of tiles in Triton: one program per tile of queries and head.

B batch, L queries, S keys, H heads, D channels of a head, R tiles of queries, C tiles of keys, K
columns of the longest list. Plain pointers: block pointers are gone from Triton 3.9.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import Blocks

MAX_TILE = 128

_LOG2E = math.log2(math.e)


@triton.jit
def _attend_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    q_starts_ptr,
    k_starts_ptr,
    columns_ptr,
    counts_ptr,
    order_ptr,
    previous_ptr,
    previous_lse_ptr,
    q_b,
    q_l,
    q_h,
    k_b,
    k_s,
    k_h,
    v_b,
    v_s,
    v_h,
    out_b,
    out_l,
    out_h,
    previous_b,
    previous_l,
    previous_h,
    columns_b,
    columns_h,
    columns_r,
    counts_b,
    counts_h,
    num_heads,
    num_rows,
    num_queries,
    scale,  # of scores, and from base e to base 2
    CHANNELS: tl.constexpr,  # known, so that whole rows are copied without a look at their mask
    HAS_ORDER: tl.constexpr,
    HAS_PREVIOUS: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    item = tl.program_id(0)
    if HAS_ORDER:
        item = tl.load(order_ptr + item).to(tl.int32)
    row = item % num_rows
    h = (item // num_rows) % num_heads
    b = item // (num_rows * num_heads)
    # int64, because token * stride passes 2**31 at 419k tokens of width 5120
    b64, h64 = b.to(tl.int64), h.to(tl.int64)

    first = tl.load(q_starts_ptr + row)
    size = tl.load(q_starts_ptr + row + 1) - first
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    in_row = m < size
    in_head = d < CHANNELS
    tokens = (first + m).to(tl.int64)
    q_at = q_ptr + b64 * q_b + h64 * q_h + tokens[:, None] * q_l + d[None, :]
    q = tl.load(q_at, mask=in_row[:, None] & in_head[None, :], other=0.0)
    kind = q.dtype
    if WIDEN:  # the interpreter multiplies the bit patterns of bfloat16
        q = q.to(tl.float32)

    k_head = k_ptr + b64 * k_b + h64 * k_h
    v_head = v_ptr + b64 * v_b + h64 * v_h
    k_offsets = n[:, None] * k_s + d[None, :]  # inside a tile int32 is enough
    v_offsets = n[:, None] * v_s + d[None, :]
    list_ptr = columns_ptr + b64 * columns_b + h64 * columns_h + row.to(tl.int64) * columns_r
    count = tl.load(counts_ptr + b64 * counts_b + h64 * counts_h + row)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i in tl.range(0, count):
        column = tl.load(list_ptr + i)
        start = tl.load(k_starts_ptr + column)
        in_tile = n < tl.load(k_starts_ptr + column + 1) - start
        seen = in_tile[:, None] & in_head[None, :]
        tile = start.to(tl.int64)
        k = tl.load(k_head + tile * k_s + k_offsets, mask=seen, other=0.0)
        v = tl.load(v_head + tile * v_s + v_offsets, mask=seen, other=0.0)
        if WIDEN:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(in_tile[None, :], scores, float("-inf"))
        # finite, also while no key was seen: -inf minus -inf is NaN
        next_top = tl.maximum(tl.maximum(top, tl.max(scores, 1)), -1e30)
        weights = tl.exp2(scores - next_top[:, None])
        shrink = tl.exp2(top - next_top)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        weights = weights.to(kind)  # as the values, also where they are widened again
        if WIDEN:
            weights = weights.to(tl.float32)
        acc = tl.dot(weights, v, acc, input_precision=PRECISION)
        top = next_top

    has_keys = total > 0
    out = acc / tl.where(has_keys, total, 1.0)[:, None]
    # in base 2 until it is stored
    lse = tl.where(has_keys, top + tl.log2(tl.where(has_keys, total, 1.0)), float("-inf"))
    row_at = (b64 * num_heads + h64) * num_queries + tokens
    if HAS_PREVIOUS:
        base = previous_ptr + b64 * previous_b + h64 * previous_h
        before_at = base + tokens[:, None] * previous_l + d[None, :]
        before = tl.load(before_at, mask=in_row[:, None] & in_head[None, :], other=0.0)
        before_lse = tl.load(previous_lse_ptr + row_at, mask=in_row, other=float("-inf"))
        before_lse = before_lse * 1.4426950408889634
        higher = tl.maximum(tl.maximum(lse, before_lse), -1e30)
        share, before_share = tl.exp2(lse - higher), tl.exp2(before_lse - higher)
        both = share + before_share
        divisor = tl.where(both > 0, both, 1.0)
        # an empty state adds nothing, whatever its result holds
        before = tl.where((before_share > 0)[:, None], before.to(tl.float32), 0.0)
        out = (out * share[:, None] + before * before_share[:, None]) / divisor[:, None]
        lse = tl.where(both > 0, higher + tl.log2(divisor), float("-inf"))
    out_at = out_ptr + b64 * out_b + h64 * out_h + tokens[:, None] * out_l + d[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=in_row[:, None] & in_head[None, :])
    tl.store(lse_ptr + row_at, lse * 0.6931471805599453, mask=in_row)


INTERPRETED = not isinstance(_attend_kernel, triton.JITFunction)


def attend_lists_triton(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    blocks: Blocks,
    previous: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Tiles of at most 128 tokens. The longest lists start first, as the last to end decide."""
    assert max(blocks.q_tile, blocks.k_tile) <= MAX_TILE, (blocks.q_tile, blocks.k_tile)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_BLHD, k_BSHD, v_BSHD))
    batch, queries, heads, channels = q.shape
    rows = blocks.counts_BHR.shape[-1]
    columns = blocks.columns_BHRK.expand(batch, heads, -1, -1)
    counts = blocks.counts_BHR.expand(batch, heads, -1)
    before, before_lse = previous if previous is not None else (q, q)
    before = before if before.stride(-1) == 1 else before.contiguous()
    out = torch.empty_like(q, dtype=before.dtype)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if not out.numel():
        return out, lse
    order = None if blocks.alike else counts.flatten().argsort(descending=True, stable=True)
    _attend_kernel[(batch * heads * rows,)](
        q,
        k,
        v,
        out,
        lse,
        blocks.q_starts,
        blocks.k_starts,
        columns,
        counts,
        lse if order is None else order,
        before,
        before_lse.contiguous(),
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:3],
        *before.stride()[:3],
        *columns.stride()[:3],
        *counts.stride()[:2],
        heads,
        rows,
        queries,
        _LOG2E / math.sqrt(channels),
        CHANNELS=channels,
        HAS_ORDER=order is not None,
        HAS_PREVIOUS=previous is not None,
        WIDEN=INTERPRETED,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        enable_fp_fusion=True,  # 3.9 warns where it is left to a default
        **launch_options(blocks.q_tile, blocks.k_tile, channels),
    )
    return out, lse


def launch_options(q_tile: int, k_tile: int, channels: int) -> dict[str, int]:
    """By table: autotuning needs a device, and there is little to choose from.

    A stage of keys and values of 128 tokens and channels takes 64 KiB of the 227 that Hopper has.
    """
    block_m = max(16, triton.next_power_of_2(q_tile))
    block_n = max(16, triton.next_power_of_2(k_tile))
    block_d = max(16, triton.next_power_of_2(channels))
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "num_warps": 8 if block_m == MAX_TILE else 4,
        "num_stages": 2 if block_n * block_d >= 128 * 128 else 3,
    }
