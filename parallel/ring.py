"""Attention of one shard of a window's queries to all of its keys, which come from rank to rank.

A shard is a run of the window's tokens and what its rank has cached. In hop h a rank gets the keys
and values of the rank h before it straight from there, while it still works on those before; where
no query of one shard sees a key of another, nothing is sent and nothing computed.
B batch, L queries, S keys, H heads, D channels of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..kernels.attention import State, attend, empty_state
from ..kernels.blocks import Blocks
from .group import Exchange, Group
from .shards import overlap


class Sight(Protocol):
    """Which keys of which shard a shard's queries see; shards by their rank in the ring."""

    def any(self, queries: int, keys: int) -> bool: ...

    def attend(
        self, queries: int, keys: int, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: State
    ) -> State:
        """What is seen of one shard, merged with what was seen before."""


@dataclass(frozen=True)
class All:
    """Every query sees every key."""

    sizes: Sequence[int]  # keys of each shard
    backend: str = "auto"

    def any(self, queries: int, keys: int) -> bool:
        return self.sizes[keys] > 0

    def attend(
        self, queries: int, keys: int, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: State
    ) -> State:
        return attend(q_BLHD, k_BSHD, v_BSHD, previous=seen, backend=self.backend)


@dataclass(frozen=True)
class Causal:
    """Runs of `tokens` see their own and all earlier runs of the window."""

    shards: Sequence[range]
    tokens: int

    def any(self, queries: int, keys: int) -> bool:
        last = (self.shards[queries].stop - 1) // self.tokens
        return self.shards[keys].start < (last + 1) * self.tokens

    def attend(
        self, queries: int, keys: int, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: State
    ) -> State:
        mine, theirs = self.shards[queries], self.shards[keys]
        states = []
        for i in range(mine.start // self.tokens, -(-mine.stop // self.tokens)):
            stop = (i + 1) * self.tokens
            run = overlap(mine, range(i * self.tokens, stop))
            rows = slice(run.start - mine.start, run.stop - mine.start)
            before = seen[0][:, rows], seen[1][:, :, rows]
            visible = len(overlap(theirs, range(stop)))
            if visible:
                k, v = k_BSHD[:, :visible], v_BSHD[:, :visible]
                before = attend(q_BLHD[:, rows], k, v, previous=before)
            states.append(before)
        return torch.cat([out for out, _ in states], dim=1), torch.cat(
            [lse for _, lse in states], dim=2
        )


@dataclass(frozen=True, eq=False)
class Listed:
    """Tiles see the tiles that are listed, of the window's tokens and the cached ones after them.

    The lists are those of this rank's heads.
    """

    blocks: Blocks
    shards: Sequence[range]
    places: Sequence[Sequence[range]]  # of every shard's keys, in the order in which it has them
    device: torch.device  # of the tokens; lists are on the host, where they are cut
    backend: str = "auto"

    @cached_property
    def here(self) -> Blocks:
        """The lists where the tokens are."""
        return self.blocks.to(self.device)

    def any(self, queries: int, keys: int) -> bool:
        return bool(self._seen[queries][keys])

    def attend(
        self, queries: int, keys: int, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: State
    ) -> State:
        first = 0
        for place in self.places[keys]:
            rows = slice(first, first + len(place))
            first = rows.stop
            cut = self._cut(queries, place)
            if cut is not None:
                k, v = k_BSHD[:, rows], v_BSHD[:, rows]
                seen = attend(q_BLHD, k, v, cut, seen, self.backend)
        return seen

    @cached_property
    def _seen(self) -> list[list[bool]]:
        everyone = range(len(self.shards))
        return [
            [any(self._cut(i, place) is not None for place in self.places[j]) for j in everyone]
            for i in everyone
        ]

    @cached_property
    def _cuts(self) -> dict[tuple[int, range], Blocks | None]:
        return {}

    def _cut(self, queries: int, place: range) -> Blocks | None:
        """The lists of one shard's queries on some keys; none if they see nothing there."""
        key = queries, place
        if key not in self._cuts:
            cut = self.blocks.cut(self.shards[queries], place) if place else None
            if cut is not None:
                cut = cut.to(self.device) if cut.columns_BHRK.shape[-1] else None
            self._cuts[key] = cut
        return self._cuts[key]


def attend_ring(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, sizes: Sequence[int], sight: Sight, group: Group
) -> State:
    """`sizes`: keys of every shard. The result has the type of the queries."""
    rank, num = group.spec.rank, group.spec.num
    own, nothing = torch.stack([k_BSHD, v_BSHD]), k_BSHD.new_empty(0)
    used = [h for h in range(num) if any(sight.any(i, (i - h) % num) for i in range(num))]

    def ask(hop: int) -> Exchange | None:
        if not hop:
            return None
        pieces, shapes = [nothing] * num, [tuple(nothing.shape)] * num
        after, before = (rank + hop) % num, (rank - hop) % num
        if sight.any(after, rank):
            pieces[after] = own
        if sight.any(rank, before):
            shapes[before] = (*own.shape[:2], sizes[before], *own.shape[3:])
        return group.exchange(pieces, shapes)

    state = empty_state(q_BLHD)
    coming = ask(used[0]) if used else None
    for i, hop in enumerate(used):
        other = (rank - hop) % num
        kv = own if coming is None else coming.wait()[other]
        coming = ask(used[i + 1]) if i + 1 < len(used) else None
        if sight.any(rank, other):
            state = sight.attend(rank, other, q_BLHD, kv[0], kv[1], state)
    return state[0].to(q_BLHD.dtype), state[1]
