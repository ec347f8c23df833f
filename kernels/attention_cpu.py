"""Attention on a CPU by ATen's kernels; keys that lists name are gathered for them.

B batch, L queries, S keys, H heads, D channels of a head, R tiles of queries, C tiles of keys, K
columns of the longest list, G rows of tiles at once, T queries of a tile, N keys of a list.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from .blocks import Blocks

State = tuple[Tensor, Tensor]

_ROWS = 4  # per thread: what Python costs is shared, and their keys stay in a cache
_SCORES = 2**18  # of one row at once, a MiB: they are read and written four times


def attend_dense_cpu(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> State:
    """What scaled_dot_product_attention runs on a CPU, which keeps the log-sum-exp to itself."""
    out_BHLD, lse_BHL = _flash(*(x.transpose(1, 2) for x in (q_BLHD, k_BSHD, v_BSHD)))
    return out_BHLD.transpose(1, 2), lse_BHL


def attend_lists_cpu(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, blocks: Blocks) -> State:
    """Head by head; rows of tiles with equally many keys go through together."""
    batch, queries, heads, channels = q_BLHD.shape
    out_BHLD = q_BLHD.new_zeros(batch, heads, queries, channels)
    lse_BHL = q_BLHD.new_full((batch, heads, queries), -torch.inf, dtype=torch.float32)
    call = _products if q_BLHD.dtype == torch.float32 else _flash
    for b in range(batch):
        for h in range(heads):
            q_LD = q_BLHD[b, :, h]
            keys = _Keys(k_BSHD[b, :, h], v_BSHD[b, :, h], blocks, b, h)
            for rows, num in keys.alike(blocks.q_starts, _ROWS * torch.get_num_threads()):
                index = _tokens(blocks.q_starts, rows)
                q_G1TD = q_LD.index_select(0, index).view(len(rows), 1, -1, channels)
                k_GND, v_GND = keys.gather(rows, num)
                out_G1TD, lse_G1T = call(q_G1TD, k_GND[:, None], v_GND[:, None])
                out_BHLD[b, h].index_copy_(0, index, out_G1TD.reshape(-1, channels))
                lse_BHL[b, h].index_copy_(0, index, lse_G1T.flatten())
    return out_BHLD.transpose(1, 2), lse_BHL


def _flash(q_BHLD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> State:
    out_BHLD, lse_BHL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHLD, k_BHSD, v_BHSD
    )
    return out_BHLD, lse_BHL


def _products(q_BHLD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> State:
    """In float32 two products are faster: the flash kernel takes so few queries by 32."""
    parts = []
    for q in (q_BHLD / q_BHLD.shape[-1] ** 0.5).split(max(1, _SCORES // k_BHSD.shape[2]), dim=2):
        scores_BHLS = q @ k_BHSD.transpose(-1, -2)
        top_BHL1 = scores_BHLS.amax(-1, keepdim=True)
        weights_BHLS = scores_BHLS.sub_(top_BHL1).exp_()
        total_BHL1 = weights_BHLS.sum(-1, keepdim=True)
        parts.append((weights_BHLS @ v_BHSD / total_BHL1, top_BHL1 + total_BHL1.log()))
    out_BHLD, lse_BHL1 = (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
    return out_BHLD, lse_BHL1[..., 0]


def _tokens(starts: Tensor, rows: list[int]) -> Tensor:
    """Of tiles that are as long as each other, one after the other."""
    first_G, size = starts[rows].long(), int(starts[rows[0] + 1] - starts[rows[0]])
    return (first_G[:, None] + torch.arange(size)).flatten()


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
        self._unit = blocks.k_tile if blocks.even else 1  # tokens copied together
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
        """(G, N, D) keys and values of the lists of these rows, which hold until the next call."""
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
