"""Attention over lists of tiles by torch's FlexAttention: what our own kernels are checked against.

B batch, L queries, S keys, H heads, D channels of a head, R tiles of queries, C tiles of keys.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from .blocks import Blocks, is_even

State = tuple[Tensor, Tensor]


def attend_lists_flex(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, blocks: Blocks, *, compiled: bool = True
) -> State:
    """Tiles of one size but for the last. Compiled on a CPU it has no log-sum-exp: then NaN.

    Not compiled it makes all scores, in a second or two per thousand tokens.
    """
    if not (is_even(blocks.q_starts) and is_even(blocks.k_starts)):
        raise ValueError(
            "attention.backend=flex takes tiles of one size, and this window's differ; set "
            "attention.backend=auto"
        )
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD))
    mask = block_mask(blocks, q.shape[0], q.shape[1])
    if compiled and not q.is_cuda:
        out = _compiled()(q, k, v, block_mask=mask)
        return out.transpose(1, 2), torch.full(q.shape[:3], torch.nan)
    call: Any = _compiled() if compiled else flex_attention
    out, aux = call(q, k, v, block_mask=mask, return_aux=AuxRequest(lse=True))
    return out.transpose(1, 2), aux.lse


def block_mask(blocks: Blocks, batch: int, heads: int) -> BlockMask:
    """Our lists as FlexAttention's: all of whole tiles. Not compiled it reads the table instead."""
    num_columns = len(blocks.k_starts) - 1
    counts_BHR = blocks.counts_BHR.expand(batch, heads, -1).contiguous()
    columns = blocks.columns_BHRK.expand(batch, heads, -1, -1)
    columns_BHRC = torch.nn.functional.pad(columns, (0, num_columns - columns.shape[-1]))
    mask_BHRC = blocks.mask().expand(batch, heads, -1, -1)
    q_tile, k_tile = blocks.q_tile, blocks.k_tile

    def listed(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask_BHRC[b, h, query // q_tile, key // k_tile]

    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts_BHR),
        torch.zeros_like(columns_BHRC),
        counts_BHR,
        columns_BHRC.contiguous(),
        BLOCK_SIZE=(q_tile, k_tile),
        mask_mod=listed,
        seq_lengths=(blocks.num_queries, blocks.num_keys),
        compute_q_blocks=False,
    )


@cache
def _compiled() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled
