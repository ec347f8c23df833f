"""Attention on a CPU by ATen's flash kernel; keys and values that lists name are gathered.

B batch, L queries, S keys, H heads, D channels of a head, G rows of tiles at once, T queries of a
tile, N keys of a list or parts of one.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .blocks import Blocks

State = tuple[Tensor, Tensor]

_SLICES = 4  # of a tile of 128 queries: the kernel gives each to a thread
_CACHED_BYTES = 2**20  # of gathered keys, then of values: half of a core's own cache


def attend_dense_cpu(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> State:
    """What scaled_dot_product_attention runs on a CPU, which keeps the log-sum-exp to itself."""
    out_BHLD, lse_BHL = _flash(*(x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD)))
    return out_BHLD.transpose(1, 2), lse_BHL


def attend_lists_cpu(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, blocks: Blocks) -> State:
    """Head by head, and one row of tiles after the other, in parts whose keys stay in a cache.

    More rows at once, with parts of equal lengths, only where one has too few queries for the
    threads.
    """
    batch, queries, heads, channels = q_BLHD.shape
    out_BHLD = q_BLHD.new_zeros(batch, heads, queries, channels)
    lse_BHL = q_BLHD.new_full((batch, heads, queries), -torch.inf, dtype=torch.float32)
    q_sizes, k_sizes = (x.diff().tolist() for x in (blocks.q_starts, blocks.k_starts))
    most_rows = -(-torch.get_num_threads() // _SLICES)
    most_keys = _CACHED_BYTES // (channels * k_BSHD.element_size())
    gather = _Gather(k_BSHD), _Gather(v_BSHD)
    for b in range(batch):
        for h in range(heads):
            rows_of = [_parts(columns, k_sizes, most_keys) for columns in _lists(blocks, b, h)]
            q, out, lse = (
                torch.split(x, q_sizes) for x in (q_BLHD[b, :, h], out_BHLD[b, h], lse_BHL[b, h])
            )
            keys, values = (
                torch.split(x_BSHD[b, :, h].contiguous(), k_sizes) for x_BSHD in (k_BSHD, v_BSHD)
            )
            for rows in _alike(rows_of, q_sizes, k_sizes, most_rows):
                q_GTD = torch.stack([q[row] for row in rows])
                states = [
                    _attend(q_GTD, keys, values, named, gather)
                    for named in zip(*(rows_of[row] for row in rows), strict=True)
                ]
                out_GTD, lse_GT = _merged(states)
                for i, row in enumerate(rows):
                    out[row].copy_(out_GTD[i])
                    lse[row].copy_(lse_GT[i])
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


def _parts(columns: Sequence[int], k_sizes: Sequence[int], most: int) -> list[list[int]]:
    """A list cut where a part would hold more keys than that; tiles stay whole, or out if empty."""
    parts: list[list[int]] = []
    held = most
    for column in columns:
        if not k_sizes[column]:
            continue
        if held + k_sizes[column] > most or not parts:
            parts.append([])
            held = 0
        parts[-1].append(column)
        held += k_sizes[column]
    return parts


def _alike(
    rows_of: Sequence[Sequence[Sequence[int]]],
    q_sizes: Sequence[int],
    k_sizes: Sequence[int],
    most: int,
) -> Iterator[list[int]]:
    """Rows with equally many queries, and keys in each part, at most so many; none without."""
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, parts in enumerate(rows_of):
        keys = [sum(k_sizes[column] for column in part) for part in parts]
        if q_sizes[row] and keys:
            groups[q_sizes[row], *keys].append(row)
    for rows in groups.values():
        yield from (rows[i : i + most] for i in range(0, len(rows), most))


def _attend(
    q_GTD: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    lists: Sequence[Sequence[int]],
    gather: tuple["_Gather", "_Gather"],
) -> State:
    """(G, T, D) and (G, T) of what the lists name. In float32 two products are faster than the
    kernel, and values are gathered over the keys, when these have done their part."""
    if q_GTD.dtype != torch.float32:
        k_GND, v_GND = gather[0](keys, lists), gather[1](values, lists)
        out_G1TD, lse_G1T = _flash(*(x[:, None] for x in (q_GTD, k_GND, v_GND)))
        return out_G1TD[:, 0], lse_G1T[:, 0]
    k_GND = gather[0](keys, lists)
    scores_GTN = torch.bmm(q_GTD / q_GTD.shape[-1] ** 0.5, k_GND.transpose(1, 2))
    most_GT1 = scores_GTN.amax(-1, keepdim=True)
    weights_GTN = scores_GTN.sub_(most_GT1).exp_()
    sum_GT1 = weights_GTN.sum(-1, keepdim=True)
    v_GND = gather[0](values, lists)
    return torch.bmm(weights_GTN, v_GND).div_(sum_GT1), (most_GT1 + sum_GT1.log())[..., 0]


def _merged(states: Sequence[State]) -> State:
    """As one; each has seen something."""
    if len(states) == 1:
        return states[0]
    out_NGTD, lse_NGT = (torch.stack(x) for x in zip(*states, strict=True))
    lse_GT = lse_NGT.logsumexp(0)
    return (out_NGTD * (lse_NGT - lse_GT).exp()[..., None]).sum(0), lse_GT


class _Gather:
    """Tiles side by side, in memory that is kept: fresh memory costs as much as the copy."""

    def __init__(self, like: Tensor) -> None:
        self._buffer = like.new_empty(0)

    def __call__(self, tiles: Sequence[Tensor], lists: Sequence[Sequence[int]]) -> Tensor:
        """(G, N, D) of lists that name equally many tokens; it holds until the next call."""
        named = [tiles[column] for columns in lists for column in columns]
        rows, width = sum(len(tile) for tile in named), named[0].shape[1]
        if len(self._buffer) < rows:
            self._buffer = named[0].new_empty(rows, width)
        out = self._buffer[:rows]
        torch.cat(named, out=out)
        return out.view(len(lists), -1, width)
