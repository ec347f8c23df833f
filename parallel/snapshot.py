"""A chain between two ticks: all that its stages hold and need to go on, bit for bit.

B batch, C channels, T latents, H height, W width, L tokens, D width.
"""

import threading
from collections.abc import Collection
from dataclasses import dataclass, field

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
        self._begun = 0
        self._limit: int | None = None

    def resume(self, begun: int, limit: int | None) -> None:
        """So many have begun before. `limit`: how many may at all, if it was stopped before."""
        with self._lock:
            self._begun = begun
            self._limit = self._limit if limit is None else limit

    def stopped(self) -> bool:
        """Asked before a block begins; if not, it does."""
        with self._lock:
            if self._limit is not None and self._begun >= self._limit:
                return True
            self._begun += 1
            return False

    def stop(self) -> int:
        """How many blocks there will have been, so that another walk can end where this one does.

        From any thread.
        """
        with self._lock:
            if self._limit is None:
                self._limit = self._begun
            return self._limit
