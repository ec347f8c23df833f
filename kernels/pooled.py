"""Lists by score: tiles are averaged, and a tile of queries keeps the tiles it scores highest.

B batch, L tokens, H heads, D channels of a head, R tiles of queries, C tiles of keys, K kept.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .blocks import Blocks, is_even
from .choose import choose_fused
from .tiles import Tiles, Window, tiles_of


def keep_reference(scores_BHRC: Tensor, num: int, mass: float | None) -> tuple[Tensor, Tensor]:
    """The definition: columns, rising, and counts of the `num` highest scores of a row.

    Or of the highest whose share of the row's softmax, all higher ones taken off, begins below
    `mass`; a list is then as wide as it can get, and behind its end stands the last tile.
    """
    shares_BHRC = scores_BHRC.softmax(-1)
    if mass is None:
        columns_BHRK = shares_BHRC.topk(num, dim=-1).indices.sort(-1).values.to(torch.int32)
        return columns_BHRK, columns_BHRK.new_full(columns_BHRK.shape[:-1], num)
    tiles = scores_BHRC.shape[-1]
    falling, order = shares_BHRC.sort(dim=-1, descending=True, stable=True)
    kept = falling.cumsum(-1) - falling < mass
    columns = order.masked_fill(~kept, tiles).sort(-1).values
    return columns.clamp(max=tiles - 1).to(torch.int32), kept.sum(-1, dtype=torch.int32)


def pooled(
    q_BLHD: Tensor, k_BSHD: Tensor, window: Window, keep: float, mass: float | None
) -> Blocks:
    """For each head its own: the share `keep` of all tiles, or as many as hold this softmax mass.

    Nothing waits for the device: lists are as wide as they can get.
    """
    queries, keys = tiles_of(window)
    (q_starts, q_tile, q_even), (k_starts, k_tile, k_even) = (
        _on(tiles, q_BLHD.device) for tiles in (queries, keys)
    )
    num = max(1, round(keep * keys.num))
    if q_BLHD.is_cuda and choose_fused(q_BLHD.device).name == "triton":
        from .pooled_triton import keep_triton, means_triton

        q_BHRD, k_BHCD = means_triton(q_BLHD, q_starts), means_triton(k_BSHD, k_starts)
        choose = keep_triton
    else:
        q_BHRD = means_reference(q_BLHD, q_starts, q_tile if q_even else None)
        k_BHCD = means_reference(k_BSHD, k_starts, k_tile if k_even else None)
        choose = keep_reference
    scores_BHRC = q_BHRD / q_BLHD.shape[-1] ** 0.5 @ k_BHCD.transpose(-1, -2)
    columns_BHRK, counts_BHR = choose(scores_BHRC, num, mass)
    return Blocks(
        q_starts=q_starts,
        k_starts=k_starts,
        columns_BHRK=columns_BHRK,
        counts_BHR=counts_BHR,
        q_tile=q_tile,
        k_tile=k_tile,
        alike=mass is None,
        even=k_even,
    )


@lru_cache(maxsize=32)
def _on(tiles: Tiles, device: torch.device) -> tuple[Tensor, int, bool]:
    """Their starts there, the longest, and whether all measure so much but a shorter last."""
    starts = tiles.starts
    return starts.to(device), int(starts.diff().max()), is_even(starts)


def means_reference(x_BLHD: Tensor, starts: Tensor, tile: int | None) -> Tensor:
    """(B, H, N, D) float32 of every tile; `tile`: what all measure but a shorter last."""
    if tile is not None:  # one reading of x, where adding token by token takes several
        batch, tokens, *head = x_BLHD.shape
        whole = tokens // tile * tile
        tiles = x_BLHD[:, :whole].reshape(batch, whole // tile, tile, *head)
        means_BNHD = tiles.mean(2, dtype=torch.float32)
        if whole < tokens:
            rest = x_BLHD[:, whole:].mean(1, keepdim=True, dtype=torch.float32)
            means_BNHD = torch.cat([means_BNHD, rest], dim=1)
        return means_BNHD.transpose(1, 2)
    sizes = starts.diff().long()
    num, (batch, _, heads, channels) = len(sizes), x_BLHD.shape
    of_token = torch.repeat_interleave(
        torch.arange(num, device=starts.device), sizes, output_size=x_BLHD.shape[1]
    )
    sums_BNHD = x_BLHD.new_zeros(batch, num, heads, channels, dtype=torch.float32)
    sums_BNHD.index_add_(1, of_token, x_BLHD.float())
    return (sums_BNHD / sizes[:, None, None]).transpose(1, 2)
