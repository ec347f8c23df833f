"""Lists of tiles: which runs of keys each run of queries attends to, head by head.

B batch, H heads (either may be 1: the same for all), R tiles of queries, C tiles of keys, K columns
of the longest list, L queries, S keys.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks:
    """Tiles are consecutive runs of tokens of any length; a listed pair of tiles is seen whole."""

    q_starts: Tensor  # (R + 1,) int32: where each tile of queries starts, then how many queries
    k_starts: Tensor  # (C + 1,) int32
    columns_BHRK: Tensor  # int32, rising: tiles of keys; those behind a list's end are not read
    counts_BHR: Tensor  # int32: how long each list is
    q_tile: int  # longest tile of queries, known on the host
    k_tile: int
    alike: bool = False  # all lists are known to be equally long
    even: bool = False  # all tiles of keys are known to be k_tile long, but a shorter last

    @staticmethod
    def from_mask(mask_BHRC: Tensor, q_starts: Tensor, k_starts: Tensor) -> "Blocks":
        """Of a mask of booleans."""
        counts_BHR = mask_BHRC.sum(-1, dtype=torch.int32)
        longest = int(counts_BHR.max()) if counts_BHR.numel() else 0
        order = torch.sort(mask_BHRC.to(torch.uint8), dim=-1, descending=True, stable=True)
        return Blocks(
            q_starts=q_starts.to(torch.int32),
            k_starts=k_starts.to(torch.int32),
            columns_BHRK=order.indices[..., :longest].to(torch.int32),
            counts_BHR=counts_BHR,
            q_tile=_longest_tile(q_starts),
            k_tile=_longest_tile(k_starts),
            alike=bool((counts_BHR == longest).all()),
            even=is_even(k_starts),
        )

    @property
    def num_queries(self) -> int:
        return int(self.q_starts[-1])

    @property
    def num_keys(self) -> int:
        return int(self.k_starts[-1])

    def mask(self) -> Tensor:
        """(B, H, R, C) booleans: the lists as a table."""
        listed = torch.arange(self.columns_BHRK.shape[-1], device=self.columns_BHRK.device)
        listed_BHRK = listed < self.counts_BHR[..., None]
        shape = (*self.counts_BHR.shape, len(self.k_starts))  # one more, for what is not read
        columns = self.columns_BHRK.long().masked_fill(~listed_BHRK, shape[-1] - 1)
        mask = torch.zeros(shape, dtype=torch.bool, device=columns.device)
        return mask.scatter_(-1, columns, True)[..., :-1]

    def visible(self) -> Tensor:
        """(B, H, L, S) booleans: which keys each query sees. As large as the scores."""
        rows_L, columns_S = (
            torch.repeat_interleave(
                torch.arange(len(starts) - 1, device=starts.device), _sizes(starts)
            )
            for starts in (self.q_starts, self.k_starts)
        )
        return self.mask()[:, :, rows_L][..., columns_S]

    def complement(self) -> "Blocks":
        """Every pair of tiles that is not listed."""
        return Blocks.from_mask(~self.mask(), self.q_starts, self.k_starts)

    def num_pairs(self) -> Tensor:
        """Pairs of query and key that each head computes: what it costs. (B, H) int64."""
        rows_R, columns_C = _sizes(self.q_starts), _sizes(self.k_starts)
        keys_BHR = (self.mask() * columns_C).sum(-1)
        return (keys_BHR * rows_R).sum(-1)

    def density(self) -> float:
        """Share of all pairs of query and key that is computed."""
        total = self.num_queries * self.num_keys
        return float(self.num_pairs().double().mean() / total) if total else 0.0

    def heads(self, heads: slice | list[int]) -> "Blocks":
        """The lists of some heads; lists that all heads share stay as they are."""
        if self.counts_BHR.shape[1] == 1:
            return self
        return replace(
            self,
            columns_BHRK=self.columns_BHRK[:, heads],
            counts_BHR=self.counts_BHR[:, heads],
        )

    def cut(self, queries: range, keys: range) -> "Blocks":
        """The lists of a run of queries on a run of keys, both numbered from their own start.

        Runs may cut tiles; a row may be left without any.
        """
        rows, q_starts = _cut_starts(self.q_starts, queries)
        columns, k_starts = _cut_starts(self.k_starts, keys)
        return Blocks.from_mask(self.mask()[:, :, rows, columns], q_starts, k_starts)

    def to(self, device: torch.device) -> "Blocks":
        return replace(
            self,
            q_starts=self.q_starts.to(device),
            k_starts=self.k_starts.to(device),
            columns_BHRK=self.columns_BHRK.to(device),
            counts_BHR=self.counts_BHR.to(device),
        )


def even_starts(num_tokens: int, tile: int) -> Tensor:
    """Tiles of one size; the last may be shorter."""
    return torch.tensor([*range(0, num_tokens, tile), num_tokens], dtype=torch.int32)


def all_blocks(num_queries: int, num_keys: int, device: torch.device, tile: int = 128) -> Blocks:
    """Every query sees every key."""
    starts = [even_starts(num, tile).to(device) for num in (num_queries, num_keys)]
    columns = torch.arange(len(starts[1]) - 1, dtype=torch.int32, device=device)
    rows = len(starts[0]) - 1
    return Blocks(
        q_starts=starts[0],
        k_starts=starts[1],
        columns_BHRK=columns.expand(1, 1, rows, -1),
        counts_BHR=columns.new_full((1, 1, rows), len(columns)),
        q_tile=min(tile, num_queries),
        k_tile=min(tile, num_keys),
        alike=True,
        even=True,
    )


def is_even(starts: Tensor) -> bool:
    """Whether all tiles but a shorter last one are of one size."""
    sizes = starts.diff()
    return len(sizes) == 0 or bool((sizes[:-1] == sizes[0]).all() and sizes[-1] <= sizes[0])


def _sizes(starts: Tensor) -> Tensor:
    return starts.diff().long()


def _longest_tile(starts: Tensor) -> int:
    return int(starts.diff().max()) if len(starts) > 1 else 0


def _cut_starts(starts: Tensor, run: range) -> tuple[slice, Tensor]:
    """Which tiles have tokens of the run, and where they start in it."""
    edges = starts.tolist()
    tiles = [i for i in range(len(edges) - 1) if edges[i] < run.stop and edges[i + 1] > run.start]
    first, last = (tiles[0], tiles[-1] + 1) if tiles else (0, 0)
    cut = [min(max(edge, run.start), run.stop) - run.start for edge in edges[first : last + 1]]
    return slice(first, last), torch.tensor(cut, dtype=torch.int32, device=starts.device)
