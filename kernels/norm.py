"""Normalisation and what follows it: modulation by a level's row, and the gated residual.

B batch, L tokens, F runs of tokens that share a row (L = F * tokens of a run), D channels.
Rows are float32 of shape (1, 1, D) when every token shares one, else (B, F, D) with F dividing L:
they stay as small as the number of levels, and are never expanded per token.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import layer_norm


def norm_modulate(x_BLD: Tensor, scale_BFD: Tensor, shift_BFD: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, computed in float32."""
    width = x_BLD.shape[-1:]
    if scale_BFD.shape[:2] == (1, 1):  # one row: the affine part of the norm itself, one pass
        weight, bias = 1 + scale_BFD[0, 0], shift_BFD[0, 0]
        return layer_norm(x_BLD.float(), width, weight, bias, eps).to(x_BLD.dtype)
    y_BFSD = _by_run(layer_norm(x_BLD.float(), width, None, None, eps), scale_BFD)
    y_BFSD = torch.addcmul(shift_BFD[:, :, None], y_BFSD, 1 + scale_BFD[:, :, None])
    return y_BFSD.reshape(x_BLD.shape).to(x_BLD.dtype)


def gated_residual(x_BLD: Tensor, y_BLD: Tensor, gate_BFD: Tensor) -> Tensor:
    """x + y * gate, computed in float32."""
    if gate_BFD.shape[:2] == (1, 1):
        return torch.addcmul(x_BLD.float(), y_BLD.float(), gate_BFD).to(x_BLD.dtype)
    x, y = _by_run(x_BLD.float(), gate_BFD), _by_run(y_BLD.float(), gate_BFD)
    return torch.addcmul(x, y, gate_BFD[:, :, None]).reshape(x_BLD.shape).to(x_BLD.dtype)


def affine_norm(x_BLD: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm with learned weight and bias, computed in float32."""
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


def _by_run(x_BLD: Tensor, rows_BFD: Tensor) -> Tensor:
    """(B, L, D) seen as (B, F, L / F, D), so that rows broadcast."""
    return rearrange(x_BLD, "b (f s) d -> b f s d", f=rows_BFD.shape[1])
