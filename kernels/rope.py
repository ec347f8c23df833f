"""Rotary position of video tokens: time, height and width each turn a share of a head's channels.

L tokens, H heads, D channels of a head; a position turns neighbouring pairs, so tables are complex
with D / 2 columns.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from .norm import is_fused, rms_norm


def rotary_table(
    times: Sequence[int],
    height: int,
    width: int,
    splits: tuple[int, int, int],
    device: torch.device,
    theta: float = 10000.0,
) -> Tensor:
    """(L, D / 2) complex64, tokens in order time, height, width; angles in float64."""
    size = len(times), height, width
    axes = (torch.tensor(times, dtype=torch.int64), torch.arange(height), torch.arange(width))
    turns = []
    for axis, (positions, channels) in enumerate(zip(axes, splits, strict=True)):
        exponent = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        angle_PC = positions[:, None].double() * theta**-exponent
        turn_PC = torch.polar(torch.ones_like(angle_PC), angle_PC).to(torch.complex64)
        shape = [size[axis] if i == axis else 1 for i in range(3)]
        turns.append(turn_PC.view(*shape, turn_PC.shape[1]).expand(*size, -1))
    return torch.cat(turns, dim=-1).flatten(0, 2).to(device)


def rms_norm_rotate(x_BLD: Tensor, norm: nn.RMSNorm, table_LC: Tensor, num_heads: int) -> Tensor:
    """RMSNorm over the whole width, then every head turned to its token's place: (B, L, H, D)."""
    if is_fused(x_BLD):
        from .norm_triton import rms_norm_rotate_triton

        return rms_norm_rotate_triton(x_BLD, norm, table_LC, num_heads)
    return rotate(rearrange(rms_norm(x_BLD, norm), "b l (h d) -> b l h d", h=num_heads), table_LC)


def rotate(x_BLHD: Tensor, table_LC: Tensor) -> Tensor:
    """Turn every pair of channels of every head by its token's angle, in float32."""
    pairs = torch.view_as_complex(x_BLHD.float().reshape(*x_BLHD.shape[:-1], -1, 2))
    turned = torch.view_as_real(pairs * table_LC[None, :, None])
    return turned.flatten(-2).to(x_BLHD.dtype)
