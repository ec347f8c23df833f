"""One device's share of every window of a stage that several devices run: tokens and heads.

Between layers a rank has a run of the window's tokens. Inside attention the ranks of an Ulysses
line exchange them for heads: each then has the tokens of all of them, its shard, with some of the
heads. Shards are joined by a ring, round which keys and values go. The model does not know: it is
given another way for a window's tokens to see each other. Queries and keys are normalised over all
heads before any exchange, and turned to their positions after it.
B batch, L tokens, H heads, D channels of a head or width, C columns of a rotary table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.attention import attend, attend_causal
from ..kernels.blocks import Blocks
from ..kernels.rope import rotate
from ..models.protocol import DiTState, WindowShape
from ..models.wan import WanDiT
from .cache import WindowCache
from .group import Group, GroupSpec
from .heads import Heads, to_heads, to_tokens
from .ring import All, Causal, Listed, Sight, attend_ring
from .shards import cut_window, own_part, share_heads, shift
from .snapshot import Place
from .sparse import WindowAttention

# of a layer: who attends to whom, in the window's tokens and then the cached ones; none: all to all
Lists = Callable[[int], Blocks | None]


@dataclass(frozen=True)
class Line:
    """Devices that differ on one dimension of the mesh: this one's place, and their group."""

    rank: int = 0
    num: int = 1
    group: Group | None = None  # none: it is alone

    @classmethod
    def of(cls, group: Group | None) -> "Line":
        return cls() if group is None else cls(group.spec.rank, group.spec.num, group)


class Dealt(NamedTuple):
    """Of lists: which heads are whose by what they cost, and what this rank sees."""

    heads: Heads
    listed: Listed


# lists, whether heads are shared evenly whatever they cost, and where each shard's keys are
Deal = tuple[Blocks, bool, tuple[tuple[range, ...], ...]]
_DEALT = 8  # windows have few kinds, which take turns, and most layers the same lists


class Share:
    """One rank of a stage; the ranks of an Ulysses line have neighbouring runs of tokens."""

    def __init__(self, ring: Group | None, ulysses: Group | None) -> None:
        self.ring, self.ulysses = Line.of(ring), Line.of(ulysses)
        self._groups = [group for group in (ring, ulysses) if group is not None]
        self.dealt: dict[Deal, Dealt] = {}  # the last few
        # of every head, by pass and layer: what it listed last. Not with a stage: in the next epoch
        # some of these are new, and all ranks must know the same
        self.costs: dict[tuple[int, int], list[int]] = {}

    @property
    def num(self) -> int:
        return self.ring.num * self.ulysses.num

    @property
    def leads(self) -> bool:
        """Whether the stage's results come together here."""
        return self.ring.rank == self.ulysses.rank == 0

    @property
    def place(self) -> Place:
        return Place(
            shard=self.ring.rank,
            num_shards=self.ring.num,
            part=self.ulysses.rank,
            num_parts=self.ulysses.num,
        )

    def take(self, state: DiTState) -> DiTState:
        """This rank's part of a window that is whole."""
        return own_part(state, self.runs(state.window)[self.ring.rank][self.ulysses.rank])

    def runs(self, window: WindowShape) -> list[list[range]]:
        """A window's tokens, by rank of the ring and of the Ulysses line."""
        runs, num = cut_window(window, self.num), self.ulysses.num
        return [runs[i : i + num] for i in range(0, self.num, num)]

    def shards(self, window: WindowShape) -> list[range]:
        """A window's tokens, by rank of the ring."""
        return [range(line[0].start, line[-1].stop) for line in self.runs(window)]

    def run_layers(
        self,
        model: WanDiT,
        state: DiTState,
        layers: range,
        cache: WindowCache | None = None,
        lists: Lists = lambda layer: None,
        attend_heads: WindowAttention | None = None,
        backend: str = "auto",
    ) -> DiTState:
        """As the model's, of this rank's part; every rank of the stage calls it.

        `attend_heads` in place of lists: how whole windows of some heads see each other, which
        the ranks of a single Ulysses line have. `backend`: what is asked to compute all else.
        """
        assert attend_heads is None or self.ring.group is None
        window = SharedWindow(self, model, state, cache, lists, attend_heads, backend)
        state = model.run_layers(state, layers, None, window.attend)
        listed = window.exchange_listed()
        for group in self._groups:
            group.settle()
        window.weigh(listed)
        return state

    def head(self, model: WanDiT, state: DiTState) -> Tensor | None:
        """The whole window's velocity where the stage's results come together."""
        runs, y_BLP = self.runs(state.window), model.project(state)
        y_BLP = _gather(y_BLP, [len(run) for run in runs[self.ring.rank]], self.ulysses)
        if self.ulysses.rank == 0:
            y_BLP = _gather(y_BLP, [sum(map(len, line)) for line in runs], self.ring)
        return model.unpatchify(y_BLP, state.window) if self.leads else None

    def close(self) -> None:
        for group in self._groups:
            group.close()


def open_share(ring: GroupSpec | None, ulysses: GroupSpec | None) -> Share | None:
    """None where a stage is one device."""
    if ring is None and ulysses is None:
        return None
    return Share(*(None if spec is None else Group(spec) for spec in (ring, ulysses)))


class SharedWindow:
    """How the tokens of one window see each other where each rank has a part of them."""

    def __init__(
        self,
        share: Share,
        model: WanDiT,
        state: DiTState,
        cache: WindowCache | None,
        lists: Lists,
        attend_heads: WindowAttention | None,
        backend: str,
    ) -> None:
        self._attend_heads, self._backend = attend_heads, backend
        self._share, self._ring, self._ulysses = share, share.ring, share.ulysses
        self._cache, self._lists = cache, lists
        runs = share.runs(state.window)
        self._lengths = [len(run) for run in runs[self._ring.rank]]
        self._shards = share.shards(state.window)
        # of every shard: its tokens of the window, and what it has cached, numbered after them
        cached = cache.places() if cache is not None else [[] for _ in runs]
        end = self._shards[-1].stop
        self._places = [
            [shard, *(shift(place, end) for place in theirs)]
            for shard, theirs in zip(self._shards, cached, strict=True)
        ]
        mine = self._shards[self._ring.rank]
        rotary = model.rotary(state.window, state.tokens_BLD.device)
        self._q_table_LC = rotary.own_LC[mine.start : mine.stop]
        self._k_table_LC = torch.cat(
            [rotary.all_LC[place.start : place.stop] for place in self._places[self._ring.rank]]
        )
        self._even = _even_heads(model.arch.num_heads, self._ulysses.num)
        # not where ranks have unlike numbers of heads: kernels may sum in another order for these,
        # and a render that goes on from a checkpoint knows no costs yet
        self._by_cost = cache is None and model.arch.num_heads % self._ulysses.num == 0
        self._dealt: dict[int, Heads] = {}  # by layer: heads whose lists follow from what is read
        latent = state.window.height * state.window.width
        self._causal = state.window.causal_latents * latent
        assert not (self._causal and any(cached)), "causal runs take no keys from elsewhere"

    def attend(self, layer: int, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        blocks, heads, listed = self._lists(layer), self._heads(layer), None
        if blocks is not None:
            heads, listed = self._deal(blocks)
        group, rank = self._ulysses.group, self._ulysses.rank
        q, k, v = q_BLHD, k_BLHD, v_BLHD
        if group is not None:
            q, k, v = to_heads((q, k, v), heads, self._lengths, rank, group.swap)
        if self._cache is not None:
            self._cache.write(layer, k, v)
            if (extra := self._cache.read(layer)) is not None:
                k, v = (torch.cat(pair, dim=1) for pair in zip((k, v), extra, strict=True))
        q, k = rotate(q, self._q_table_LC), rotate(k, self._k_table_LC)
        if self._attend_heads is not None:
            y = self._attend_heads(layer, q, k, v)
        else:
            y = self._attend(q, k, v, listed)
        return y if group is None else to_tokens(y, heads, self._lengths, rank, group.swap)

    def _attend(
        self, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, listed: Listed | None
    ) -> Tensor:
        """Of one shard's queries, on some heads."""
        if self._ring.group is not None:
            sizes = [sum(map(len, places)) for places in self._places]
            sight: Sight = listed or All(sizes, self._backend)
            if self._causal:
                assert listed is None, "lists say themselves which runs see which"
                sight = Causal(self._shards, self._causal)
            return attend_ring(q_BLHD, k_BSHD, v_BSHD, sizes, sight, self._ring.group)[0]
        if self._causal:
            return attend_causal(q_BLHD, k_BSHD, v_BSHD, self._causal)
        blocks = None if listed is None else listed.here
        return attend(q_BLHD, k_BSHD, v_BSHD, blocks, backend=self._backend)[0]

    def exchange_listed(self) -> Tensor | None:
        """By layer, what all heads have listed, in the order in which they were dealt; every rank
        of an Ulysses line calls it. None where they do not differ or stay where they are."""
        attention, group = self._attend_heads, self._ulysses.group
        if attention is None or group is None or not self._by_cost or not attention.listed:
            return None
        mine = torch.stack([counts_BHR.sum((0, 2)) for counts_BHR in attention.listed.values()])
        num = self._ulysses.num
        return torch.cat(group.swap([mine] * num, [tuple(mine.shape)] * num), dim=1)

    def weigh(self, listed: Tensor | None) -> None:
        """From the next window on, heads are dealt by that."""
        attention = self._attend_heads
        if attention is None or listed is None:
            return
        for layer, row in zip(attention.listed, listed.tolist(), strict=True):
            order = [head for theirs in self._dealt[layer] for head in theirs]
            costs = [cost for _, cost in sorted(zip(order, row, strict=True))]
            self._share.costs[attention.passing, layer] = costs

    def _heads(self, layer: int) -> Heads:
        """Of every rank; where lists follow from queries and keys, by what these last cost."""
        if self._attend_heads is None:
            return self._even
        key = self._attend_heads.passing, layer
        costs = self._share.costs.get(key) if self._by_cost else None
        self._dealt[layer] = share_heads(costs, self._ulysses.num) if costs else self._even
        return self._dealt[layer]

    def _deal(self, blocks: Blocks) -> Dealt:
        """A window that reads or leaves cached keys keeps the heads that they were made of."""
        even = self._cache is not None or blocks.counts_BHR.shape[1] == 1
        kept, deal = self._share.dealt, (blocks, even, tuple(map(tuple, self._places)))
        dealt = kept.pop(deal, None)
        if dealt is None:
            heads = self._even
            if not even:
                heads = share_heads(blocks.num_pairs().sum(0).tolist(), self._ulysses.num)
            mine = blocks.heads(list(heads[self._ulysses.rank]))
            device = self._k_table_LC.device
            listed = Listed(mine, self._shards, self._places, device, self._backend)
            dealt = Dealt(heads, listed)
            if len(kept) == _DEALT:
                del kept[next(iter(kept))]
        kept[deal] = dealt
        return dealt


def _even_heads(num_heads: int, num_ranks: int) -> Heads:
    return share_heads([1.0] * num_heads, num_ranks)


def _gather(y_BLP: Tensor, lengths: Sequence[int], line: Line) -> Tensor:
    """All runs of tokens on the first of a line; on the others their own."""
    if line.group is None:
        return y_BLP
    nothing = y_BLP.new_empty(0)
    pieces, shapes = [nothing] * line.num, [tuple(nothing.shape)] * line.num
    pieces[0] = y_BLP
    if line.rank == 0:
        shapes = [(y_BLP.shape[0], length, y_BLP.shape[2]) for length in lengths]
    came = line.group.swap(pieces, shapes)
    return torch.cat(came, dim=1) if line.rank == 0 else y_BLP
