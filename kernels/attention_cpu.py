"""Attention on a CPU by ATen's flash kernel; keys that lists name are gathered for it.

B batch, L queries, S keys, H heads, D channels of a head, G rows of tiles at once, T queries of a
tile, N keys of a list.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .blocks import Blocks

State = tuple[Tensor, Tensor]

_SLICES = 4  # of a tile of 128 queries: the kernel gives each to a thread


def attend_dense_cpu(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> State:
    """What scaled_dot_product_attention runs on a CPU, which keeps the log-sum-exp to itself."""
    out_BHLD, lse_BHL = _flash(*(x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD)))
    return out_BHLD.transpose(1, 2), lse_BHL


def attend_lists_cpu(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, blocks: Blocks) -> State:
    """Head by head, and one row of tiles after the other: what is gathered stays in a cache.

    More rows at once, with equally many keys, only where one has too few queries for the threads.
    """
    batch, queries, heads, channels = q_BLHD.shape
    out_BHLD = q_BLHD.new_zeros(batch, heads, queries, channels)
    lse_BHL = q_BLHD.new_full((batch, heads, queries), -torch.inf, dtype=torch.float32)
    q_sizes, k_sizes = (x.diff().tolist() for x in (blocks.q_starts, blocks.k_starts))
    most = -(-torch.get_num_threads() // _SLICES)
    for b in range(batch):
        for h in range(heads):
            lists = _lists(blocks, b, h)
            q, out, lse = (
                torch.split(x, q_sizes) for x in (q_BLHD[b, :, h], out_BHLD[b, h], lse_BHL[b, h])
            )
            keys, values = (_Tiles(x_BSHD[b, :, h], k_sizes) for x_BSHD in (k_BSHD, v_BSHD))
            for rows in _alike(lists, q_sizes, k_sizes, most):
                named = [lists[row] for row in rows]
                q_G1TD = torch.stack([q[row] for row in rows])[:, None]
                out_G1TD, lse_G1T = _flash(q_G1TD, keys.gather(named), values.gather(named))
                for i, row in enumerate(rows):
                    out[row].copy_(out_G1TD[i, 0])
                    lse[row].copy_(lse_G1T[i, 0])
    return out_BHLD.transpose(1, 2), lse_BHL


def _flash(q_BHLD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> State:
    out_BHLD, lse_BHL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHLD, k_BHSD, v_BHSD
    )
    return out_BHLD, lse_BHL


def _lists(blocks: Blocks, b: int, h: int) -> list[list[int]]:
    """Of one head: the tiles of keys that each tile of queries sees."""
    columns_HRK, counts_HR = (
        x[min(b, x.shape[0] - 1)] for x in (blocks.columns_BHRK, blocks.counts_BHR)
    )
    columns_RK, counts_R = (x[min(h, x.shape[0] - 1)] for x in (columns_HRK, counts_HR))
    pairs = zip(columns_RK.tolist(), counts_R.tolist(), strict=True)
    return [columns[:count] for columns, count in pairs]


def _alike(
    lists: Sequence[Sequence[int]], q_sizes: Sequence[int], k_sizes: Sequence[int], most: int
) -> Iterator[list[int]]:
    """Rows with as many queries and keys as each other, at most so many; none without."""
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, columns in enumerate(lists):
        groups[q_sizes[row], sum(k_sizes[column] for column in columns)].append(row)
    for (queries, keys), rows in groups.items():
        if queries and keys:
            yield from (rows[i : i + most] for i in range(0, len(rows), most))


class _Tiles:
    """Keys or values of one head, in tiles."""

    def __init__(self, x_SD: Tensor, sizes: Sequence[int]) -> None:
        self._tiles = torch.split(x_SD.contiguous(), list(sizes))
        # kept: fresh memory for every row costs as much as the copy
        self._buffer = x_SD.new_empty(0)

    def gather(self, lists: Sequence[Sequence[int]]) -> Tensor:
        """(G, 1, N, D) of lists that name equally many tokens; it holds until the next call."""
        tiles = [self._tiles[column] for columns in lists for column in columns]
        rows, width = sum(len(tile) for tile in tiles), tiles[0].shape[1]
        if len(self._buffer) < rows:
            self._buffer = tiles[0].new_empty(rows, width)
        out = self._buffer[:rows]
        torch.cat(tiles, out=out)
        return out.view(len(lists), 1, -1, width)
