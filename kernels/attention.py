"""Softmax attention over all keys or over lists of tiles of them, and the merge of partial results.

B batch, L queries, S keys, H heads, D channels of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .attention_cpu import attend_dense_cpu, attend_lists_cpu
from .attention_cuda import attend_dense_cuda
from .blocks import Blocks, all_blocks
from .choose import choose_dense, choose_lists

# with a gradient: cuDNN's kernel first, as torch's own choice on Hopper is FlashAttention 2
_CUDA_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

State = tuple[Tensor, Tensor]  # result (B, L, H, D), log-sum-exp of the scores (B, H, L)


def attend_reference(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    blocks: Blocks | None = None,
    previous: State | None = None,
) -> State:
    """The definition, in float32 or more: softmax over the keys that a query sees."""
    dtype = torch.promote_types(q_BLHD.dtype, torch.float32)
    q, k, v = (x.to(dtype) for x in (q_BLHD, k_BSHD, v_BSHD))
    scores_BHLS = torch.einsum("blhd,bshd->bhls", q, k) / q.shape[-1] ** 0.5
    if blocks is not None:
        scores_BHLS = scores_BHLS.masked_fill(~blocks.visible(), -torch.inf)
    lse_BHL = scores_BHLS.logsumexp(-1)
    weights_BHLS = (scores_BHLS - _finite(lse_BHL)[..., None]).exp()
    out_BLHD = torch.einsum("bhls,bshd->blhd", weights_BHLS, v)
    if previous is not None:
        out_BLHD, lse_BHL = merge([previous, (out_BLHD, lse_BHL)])
        return out_BLHD, lse_BHL
    return out_BLHD.to(q_BLHD.dtype), lse_BHL


def attend(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    blocks: Blocks | None = None,
    previous: State | None = None,
    backend: str = "auto",
) -> State:
    """Attention, and the log-sum-exp that lets it be merged with attention to other keys.

    q (B, L, H, D), k and v (B, S, H, D) with any strides -> result (B, L, H, D), log-sum-exp
    (B, H, L), natural, float32. `blocks` lists which tiles of keys each tile of queries sees, for
    each head; none: all see all. A query that sees nothing gets 0 and -inf. `previous` is the state
    of the same queries on other keys, to be merged with this one; the result then has its type.
    choose.py decides what computes it.
    """
    if not (q_BLHD.numel() and k_BSHD.shape[1]):  # of no queries ATen's kernel ends the process
        state = empty_state(q_BLHD, q_BLHD.dtype)
    elif blocks is None:
        state = _attend_all(q_BLHD, k_BSHD, v_BSHD, backend)
    else:
        return _attend_lists(q_BLHD, k_BSHD, v_BSHD, blocks, previous, backend)
    return state if previous is None else merge([previous, state])


def _attend_all(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, backend: str) -> State:
    name = choose_dense(q_BLHD.device, q_BLHD.dtype, q_BLHD.shape[-1], backend).name
    if name == "cpu-flash":
        return attend_dense_cpu(q_BLHD, k_BSHD, v_BSHD)
    if name == "definition":
        return attend_reference(q_BLHD, k_BSHD, v_BSHD)
    if name == "triton":
        everything = all_blocks(q_BLHD.shape[1], k_BSHD.shape[1], q_BLHD.device)
        return _attend_lists(q_BLHD, k_BSHD, v_BSHD, everything, None, backend)
    return attend_dense_cuda(name, q_BLHD, k_BSHD, v_BSHD)


def _attend_lists(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    blocks: Blocks,
    previous: State | None,
    backend: str,
) -> State:
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q_BLHD, k_BSHD, v_BSHD)):
        return attend_reference(q_BLHD, k_BSHD, v_BSHD, blocks, previous)  # kernels have none
    name = choose_lists(q_BLHD.device, backend).name
    if name == "triton":
        from .attention_triton import attend_lists_triton  # Triton is not everywhere

        return attend_lists_triton(q_BLHD, k_BSHD, v_BSHD, blocks, previous)
    if name == "flex":
        from .attention_flex import attend_lists_flex

        state = attend_lists_flex(q_BLHD, k_BSHD, v_BSHD, blocks, compiled=q_BLHD.is_cuda)
    else:
        state = attend_lists_cpu(q_BLHD, k_BSHD, v_BSHD, blocks)
    return state if previous is None else merge([previous, state])


def merge(states: Sequence[State]) -> State:
    """States of the same queries on keys that no two share, as one: softmax over all their keys.

    Each (B, L, H, D) and (B, H, L). In float32; the result has the type of the first. An empty
    state (log-sum-exp -inf) adds nothing, whatever its result holds; when all are empty, the result
    is 0 and -inf. The usual form by a sigmoid of the difference gives NaN there.
    """
    lse_NBHL = torch.stack([lse for _, lse in states])
    lse_BHL = lse_NBHL.logsumexp(0)
    weights_NBLH1 = (lse_NBHL - _finite(lse_BHL)).exp().transpose(-1, -2)[..., None]
    out_BLHD = torch.zeros_like(states[0][0], dtype=lse_BHL.dtype)
    for (part_BLHD, _), weight_BLH1 in zip(states, weights_NBLH1, strict=True):
        # not a product alone: 0 times an infinity or NaN of an empty state is NaN
        part = torch.where(weight_BLH1 > 0, part_BLHD.to(lse_BHL.dtype), 0.0)
        out_BLHD = out_BLHD + part * weight_BLH1
    return out_BLHD.to(states[0][0].dtype), lse_BHL


def empty_state(q_BLHD: Tensor, dtype: torch.dtype = torch.float32) -> State:
    """Of queries that have seen no key: what merging begins with. (B, L, H, D) zeros, -inf."""
    batch, queries, heads, _ = q_BLHD.shape
    lse_BHL = q_BLHD.new_full((batch, heads, queries), -torch.inf, dtype=torch.float32)
    return torch.zeros_like(q_BLHD, dtype=dtype), lse_BHL


def attend_dense(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
    """Every query attends to every key; the result alone, with a gradient where one is wanted."""
    if not torch.is_grad_enabled() or not q_BLHD.requires_grad:
        return attend(q_BLHD, k_BSHD, v_BSHD)[0]
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD))
    if not q.is_cuda:
        return _attend_with_gradient(q, k, v).transpose(1, 2)
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
        attend_dense(q_BLHD[:, i : i + tokens], k_BLHD[:, : i + tokens], v_BLHD[:, : i + tokens])
        for i in range(0, q_BLHD.shape[1], tokens)
    ]
    return torch.cat(parts, dim=1)


def _finite(lse: Tensor) -> Tensor:
    """So that -inf minus it stays -inf, where -inf minus -inf is NaN."""
    return lse.clamp(min=torch.finfo(lse.dtype).min)
