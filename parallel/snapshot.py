"""A chain between two ticks: all that its stages hold and need to go on, bit for bit.

B batch, C channels, T latents, H height, W width; of keys and values: L tokens, H heads, D channels
of a head.
"""

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .packed import Packed, pack
from .tasks import WalkState

CacheKey = tuple[int, int, int, int, int]  # block, version, take, pass through the model, layer


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Nothing in it is ever written into, so it may be kept while the chain goes on."""

    walk: WalkState
    latents: dict[int, tuple[int, Tensor]]  # that windows read: block: version, latents
    samples: dict[int, tuple[Tensor, ...]]  # of blocks in flight: the sample, the solver's memory
    caches: dict[CacheKey, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which part of its stage's keys and values a device keeps: tokens of a shard, some heads."""

    shard: int = 0
    num_shards: int = 1
    part: int = 0  # of the heads
    num_parts: int = 1


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one device keeps of one entry's keys and values in one layer."""

    run: range  # of the entry's tokens
    place: Place
    k_BLHD: Tensor
    v_BLHD: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedPiece:
    """On its way out of the process that it was made in."""

    run: range
    place: Place
    k: Packed
    v: Packed

    def unpack(self) -> Piece:
        return Piece(run=self.run, place=self.place, k_BLHD=self.k.tensor(), v_BLHD=self.v.tensor())


def pack_piece(piece: Piece) -> PackedPiece:
    k, v = pack(piece.k_BLHD), pack(piece.v_BLHD)
    return PackedPiece(run=piece.run, place=piece.place, k=k, v=v)


def join_pieces(
    pieces: Iterable[tuple[CacheKey, Piece]],
) -> dict[CacheKey, tuple[Tensor, Tensor]]:
    """Whole keys and values, of the pieces of all devices."""
    by_key: dict[CacheKey, list[Piece]] = {}
    for key, piece in pieces:
        by_key.setdefault(key, []).append(piece)
    return {key: _join(found) for key, found in by_key.items()}


def _join(pieces: list[Piece]) -> tuple[Tensor, Tensor]:
    if len(pieces) == 1:
        return pieces[0].k_BLHD, pieces[0].v_BLHD
    by_run: dict[int, list[Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: (piece.place.shard, piece.place.part)):
        if len(piece.run):  # a shard may have nothing of a small entry
            by_run.setdefault(piece.run.start, []).append(piece)
    rows_k = [torch.cat([piece.k_BLHD for piece in row], dim=2) for row in by_run.values()]
    rows_v = [torch.cat([piece.v_BLHD for piece in row], dim=2) for row in by_run.values()]
    return torch.cat(rows_k, dim=1), torch.cat(rows_v, dim=1)


EMPTY = Snapshot(walk=WalkState(), latents={}, samples={})


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSnapshot:
    """What one actor needs of a snapshot, on its way there."""

    walk: WalkState
    latents: dict[int, tuple[int, Packed]]
    samples: dict[int, tuple[Packed, ...]]
    caches: dict[CacheKey, tuple[Packed, Packed]]

    def unpack(self) -> Snapshot:
        return Snapshot(
            walk=self.walk,
            latents={block: (step, kept.tensor()) for block, (step, kept) in self.latents.items()},
            samples={b: tuple(kept.tensor() for kept in held) for b, held in self.samples.items()},
            caches={key: (k.tensor(), v.tensor()) for key, (k, v) in self.caches.items()},
        )


def pack_snapshot(
    snapshot: Snapshot, *, first: bool, last: bool, layers: Collection[int], passes: range
) -> PackedSnapshot:
    """The part of an actor with these layers, and of the first stage's or the last one's."""
    latents = snapshot.latents if first else {}
    samples = snapshot.samples if last else {}
    return PackedSnapshot(
        walk=snapshot.walk,
        latents={block: (step, pack(kept)) for block, (step, kept) in latents.items()},
        samples={block: tuple(map(pack, held)) for block, held in samples.items()},
        caches={
            key: (pack(k), pack(v))
            for key, (k, v) in snapshot.caches.items()
            if key[4] in layers and key[3] in passes
        },
    )


class Admission:
    """Whether blocks may still begin: all may, until somebody stops; the stop is remembered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = self._seen = 0
        self._limit: int | None = None

    def resume(self, begun: int, limit: int | None, seen: int = 0) -> None:
        """So many have begun before. `limit`: how many may at all, if it was stopped before;
        `seen`: how many had when something was lost, some of which begin again."""
        with self._lock:
            self._begun, self._seen = begun, seen
            self._limit = self._limit if limit is None else limit

    def stopped(self) -> bool:
        """Asked before a block begins; if not, it does."""
        with self._lock:
            if self._limit is not None and self._begun >= self._limit:
                return True
            self._begun += 1
            return False

    def stop(self) -> int:
        """How many blocks there will have been, so that another walk can end where this one does:
        a video has one at least. From any thread.
        """
        with self._lock:
            if self._limit is None:
                self._limit = max(self._begun, self._seen, 1)
            return self._limit
