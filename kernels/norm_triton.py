"""Norm and modulation, gated residual, norm and rotary position: one read and one write each.

B batch, L tokens, D channels, H heads. A program takes a few tokens of one level, one after the
other, and reads the level's row once: in float32 it is twice as long as a token. 5,120 channels fit
its registers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from .launch import where_its_tensors_are

_ROWS = 8  # tokens of a program


@triton.jit
def _modulate_kernel(
    x_ptr, scale_ptr, shift_ptr, index_ptr, y_ptr, x_l, row, run, channels, eps,
    HAS_INDEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level, first, last = _tokens(index_ptr, run, HAS_INDEX, ROWS)
    d = tl.arange(0, BLOCK)
    inside = d < channels
    scale = 1.0 + tl.load(scale_ptr + level * row + d, mask=inside, other=0.0)
    shift = tl.load(shift_ptr + level * row + d, mask=inside, other=0.0)
    coming = tl.load(x_ptr + first * x_l + d, mask=inside, other=0.0)
    for token in tl.range(first, last):
        x = coming.to(tl.float32)
        coming = tl.load(x_ptr + tl.minimum(token + 1, last - 1) * x_l + d, mask=inside, other=0.0)
        mean = tl.sum(x, 0) / channels
        centred = tl.where(inside, x - mean, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / channels + eps)
        y = centred * inverse * scale + shift
        tl.store(y_ptr + token * channels + d, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _residual_kernel(
    x_ptr, y_ptr, gate_ptr, index_ptr, out_ptr, x_l, y_l, row, run, channels,
    HAS_INDEX: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    level, first, last = _tokens(index_ptr, run, HAS_INDEX, ROWS)
    d = tl.arange(0, BLOCK)
    inside = d < channels
    gate = tl.load(gate_ptr + level * row + d, mask=inside, other=0.0)
    for token in tl.range(first, last):
        x = tl.load(x_ptr + token * x_l + d, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(y_ptr + token * y_l + d, mask=inside, other=0.0).to(tl.float32)
        out = (x + y * gate).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + token * channels + d, out, mask=inside)


@triton.jit
def _rotate_kernel(
    x_ptr, weight_ptr, table_ptr, y_ptr, x_l, tokens, run, heads, eps,
    HEAD: tl.constexpr, NORM: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    _, first, last = _tokens(weight_ptr, run, False, ROWS)
    h, d = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_D)
    inside = (h < heads) & (d < HEAD)[None, :]
    at = h * HEAD + d[None, :]
    if NORM:
        weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    coming = tl.load(x_ptr + first * x_l + at, mask=inside, other=0.0)
    for token in tl.range(first, last):
        x = coming.to(tl.float32)
        coming = tl.load(x_ptr + tl.minimum(token + 1, last - 1) * x_l + at, mask=inside, other=0.0)
        if NORM:
            mean = tl.sum(tl.sum(x * x, 1), 0) / (heads * HEAD)
            x = x * (1.0 / tl.sqrt(mean + eps)) * weight
        # a row of the table is cosine, sine of each pair of a head; neighbours turn together
        turn = tl.load(table_ptr + token % tokens * HEAD + d, mask=d < HEAD, other=0.0)
        cosine, sine = tl.split(tl.reshape(turn, [1, BLOCK_D // 2, 2]))
        a, b = tl.split(tl.reshape(x, [BLOCK_H, BLOCK_D // 2, 2]))
        y = tl.join(a * cosine - b * sine, a * sine + b * cosine)
        y = tl.reshape(y, [BLOCK_H, BLOCK_D]).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + token * heads * HEAD + at, y, mask=inside)


@triton.jit
def _tokens(index_ptr, run, HAS_INDEX: tl.constexpr, ROWS: tl.constexpr):
    """The level and the tokens of a program: up to ROWS of one run, so all of one level."""
    chunks = tl.cdiv(run, ROWS)
    which = (tl.program_id(0) // chunks).to(tl.int64)
    start = tl.program_id(0) % chunks * ROWS
    level = which
    if HAS_INDEX:
        level = tl.load(index_ptr + which)
    return level, which * run + start, which * run + tl.minimum(start + ROWS, run)


@where_its_tensors_are
def norm_modulate_triton(
    x_BLD: Tensor, scale_RD: Tensor, shift_RD: Tensor, index_BF: Tensor | None, eps: float
) -> Tensor:
    x, y = _rows(x_BLD), torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
    scale, shift, index, run = _levels(x_BLD, index_BF, scale_RD, shift_RD)
    _modulate_kernel[_grid(len(x), run)](
        x, scale, shift, x if index is None else index, y,
        x.stride(0), scale.stride(0), run, x.shape[1], eps,
        HAS_INDEX=index is not None, **_options(x.shape[1]),
    )  # fmt: skip
    return y


@where_its_tensors_are
def gated_residual_triton(
    x_BLD: Tensor, y_BLD: Tensor, gate_RD: Tensor, index_BF: Tensor | None
) -> Tensor:
    x, y = _rows(x_BLD), _rows(y_BLD)
    out = torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
    gate, index, run = _levels(x_BLD, index_BF, gate_RD)
    _residual_kernel[_grid(len(x), run)](
        x, y, gate, x if index is None else index, out,
        x.stride(0), y.stride(0), gate.stride(0), run, x.shape[1],
        HAS_INDEX=index is not None, **_options(x.shape[1]),
    )  # fmt: skip
    return out


@where_its_tensors_are
def rms_norm_rotate_triton(
    x_BLD: Tensor, norm: nn.RMSNorm | None, table_LC: Tensor, num_heads: int
) -> Tensor:
    """(B, L, H, D of a head); without a norm, turned alone. RMSNorm is over all heads."""
    x, (batch, tokens, width) = _rows(x_BLD), x_BLD.shape
    y = torch.empty(batch, tokens, width, dtype=x.dtype, device=x.device)
    table = torch.view_as_real(table_LC).contiguous()
    weight, eps = (x, 0.0) if norm is None else (norm.weight, norm.eps or 0.0)
    head = width // num_heads
    block_h, block_d = (max(2, triton.next_power_of_2(size)) for size in (num_heads, head))
    _rotate_kernel[_grid(len(x), len(x))](
        x, weight, table, y, x.stride(0), tokens, len(x), num_heads, eps,
        HEAD=head, NORM=norm is not None, ROWS=_ROWS, BLOCK_H=block_h, BLOCK_D=block_d,
        num_warps=_warps(block_h * block_d), enable_fp_fusion=True,
    )  # fmt: skip
    return y.view(batch, tokens, num_heads, -1)


def _rows(x_BLD: Tensor) -> Tensor:
    """One row per token, its channels side by side."""
    rows = x_BLD.reshape(-1, x_BLD.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _levels(x_BLD: Tensor, index_BF: Tensor | None, *rows_RD: Tensor) -> tuple[Any, ...]:
    """Rows of one stride, the level of each run of tokens of every sample, and the run's length."""
    rows = tuple(row_RD.contiguous() for row_RD in rows_RD)
    batch, tokens = x_BLD.shape[:2]
    if index_BF is None:  # a row for each run in its turn, and one run where there is one row
        return *rows, None, max(1, batch * tokens // len(rows[0]))
    runs = index_BF.shape[1]
    return *rows, index_BF.expand(batch, runs).contiguous(), tokens // runs


def _grid(tokens: int, run: int) -> tuple[int]:
    return (tokens // run * triton.cdiv(run, _ROWS),)


def _options(channels: int) -> dict[str, int]:
    block = max(16, triton.next_power_of_2(channels))
    return {"ROWS": _ROWS, "BLOCK": block, "num_warps": _warps(block), "enable_fp_fusion": True}


def _warps(channels: int) -> int:
    """So that a thread holds 16 channels of a token, and its part of the level's row."""
    return min(16, max(4, channels // 512))
