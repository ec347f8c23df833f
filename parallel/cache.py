"""Keys and values that a stage keeps for its layers, by block, version and pass.

B batch, L tokens, H heads, D channels of a head. Of several devices in a stage, each keeps the
heads and tokens that it had when they were made: what is cached never travels to be read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .shards import cut_tokens, overlap, shift
from .snapshot import CacheKey, Piece, Place
from .tasks import Entry, Task

_Key = tuple[int, int, int, int]  # an entry's, and the pass through the model


@dataclass(frozen=True, kw_only=True)
class Held:
    """An entry as it is kept."""

    entry: Entry
    latent: int  # tokens of each latent
    runs: tuple[range, ...]  # of its tokens, counted from its first: the part of each shard

    def tokens(self, entry: Entry) -> range:
        """Of a slice of it, counted from its first."""
        assert self.entry.start <= entry.start, f"{entry} is read out of {self.entry}"
        assert entry.stop <= self.entry.stop, f"{entry} is read out of {self.entry}"
        start = (entry.start - self.entry.start) * self.latent
        return range(start, start + entry.num_latents * self.latent)


class KeyValueCache:
    """What windows leave behind for later windows. Keys are normalised and not rotated."""

    def __init__(self) -> None:
        self._layers: dict[_Key, dict[int, tuple[Tensor, Tensor]]] = {}
        self._held: dict[_Key, Held] = {}

    def window(
        self, task: Task, passing: int, shards: Sequence[range] = (), mine: int = 0
    ) -> "WindowCache | None":
        """What one pass of a task reads and leaves; none when it does neither.

        `shards`: the runs that the window's tokens are cut into, of which `mine` is here; none:
        all of them are.
        """
        if not task.reads and not task.stores:
            return None
        return WindowCache(self, task, passing, shards, mine)

    def free(self, task: Task) -> None:
        """Let go of what nobody reads after this task."""
        for freed in task.frees:
            found = [key for key in self._layers if key[:3] == freed]
            assert found, f"(block, step, take) {freed} is freed and not held"
            for key in found:
                del self._layers[key], self._held[key]

    def num_bytes(self) -> int:
        return sum(
            k.nbytes + v.nbytes
            for layers in list(self._layers.values())  # another thread may be asked
            for k, v in list(layers.values())
        )

    def put(self, held: Held, passing: int, layer: int, k_BLHD: Tensor, v_BLHD: Tensor) -> None:
        key = (*held.entry.key, passing)
        self._held[key] = held
        self._layers.setdefault(key, {})[layer] = k_BLHD, v_BLHD

    def pieces(self, place: Place, passes: range) -> Iterator[tuple[CacheKey, Piece]]:
        """All of it, with the numbers that passes have in the chain; never written into later."""
        for key, layers in self._layers.items():
            run = self._held[key].runs[place.shard]
            for layer, (k_BLHD, v_BLHD) in layers.items():
                piece = Piece(run=run, place=place, k_BLHD=k_BLHD, v_BLHD=v_BLHD)
                yield (*key[:3], passes[key[3]], layer), piece

    def restore(
        self,
        entries: Iterable[Entry],
        whole: Mapping[CacheKey, tuple[Tensor, Tensor]],
        place: Place,
        layers: range,
        passes: range,
        device: torch.device,
    ) -> None:
        """Of what all pieces make together, hold this place's part of these layers and passes."""
        spans = {entry.key: entry for entry in entries}
        self._layers, self._held = {}, {}
        for (block, step, take, passing, layer), pair in whole.items():
            if layer not in layers or passing not in passes:
                continue
            entry, (num_tokens, num_heads) = spans[block, step, take], pair[0].shape[1:3]
            runs = tuple(cut_tokens(num_tokens, place.num_shards, 1))
            run = runs[place.shard]
            heads = cut_tokens(num_heads, place.num_parts, 1)[place.part]
            k_BLHD, v_BLHD = (
                x[:, run.start : run.stop, heads.start : heads.stop].contiguous().to(device)
                for x in pair
            )
            held = Held(entry=entry, latent=num_tokens // entry.num_latents, runs=runs)
            self.put(held, passes.index(passing), layer, k_BLHD, v_BLHD)

    def held(self, entry: Entry, passing: int) -> Held:
        """The entry of which `entry` is a slice."""
        key = (*entry.key, passing)
        assert key in self._held, f"{entry} is read and not held"
        return self._held[key]

    def get(self, entry: Entry, passing: int, layer: int, mine: int) -> tuple[Tensor, Tensor]:
        """What is here of the slice of a held entry that `entry` names."""
        held = self.held(entry, passing)
        k_BLHD, v_BLHD = self._layers[(*entry.key, passing)][layer]
        here = held.runs[mine]
        run = shift(overlap(here, held.tokens(entry)), -here.start)
        return k_BLHD[:, run.start : run.stop], v_BLHD[:, run.start : run.stop]


class WindowCache:
    """The LayerCache of one pass of one task."""

    def __init__(
        self, cache: KeyValueCache, task: Task, passing: int, shards: Sequence[range], mine: int
    ) -> None:
        self._cache = cache
        self._task = task
        self._passing = passing
        self._shards = shards
        self._mine = mine

    def read(self, layer: int) -> tuple[Tensor, Tensor] | None:
        pairs = [
            self._cache.get(entry, self._passing, layer, self._mine) for entry in self._task.reads
        ]
        if not pairs:
            return None
        k_BLHD, v_BLHD = (torch.cat(tensors, dim=1) for tensors in zip(*pairs, strict=True))
        return k_BLHD, v_BLHD

    def write(self, layer: int, k_BLHD: Tensor, v_BLHD: Tensor) -> None:
        latents = [i for part in self._task.parts for i in range(part.start, part.stop)]
        shards = self._shards or [range(k_BLHD.shape[1])]
        tokens = shards[-1].stop // len(latents)
        for entry in self._task.stores:
            first = latents.index(entry.start) * tokens
            span = range(first, first + entry.num_latents * tokens)
            parts = [overlap(shard, span) for shard in shards]
            held = Held(
                entry=entry, latent=tokens, runs=tuple(shift(part, -first) for part in parts)
            )
            run = shift(parts[self._mine], -shards[self._mine].start)
            # a copy: a slice would hold the whole window's
            self._cache.put(
                held,
                self._passing,
                layer,
                k_BLHD[:, run.start : run.stop].clone(),
                v_BLHD[:, run.start : run.stop].clone(),
            )

    def places(self) -> list[list[range]]:
        """For each shard, which tokens of what `read` brings are there: all entries in a row."""
        places: list[list[range]] = [[] for _ in self._shards or (0,)]
        first = 0
        for entry in self._task.reads:
            held = self._cache.held(entry, self._passing)
            wanted = held.tokens(entry)
            for place, run in zip(places, held.runs, strict=True):
                place.append(shift(overlap(run, wanted), first - wanted.start))
            first += len(wanted)
        return places
