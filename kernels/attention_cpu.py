"""Attention on a CPU by ATen's flash kernel; keys that lists name are gathered for it.

B batch, L queries, S keys, H heads, D channels of a head, R tiles of queries, C tiles of keys, K
columns of the longest list, G rows of tiles at once, T queries of a tile, N keys of a list.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from .blocks import Blocks, is_even

State = tuple[Tensor, Tensor]


def attend_dense_cpu(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> State:
    """What scaled_dot_product_attention runs on a CPU, which keeps the log-sum-exp to itself."""
    out_BHLD, lse_BHL = _flash(*(x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD)))
    return out_BHLD.transpose(1, 2), lse_BHL


def attend_lists_cpu(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, blocks: Blocks) -> State:
    """Head by head; rows of tiles with equally many keys go through together, one per thread."""
    batch, queries, heads, _ = q_BLHD.shape
    out_BLHD = torch.zeros_like(q_BLHD)
    lse_BHL = q_BLHD.new_full((batch, heads, queries), -torch.inf, dtype=torch.float32)
    starts = blocks.q_starts.tolist()
    for b in range(batch):
        for h in range(heads):
            keys = _Keys(k_BSHD[b, :, h], v_BSHD[b, :, h], blocks, b, h)
            for rows, num in keys.alike(blocks.q_starts, torch.get_num_threads()):
                q_GTD = torch.stack([q_BLHD[b, starts[r] : starts[r + 1], h] for r in rows])
                k_GND, v_GND = keys.gather(rows, num)
                out_G1TD, lse_G1T = _flash(q_GTD[:, None], k_GND[:, None], v_GND[:, None])
                for r, out_1TD, lse_1T in zip(rows, out_G1TD, lse_G1T, strict=True):
                    out_BLHD[b, starts[r] : starts[r + 1], h] = out_1TD[0]
                    lse_BHL[b, h, starts[r] : starts[r + 1]] = lse_1T[0]
    return out_BLHD, lse_BHL


def _flash(q_BHLD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> State:
    out_BHLD, lse_BHL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHLD, k_BHSD, v_BHSD
    )
    return out_BHLD, lse_BHL


class _Keys:
    """Keys and values of one head, and what its lists name of them.

    Gathered a tile at a time where tiles are even, else a token at a time, which is slower. Into
    buffers that are kept: fresh memory for every row costs as much as the copy.
    """

    def __init__(self, k_SD: Tensor, v_SD: Tensor, blocks: Blocks, b: int, h: int) -> None:
        columns_HRK, counts_HR = (
            x[min(b, x.shape[0] - 1)] for x in (blocks.columns_BHRK, blocks.counts_BHR)
        )
        self._columns_RK, counts_R = (x[min(h, x.shape[0] - 1)] for x in (columns_HRK, counts_HR))
        self._counts = counts_R.tolist()
        self._starts_C, self._sizes_C = blocks.k_starts[:-1], blocks.k_starts.diff()
        listed_RK = torch.arange(self._columns_RK.shape[1]) < counts_R[:, None]
        columns_RK = self._columns_RK.masked_fill(~listed_RK, 0)
        self._num_keys = (self._sizes_C[columns_RK] * listed_RK).sum(1).tolist()
        self._unit = blocks.k_tile if is_even(blocks.k_starts) else 1  # tokens copied together
        self._sources = [self._in_units(x_SD) for x_SD in (k_SD, v_SD)]
        self._buffers = [k_SD.new_empty(0), v_SD.new_empty(0)]

    def alike(self, q_starts: Tensor, most: int) -> Iterator[tuple[list[int], int]]:
        """Rows with as many queries and keys as each other, at most so many; how many keys."""
        groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for row, size in enumerate(q_starts.diff().tolist()):
            groups[size, self._num_keys[row]].append(row)
        for (size, num), rows in groups.items():
            if size and num:
                yield from ((rows[i : i + most], num) for i in range(0, len(rows), most))

    def gather(self, rows: list[int], num: int) -> tuple[Tensor, Tensor]:
        """(G, N, D) keys and values of the lists of these rows."""
        index = torch.cat([self._units(row) for row in rows])
        k_GND, v_GND = (self._read(i, index, len(rows))[:, :num] for i in (0, 1))
        return k_GND, v_GND

    def _read(self, which: int, index: Tensor, rows: int) -> Tensor:
        source = self._sources[which]
        size = len(index) * source.shape[1]
        if self._buffers[which].numel() < size:
            self._buffers[which] = source.new_empty(size)
        out = self._buffers[which][:size].view(len(index), -1)
        torch.index_select(source, 0, index, out=out)
        return out.view(rows, -1, source.shape[1] // self._unit)

    def _units(self, row: int) -> Tensor:
        columns = self._columns_RK[row, : self._counts[row]]
        if self._unit > 1:
            return columns  # a shorter last tile comes last, and its padding behind the keys
        sizes = self._sizes_C[columns]
        offsets = self._starts_C[columns] - (sizes.cumsum(0) - sizes)
        return torch.arange(self._num_keys[row]) + offsets.repeat_interleave(sizes)

    def _in_units(self, x_SD: Tensor) -> Tensor:
        tokens, width = x_SD.shape
        padding = -tokens % self._unit
        whole = torch.nn.functional.pad(x_SD, (0, 0, 0, padding)) if padding else x_SD
        return whole.reshape(-1, self._unit * width)
