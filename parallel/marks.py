"""A snapshot of actors that do not stop for it: a mark goes round between two ticks.

Each actor notes what it holds when the mark passes, which is what all tasks before it have left
there; what it noted is fetched while it works on, as nothing of it is ever written into.
"""

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .link import LinkClosed
from .snapshot import CacheKey, PackedPiece, Piece, Snapshot, join_pieces, pack_piece
from .tasks import WalkState


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A mark that has come round: the first stage's part of the snapshot."""

    number: int
    walk: WalkState
    latents: dict[int, tuple[int, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What another actor noted of its own."""

    samples: dict[int, tuple[Tensor, ...]]  # at the last stage
    caches: dict[CacheKey, PackedPiece]  # that were not known yet


class Marks:
    """One actor's: its data thread notes, control calls ask and fetch."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._wanted = self._closed = False
        self._marked: Marked | None = None
        self._number = 0  # of the last mark that passed
        self._samples: Mapping[int, tuple[Tensor, ...]] = {}
        self._caches: Mapping[CacheKey, Piece] = {}

    def begin(self) -> int:
        """At the first stage, between two ticks: the mark to be sent, or 0."""
        with self._changed:
            wanted, self._wanted = self._wanted, False
            return self._number + 1 if wanted else 0

    def note(
        self,
        number: int,
        samples: Mapping[int, tuple[Tensor, ...]],
        caches: Mapping[CacheKey, Piece],
    ) -> None:
        """The mark passes here."""
        with self._changed:
            self._number, self._samples, self._caches = number, samples, caches
            self._changed.notify_all()

    def complete(self, walk: WalkState, latents: Mapping[int, tuple[int, Tensor]]) -> None:
        """At the first stage: the mark has come round."""
        host = {block: (step, kept.cpu()) for block, (step, kept) in latents.items()}
        with self._changed:
            self._marked = Marked(number=self._number, walk=walk, latents=host)
            self._changed.notify_all()

    def ask(self, seen: int, wait_s: float) -> Marked | None:
        """At the first stage: one that is newer than number `seen`, if it comes in time."""
        with self._changed:
            if self._marked is None or self._marked.number <= seen:
                self._wanted = self._number == seen  # else one is under way
            self._changed.wait_for(
                lambda: self._closed or (self._marked is not None and self._marked.number > seen),
                wait_s,
            )
            marked = self._marked
            return marked if marked is not None and marked.number > seen else None

    def collect(self, number: int, known: Collection[CacheKey], wait_s: float) -> Part:
        """What was noted of a mark, without what is `known`. TimeoutError: it has not come;
        LinkClosed: it will not."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or self._number >= number, wait_s):
                raise TimeoutError(f"mark {number} has not passed in {wait_s:g} s")
            if self._number < number:
                raise LinkClosed(f"mark {number} does not come any more")
            assert self._number == number, "one mark at a time"
            samples, caches = self._samples, self._caches
            self._samples, self._caches = {}, {}
        return Part(
            samples={block: tuple(t.cpu() for t in held) for block, held in samples.items()},
            caches={key: pack_piece(p) for key, p in caches.items() if key not in known},
        )

    def close(self) -> None:
        """No other mark comes: whoever waits for one has waited long enough."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Vault:
    """Snapshots put together from parts, outside the processes that the parts were in.

    Keys and values of a block never change, so each is fetched once.
    """

    def __init__(self) -> None:
        self._caches: dict[CacheKey, tuple[Tensor, Tensor]] = {}

    @property
    def known(self) -> frozenset[CacheKey]:
        return frozenset(self._caches)

    def assemble(self, marked: Marked, parts: Iterable[Part]) -> Snapshot:
        samples: dict[int, tuple[Tensor, ...]] = {}
        pieces: list[tuple[CacheKey, Piece]] = []
        for part in parts:
            samples |= part.samples
            pieces += [(key, packed.unpack()) for key, packed in part.caches.items()]
        self._caches |= join_pieces(pieces)
        live = {entry.key for entry in marked.walk.entries}
        self._caches = {key: pair for key, pair in self._caches.items() if key[:3] in live}
        return Snapshot(
            walk=marked.walk, latents=marked.latents, samples=samples, caches=dict(self._caches)
        )
