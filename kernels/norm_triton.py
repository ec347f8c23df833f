"""Norm and modulation, gated residual, norm and rotary position: one read and one write each.

B batch, L tokens, D channels, H heads. One program per token: 5,120 channels fit its registers.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn


@triton.jit
def _modulate_kernel(
    x_ptr, scale_ptr, shift_ptr, index_ptr, y_ptr, x_l, row, per_index, channels, eps,
    HAS_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    level = token * 0
    if HAS_INDEX:
        level = tl.load(index_ptr + token // per_index)
    d = tl.arange(0, BLOCK)
    inside = d < channels
    x = tl.load(x_ptr + token * x_l + d, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / channels
    centred = tl.where(inside, x - mean, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / channels + eps)
    scale = tl.load(scale_ptr + level * row + d, mask=inside, other=0.0)
    shift = tl.load(shift_ptr + level * row + d, mask=inside, other=0.0)
    y = centred * inverse * (1.0 + scale) + shift
    tl.store(y_ptr + token * channels + d, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _residual_kernel(
    x_ptr, y_ptr, gate_ptr, index_ptr, out_ptr, x_l, y_l, row, per_index, channels,
    HAS_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    level = token * 0
    if HAS_INDEX:
        level = tl.load(index_ptr + token // per_index)
    d = tl.arange(0, BLOCK)
    inside = d < channels
    x = tl.load(x_ptr + token * x_l + d, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + token * y_l + d, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + level * row + d, mask=inside, other=0.0)
    out = x + y * gate
    tl.store(out_ptr + token * channels + d, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_kernel(
    x_ptr, weight_ptr, table_ptr, y_ptr, x_l, tokens, channels, head, eps,
    NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)  # neighbouring channels turn together
    inside = pair < channels // 2
    at = x_ptr + token * x_l + 2 * pair
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        inverse = 1.0 / tl.sqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / channels + eps)
        a *= inverse * tl.load(weight_ptr + 2 * pair, mask=inside, other=0.0).to(tl.float32)
        b *= inverse * tl.load(weight_ptr + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
    # a row of the table is cosine, sine of each pair of one head
    angle = table_ptr + (token % tokens) * head + 2 * (pair % (head // 2))
    cosine = tl.load(angle, mask=inside, other=0.0)
    sine = tl.load(angle + 1, mask=inside, other=0.0)
    out = y_ptr + token * channels + 2 * pair
    tl.store(out, (a * cosine - b * sine).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(out + 1, (a * sine + b * cosine).to(y_ptr.dtype.element_ty), mask=inside)


def norm_modulate_triton(
    x_BLD: Tensor, scale_RD: Tensor, shift_RD: Tensor, index_BF: Tensor | None, eps: float
) -> Tensor:
    x, y = _rows(x_BLD), torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
    scale, shift, index, per_index = _levels(x_BLD, index_BF, scale_RD, shift_RD)
    _modulate_kernel[(len(x),)](
        x, scale, shift, x if index is None else index, y,
        x.stride(0), scale.stride(0), per_index, x.shape[1], eps,
        HAS_INDEX=index is not None, **_options(x.shape[1]),
    )  # fmt: skip
    return y


def gated_residual_triton(
    x_BLD: Tensor, y_BLD: Tensor, gate_RD: Tensor, index_BF: Tensor | None
) -> Tensor:
    x, y = _rows(x_BLD), _rows(y_BLD)
    out = torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
    gate, index, per_index = _levels(x_BLD, index_BF, gate_RD)
    _residual_kernel[(len(x),)](
        x, y, gate, x if index is None else index, out,
        x.stride(0), y.stride(0), gate.stride(0), per_index, x.shape[1],
        HAS_INDEX=index is not None, **_options(x.shape[1]),
    )  # fmt: skip
    return out


def rms_norm_rotate_triton(
    x_BLD: Tensor, norm: nn.RMSNorm | None, table_LC: Tensor, num_heads: int
) -> Tensor:
    """(B, L, H, D of a head); without a norm, turned alone. RMSNorm is over all heads."""
    x, (batch, tokens, width) = _rows(x_BLD), x_BLD.shape
    y = torch.empty(batch, tokens, width, dtype=x.dtype, device=x.device)
    table = torch.view_as_real(table_LC).contiguous()
    weight, eps = (x, 0.0) if norm is None else (norm.weight, norm.eps or 0.0)
    _rotate_kernel[(len(x),)](
        x, weight, table, y, x.stride(0), tokens, width, width // num_heads, eps,
        NORM=norm is not None, **_options(width // 2),
    )  # fmt: skip
    return y.view(batch, tokens, num_heads, -1)


def _rows(x_BLD: Tensor) -> Tensor:
    """One row per token, its channels side by side."""
    rows = x_BLD.reshape(-1, x_BLD.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _levels(x_BLD: Tensor, index_BF: Tensor | None, *rows_RD: Tensor) -> tuple[Any, ...]:
    """Rows of one stride, the level of each run of tokens of every sample, and the run's length."""
    rows = tuple(row_RD.contiguous() for row_RD in rows_RD)
    if index_BF is None:
        return *rows, None, 1
    batch, tokens = x_BLD.shape[:2]
    runs = index_BF.shape[1]
    return *rows, index_BF.expand(batch, runs).contiguous(), tokens // runs


def _options(channels: int) -> dict[str, int]:
    block = max(16, triton.next_power_of_2(channels))
    warps = 8 if block > 2048 else 4
    return {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": True}
