"""Normalisation and what follows it: modulation by a level's row, and the gated residual.

B batch, L tokens, F runs of tokens that share a row (L = F * tokens of a run), R levels, D
channels. Rows are float32 of shape (R, D), and `index_BF` says which each run of tokens has; none:
there is one row for all, or one for each run in its turn. They are as few as they are given, and on
a GPU are never expanded.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .choose import choose_fused


def norm_modulate_reference(
    x_BLD: Tensor, scale_RD: Tensor, shift_RD: Tensor, index_BF: Tensor | None, eps: float
) -> Tensor:
    """The definition: LayerNorm(x) * (1 + scale) + shift, in float32."""
    width = x_BLD.shape[-1:]
    if index_BF is None and len(scale_RD) == 1:  # the affine part of the norm itself, one pass
        return layer_norm(x_BLD.float(), width, 1 + scale_RD[0], shift_RD[0], eps).to(x_BLD.dtype)
    scale_BFD, shift_BFD = (_of_runs(rows, index_BF, len(x_BLD)) for rows in (scale_RD, shift_RD))
    y_BFSD = _by_run(layer_norm(x_BLD.float(), width, None, None, eps), scale_BFD.shape[1])
    y_BFSD = torch.addcmul(shift_BFD[:, :, None], y_BFSD, 1 + scale_BFD[:, :, None])
    return y_BFSD.reshape(x_BLD.shape).to(x_BLD.dtype)


def norm_modulate(
    x_BLD: Tensor, scale_RD: Tensor, shift_RD: Tensor, index_BF: Tensor | None, eps: float
) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, by each token's level."""
    if is_fused(x_BLD):
        from .norm_triton import norm_modulate_triton

        return norm_modulate_triton(x_BLD, scale_RD, shift_RD, index_BF, eps)
    return norm_modulate_reference(x_BLD, scale_RD, shift_RD, index_BF, eps)


def gated_residual_reference(
    x_BLD: Tensor, y_BLD: Tensor, gate_RD: Tensor, index_BF: Tensor | None
) -> Tensor:
    """The definition: x + y * gate, in float32."""
    if index_BF is None and len(gate_RD) == 1:
        return torch.addcmul(x_BLD.float(), y_BLD.float(), gate_RD[None]).to(x_BLD.dtype)
    gate_BFD = _of_runs(gate_RD, index_BF, len(x_BLD))
    x, y = (_by_run(z_BLD.float(), gate_BFD.shape[1]) for z_BLD in (x_BLD, y_BLD))
    gated = torch.addcmul(x, y, gate_BFD[:, :, None])
    return gated.reshape(x_BLD.shape).to(x_BLD.dtype)


def gated_residual(
    x_BLD: Tensor, y_BLD: Tensor, gate_RD: Tensor, index_BF: Tensor | None
) -> Tensor:
    """x + y * gate, by each token's level."""
    if is_fused(x_BLD):
        from .norm_triton import gated_residual_triton

        return gated_residual_triton(x_BLD, y_BLD, gate_RD, index_BF)
    return gated_residual_reference(x_BLD, y_BLD, gate_RD, index_BF)


def is_fused(x: Tensor) -> bool:
    """Whether a kernel takes it: on a GPU, and where no gradient is wanted."""
    return x.is_cuda and not torch.is_grad_enabled() and choose_fused(x.device).name == "triton"


def affine_norm(x_BLD: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm with learned weight and bias, computed in float32."""
    if is_fused(x_BLD):
        rows_1D = norm.weight.float()[None] - 1, norm.bias.float()[None]
        return norm_modulate(x_BLD, *rows_1D, None, norm.eps)
    y = layer_norm(
        x_BLD.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
    )
    return y.to(x_BLD.dtype)


def rms_norm(x_BLD: Tensor, norm: nn.RMSNorm) -> Tensor:
    """x / rms(x) * weight over the whole width, before any split into heads.

    In the weight's type: under autocast that is float32, and torch has no kernel for the two mixed.
    """
    y: Tensor = norm(x_BLD.to(norm.weight.dtype))
    return y.to(x_BLD.dtype)


def _of_runs(rows_RD: Tensor, index_BF: Tensor | None, batch: int) -> Tensor:
    """(B, F, D)."""
    return (
        rearrange(rows_RD, "(b f) d -> b f d", b=batch) if index_BF is None else rows_RD[index_BF]
    )


def _by_run(x_BLD: Tensor, runs: int) -> Tensor:
    """(B, L, D) seen as (B, F, L / F, D), so that rows broadcast."""
    return rearrange(x_BLD, "b (f s) d -> b f s d", f=runs)
