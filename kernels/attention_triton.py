"""Attention over lists of tiles in Triton: one program per tile of queries and head.

B batch, L queries, S keys, H heads, D channels of a head, R tiles of queries, C tiles of keys, K
columns of the longest list. Keys and values come by tensor descriptor where one describes them,
else by plain pointers: block pointers are gone from Triton 3.9.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .attention_layout import (
    MAX_TILE,
    has_descriptors,
    in_boxes,
    launch_options,
    shared_bytes,
)
from .blocks import Blocks
from .launch import where_its_tensors_are

_LOG2E = math.log2(math.e)


@triton.jit
def _attend_kernel(
    q_ptr, k_ptr, v_ptr,  # with DESCRIPTORS keys and values are boxes out of (B S, H D)
    out_ptr, lse_ptr, q_starts_ptr, k_starts_ptr, columns_ptr, counts_ptr, order_ptr,
    previous_ptr, previous_lse_ptr,
    q_b, q_l, q_h, k_b, k_s, k_h, v_b, v_s, v_h, out_b, out_l, out_h,
    previous_b, previous_l, previous_h, columns_b, columns_h, columns_r, counts_b, counts_h,
    num_heads, num_rows, num_queries, num_keys,
    scale,  # of scores, and from base e to base 2
    CHANNELS: tl.constexpr,  # known, so that whole rows are copied without a look at their mask
    HAS_ORDER: tl.constexpr, HAS_PREVIOUS: tl.constexpr,
    TILE: tl.constexpr,  # what all tiles of keys measure but a shorter last; 0: they differ
    SPLIT: tl.constexpr,  # parts of BLOCK_N that a tile of keys is read in
    DESCRIPTORS: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
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
    in_row = m < size
    stored = in_row[:, None] & (d < CHANNELS)[None, :]
    tokens = (first + m).to(tl.int64)
    q_at = q_ptr + b64 * q_b + h64 * q_h + tokens[:, None] * q_l + d[None, :]
    q = tl.load(q_at, mask=stored, other=0.0)
    if WIDEN:  # the interpreter multiplies the bit patterns of bfloat16
        q = q.to(tl.float32)

    if DESCRIPTORS:
        k_head, v_head = k_ptr, v_ptr
    else:
        k_head = k_ptr + b64 * k_b + h64 * k_h
        v_head = v_ptr + b64 * v_b + h64 * v_h
    at_b, at_h = b * num_keys, h * CHANNELS
    list_ptr = columns_ptr + b64 * columns_b + h64 * columns_h + row.to(tl.int64) * columns_r
    count = tl.load(counts_ptr + b64 * counts_b + h64 * counts_h + row)
    acc, top, total = _attend_list(
        q, k_head, v_head, list_ptr, k_starts_ptr, count, at_b, at_h, k_s, v_s, num_keys, scale,
        CHANNELS, TILE, SPLIT, DESCRIPTORS, WIDEN, PRECISION, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip

    has_keys = total > 0
    out = acc / tl.where(has_keys, total, 1.0)[:, None]
    # in base 2 until it is stored
    lse = tl.where(has_keys, top + tl.log2(tl.where(has_keys, total, 1.0)), float("-inf"))
    row_at = (b64 * num_heads + h64) * num_queries + tokens
    if HAS_PREVIOUS:
        base = previous_ptr + b64 * previous_b + h64 * previous_h
        before_at = base + tokens[:, None] * previous_l + d[None, :]
        before = tl.load(before_at, mask=stored, other=0.0)
        before_lse = tl.load(previous_lse_ptr + row_at, mask=in_row, other=float("-inf"))
        out, lse = _merge(out, lse, before.to(tl.float32), before_lse * 1.4426950408889634)
    out_at = out_ptr + b64 * out_b + h64 * out_h + tokens[:, None] * out_l + d[None, :]
    tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=stored)
    tl.store(lse_ptr + row_at, lse * 0.6931471805599453, mask=in_row)


@triton.jit
def _attend_list(
    q, k_head, v_head, list_ptr, k_starts_ptr, count, at_b, at_h, k_s, v_s, num_keys, scale,
    CHANNELS: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr, DESCRIPTORS: tl.constexpr,
    WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Weighted sum of values, largest score in base 2, and sum of weights, for each query."""
    top = tl.full([BLOCK_M], -1e30, tl.float32)  # finite: -inf minus -inf is NaN
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    whole = 0
    if TILE == SPLIT * BLOCK_N:  # lists rise, so that a shorter tile comes last
        whole = tl.maximum(count - 1, 0)
        acc, top, total = _attend_run(
            acc, top, total, q, k_head, v_head, list_ptr, k_starts_ptr, 0, whole * SPLIT,
            at_b, at_h, k_s, v_s, num_keys, scale, False, CHANNELS, TILE, SPLIT, DESCRIPTORS,
            WIDEN, PRECISION, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    return _attend_run(
        acc, top, total, q, k_head, v_head, list_ptr, k_starts_ptr, whole * SPLIT, count * SPLIT,
        at_b, at_h, k_s, v_s, num_keys, scale, True, CHANNELS, TILE, SPLIT, DESCRIPTORS,
        WIDEN, PRECISION, BLOCK_N, BLOCK_D,
    )  # fmt: skip


@triton.jit
def _attend_run(
    acc, top, total, q, k_head, v_head, list_ptr, k_starts_ptr, begin, end,
    at_b, at_h, k_s, v_s, num_keys, scale,
    RAGGED: tl.constexpr, CHANNELS: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr,
    DESCRIPTORS: tl.constexpr, WIDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The softmax so far and parts `begin` to `end` of a list; RAGGED: they may be shorter."""
    n = tl.arange(0, BLOCK_N)
    for i in tl.range(begin, end):
        column = tl.load(list_ptr + i // SPLIT)
        if TILE:
            start = column * TILE
            size = tl.minimum(num_keys - start, TILE)
        else:
            start = tl.load(k_starts_ptr + column)
            size = tl.load(k_starts_ptr + column + 1) - start
        in_tile = n < size - (i % SPLIT) * BLOCK_N
        start += (i % SPLIT) * BLOCK_N
        if DESCRIPTORS:
            k = k_head.load([at_b + start, at_h])
            v = v_head.load([at_b + start, at_h])
        else:
            k = _load(k_head, start, k_s, in_tile, RAGGED, CHANNELS, BLOCK_N, BLOCK_D)
            v = _load(v_head, start, v_s, in_tile, RAGGED, CHANNELS, BLOCK_N, BLOCK_D)
        kind = v.dtype
        if WIDEN:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if RAGGED:
            scores = tl.where(in_tile[None, :], scores, float("-inf"))
        next_top = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - next_top[:, None])
        shrink = tl.exp2(top - next_top)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        weights = weights.to(kind)  # as the values, also where they are widened again
        if WIDEN:
            weights = weights.to(tl.float32)
        acc = tl.dot(weights, v, acc, input_precision=PRECISION)
        top = next_top
    return acc, top, total


@triton.jit
def _load(
    head, start, stride, in_tile,
    RAGGED: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_D)
    # inside a tile int32 is enough
    at = head + start.to(tl.int64) * stride + tl.arange(0, BLOCK_N)[:, None] * stride + d[None, :]
    if RAGGED:
        return tl.load(at, mask=in_tile[:, None] & (d < CHANNELS)[None, :], other=0.0)
    elif CHANNELS < BLOCK_D:
        return tl.load(at, mask=(d < CHANNELS)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _merge(out, lse, before, before_lse):
    """With a state of the same queries on other keys; in base 2."""
    higher = tl.maximum(tl.maximum(lse, before_lse), -1e30)
    share, before_share = tl.exp2(lse - higher), tl.exp2(before_lse - higher)
    both = share + before_share
    divisor = tl.where(both > 0, both, 1.0)
    # an empty state adds nothing, whatever its result holds
    before = tl.where((before_share > 0)[:, None], before, 0.0)
    out = (out * share[:, None] + before * before_share[:, None]) / divisor[:, None]
    return out, tl.where(both > 0, higher + tl.log2(divisor), float("-inf"))


INTERPRETED = not isinstance(_attend_kernel, triton.JITFunction)


@where_its_tensors_are
def attend_lists_triton(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    blocks: Blocks,
    previous: tuple[Tensor, Tensor] | None = None,
    options: dict[str, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Tiles of at most 128 tokens. The longest lists start first, as the last to end decide.

    `options` in place of those that the table of launch_options() gives.
    """
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
    boxed = in_boxes(k) and in_boxes(v)
    options = options or launch_options(
        blocks.q_tile,
        blocks.k_tile,
        channels,
        item=q.element_size(),
        shared=shared_bytes(q.device),
        descriptors=boxed and has_descriptors(q.device),
        even=blocks.even,
    )
    block_n, descriptors = options["BLOCK_N"], boxed and bool(options["DESCRIPTORS"])
    split = max(1, -(-blocks.k_tile // block_n))
    tile = blocks.k_tile if len(blocks.k_starts) > 2 else split * block_n  # a single one is last
    boxes = [_boxes(x, block_n) if descriptors else x for x in (k, v)]
    _attend_kernel[(batch * heads * rows,)](
        q,
        *boxes,
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
        k.shape[1],
        _LOG2E / math.sqrt(channels),
        CHANNELS=channels,
        HAS_ORDER=order is not None,
        HAS_PREVIOUS=previous is not None,
        TILE=tile if blocks.even else 0,
        SPLIT=split,
        WIDEN=INTERPRETED,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        enable_fp_fusion=True,  # 3.9 warns where it is left to a default
        **options | {"DESCRIPTORS": descriptors},
    )
    return out, lse


def _boxes(x_BSHD: Tensor, rows: int) -> TensorDescriptor:
    batch, tokens, heads, channels = x_BSHD.shape
    shape = [batch * tokens, heads * channels]
    return TensorDescriptor(x_BSHD, shape, [x_BSHD.stride(1), 1], [rows, channels])
