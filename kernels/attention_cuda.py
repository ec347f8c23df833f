"""Attention to all keys on a GPU, by torch's kernels or flash-attn, with its log-sum-exp.

B batch, L queries, S keys, H heads, D channels of a head.
"""

from torch import Tensor, ops

State = tuple[Tensor, Tensor]


def attend_dense_cuda(name: str, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> State:
    """`name` is what kernels/choose.py chose: cudnn, flash, efficient or flash-attn."""
    if name == "flash-attn":
        return _flash_attn(q_BLHD, k_BSHD, v_BSHD)
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD))
    if name == "cudnn":
        out, lse = ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
    elif name == "flash":
        out, lse = ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:
        out, lse = ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
    # cuDNN's may have a last dimension of one, and that of the efficient kernel is padded
    lse_BHL = lse.reshape(*lse.shape[:2], -1)[..., : q.shape[2]]
    return out.transpose(1, 2), lse_BHL


def _flash_attn(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> State:
    from flash_attn import flash_attn_func

    out_BLHD, lse_BHL, _ = flash_attn_func(q_BLHD, k_BSHD, v_BSHD, return_attn_probs=True)
    return out_BLHD, lse_BHL
