"""Softmax attention, dense.

B batch, L queries, S keys, H heads, D channels of a head.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# cuDNN's kernel first: on Hopper it comes near FlashAttention 3, torch's own choice is version 2
_CUDA_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attend_reference(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """The definition."""
    scores_BHLS = torch.einsum("blhd,bshd->bhls", q_BLHD, k_BSHD) / q_BLHD.shape[-1] ** 0.5
    return torch.einsum("bhls,bshd->blhd", scores_BHLS.softmax(-1), v_BSHD)


def attend(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """Every query attends to every key."""
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD))
    if not q.is_cuda:
        if q.requires_grad and torch.is_grad_enabled():
            return _attend_with_gradient(q, k, v).transpose(1, 2)
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)
    with sdpa_kernel(_CUDA_ORDER, set_priority=True):
        return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _attend_with_gradient(q_BHLD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> Tensor:
    """The definition as two products: torch's fused backward takes twice as long on a CPU."""
    scores_BHLS = (q_BHLD / q_BHLD.shape[-1] ** 0.5) @ k_BHSD.transpose(-1, -2)
    y_BHLD: Tensor = scores_BHLS.softmax(-1).to(v_BHSD.dtype) @ v_BHSD
    return y_BHLD


def attend_causal(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, tokens: int) -> Tensor:
    """Runs of `tokens` queries attend to their own and all earlier runs; the last may be shorter.

    One call per run over a prefix of the keys: no mask of L x L is ever made.
    """
    parts = [
        attend(q_BLHD[:, i : i + tokens], k_BLHD[:, : i + tokens], v_BLHD[:, : i + tokens])
        for i in range(0, q_BLHD.shape[1], tokens)
    ]
    return torch.cat(parts, dim=1)
