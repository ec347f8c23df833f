"""A VAE's tiles made by several workers: each sends its own to the first, which joins them.

B batch, C channels, T frames or latents, H height, W width.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..models.vae_state import DecoderState
from .link import LinkSpec, Message, open_receiver, open_sender
from .messages import Stamp


class TileDecoder(Protocol):
    """As StreamingDecoder: it goes from latent to latent."""

    def decode_tiles(self, latent_BCTHW: Tensor) -> list[Tensor]: ...
    def state(self) -> DecoderState: ...
    def restore(self, state: DecoderState) -> None: ...
    def join(self, tiles: Sequence[Tensor], height: int, width: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class TileEdges:
    """One worker's part of all tiles."""

    stamp: Stamp
    rank: int
    shares: tuple[tuple[int, ...], ...]  # tiles of every worker
    links: tuple[LinkSpec, ...]  # from all others to the first; theirs to it


@dataclass(frozen=True, slots=True, kw_only=True)
class TileHeader:
    """One worker's tiles of one latent."""

    stamp: Stamp
    latent: int  # since the stream began
    tiles: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHeader:
    """One worker's state after its last latent."""

    tiles: TileHeader
    names: tuple[str, ...]  # of the tensors


class TileWorker:
    """Decodes its share of every latent; one thread uses it."""

    def __init__(
        self, edges: TileEdges, make_decoder: Callable[[Sequence[int]], TileDecoder]
    ) -> None:
        self._edges = edges
        self._decoder = make_decoder(edges.shares[edges.rank])
        self._latent = 0
        self._senders = [open_sender(spec) for spec in edges.links if edges.rank]
        self._receivers = [open_receiver(spec) for spec in edges.links if not edges.rank]

    def frames(self, latent_BCTHW: Tensor) -> Tensor:
        """On the first worker: of a whole latent. LinkClosed when another is lost."""
        made = dict(self._own(latent_BCTHW))
        for rank, receiver in enumerate(self._receivers, start=1):
            message = receiver.recv()
            header: TileHeader = pickle.loads(message.header)
            assert header == self._header(rank), (header, self._header(rank))
            tensors = (tensor.to(next(iter(made.values())).device) for tensor in message.tensors)
            made |= dict(zip(header.tiles, tensors, strict=True))
        self._latent += 1
        height, width = latent_BCTHW.shape[-2:]
        return self._decoder.join([made[i] for i in range(len(made))], height, width)

    def send(self, latent_BCTHW: Tensor) -> None:
        """On every other: its tiles, to the first."""
        tiles = tuple(tile for _, tile in self._own(latent_BCTHW))
        header = pickle.dumps(self._header(self._edges.rank))
        for sender in self._senders:
            sender.send(Message(header, tiles))
        self._latent += 1

    def state(self) -> DecoderState:
        """On the first worker, when the others send theirs: of all tiles."""
        own = self._decoder.state()
        rows = dict(zip(self._edges.shares[0], own.caches, strict=True))
        for rank, receiver in enumerate(self._receivers, start=1):
            message = receiver.recv()
            header: StateHeader = pickle.loads(message.header)
            assert header.tiles == self._header(rank), (header, self._header(rank))
            tensors = dict(zip(header.names, message.tensors, strict=True))
            theirs = DecoderState.from_tensors(tensors)
            rows |= dict(zip(header.tiles.tiles, theirs.caches, strict=True))
        return replace(own, caches=tuple(rows[tile] for tile in range(len(rows))))

    def send_state(self) -> None:
        """On every other: its tiles' state, to the first."""
        names, tensors = zip(*self._decoder.state().to_tensors().items(), strict=True)
        header = pickle.dumps(StateHeader(tiles=self._header(self._edges.rank), names=names))
        for sender in self._senders:
            sender.send(Message(header, tensors))

    def restore(self, state: DecoderState) -> None:
        """On each, of all tiles."""
        mine = tuple(state.caches[tile] for tile in self._edges.shares[self._edges.rank])
        self._decoder.restore(replace(state, caches=mine))
        self._latent = state.seen

    def close(self) -> None:
        for sender in self._senders:
            sender.close()
        for receiver in self._receivers:
            receiver.close()

    def _own(self, latent_BCTHW: Tensor) -> list[tuple[int, Tensor]]:
        tiles = self._edges.shares[self._edges.rank]
        return list(zip(tiles, self._decoder.decode_tiles(latent_BCTHW), strict=True))

    def _header(self, rank: int) -> TileHeader:
        shares = self._edges.shares
        return TileHeader(stamp=self._edges.stamp, latent=self._latent, tiles=shares[rank])
