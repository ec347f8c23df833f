"""A VAE's tiles made by several workers: each sends its own to the first, which joins them.

B batch, C channels, T frames or latents, H height, W width.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..models.vae_state import DecoderState
from .link import LinkSpec, Message, open_receiver, open_sender
from .messages import Stamp


class TileDecoder(Protocol):
    """As StreamingDecoder: it goes from latent to latent."""

    def decode_tiles(self, latent_BCTHW: Tensor) -> list[Tensor]: ...
    def join(self, tiles: Sequence[Tensor], height: int, width: int) -> Tensor: ...
    def state(self) -> DecoderState: ...
    def restore(self, state: DecoderState) -> None: ...


@dataclass(frozen=True, kw_only=True)
class TileEdges:
    """One worker's part of all tiles."""

    stamp: Stamp
    rank: int
    shares: tuple[tuple[int, ...], ...]  # tiles of every worker
    links: tuple[LinkSpec, ...]  # from all others to the first; theirs to it


@dataclass(frozen=True, slots=True, kw_only=True)
class TileHeader:
    """One worker's tiles of one latent, or its state after so many."""

    stamp: Stamp
    latent: int  # since this worker began
    tiles: tuple[int, ...]
    state: tuple[str, ...] = ()  # names of the tensors, where they are that


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
        device = next(iter(made.values())).device
        for header, tensors in self._received():
            here = (tensor.to(device) for tensor in tensors)
            made |= dict(zip(header.tiles, here, strict=True))
        self._latent += 1
        height, width = latent_BCTHW.shape[-2:]
        return self._decoder.join([made[i] for i in range(len(made))], height, width)

    def send(self, latent_BCTHW: Tensor) -> None:
        """On every other: its tiles, to the first."""
        self._send(tuple(tile for _, tile in self._own(latent_BCTHW)))
        self._latent += 1

    def state(self) -> DecoderState:
        """On the first worker: of all tiles, as one decoder of them would have it."""
        mine = self._decoder.state()
        rows = dict(zip(self._edges.shares[0], mine.caches, strict=True))
        for header, tensors in self._received():
            theirs = DecoderState.from_tensors(dict(zip(header.state, tensors, strict=True)))
            rows |= dict(zip(header.tiles, theirs.caches, strict=True))
        return replace(mine, caches=tuple(rows[i] for i in range(len(rows))))

    def send_state(self) -> None:
        """On every other: of its tiles, to the first."""
        named = self._decoder.state().to_tensors()
        self._send(tuple(named.values()), tuple(named))

    def restore(self, state: DecoderState) -> None:
        """On all of them: of all tiles."""
        self._decoder.restore(state)

    def close(self) -> None:
        for sender in self._senders:
            sender.close()
        for receiver in self._receivers:
            receiver.close()

    def _own(self, latent_BCTHW: Tensor) -> list[tuple[int, Tensor]]:
        tiles = self._edges.shares[self._edges.rank]
        return list(zip(tiles, self._decoder.decode_tiles(latent_BCTHW), strict=True))

    def _send(self, tensors: tuple[Tensor, ...], state: tuple[str, ...] = ()) -> None:
        header = replace(self._header(self._edges.rank), state=state)
        for sender in self._senders:
            sender.send(Message(pickle.dumps(header), tensors))

    def _received(self) -> Iterator[tuple[TileHeader, tuple[Tensor, ...]]]:
        for rank, receiver in enumerate(self._receivers, start=1):
            message = receiver.recv()
            header: TileHeader = pickle.loads(message.header)
            expected = replace(self._header(rank), state=header.state)
            assert header == expected, f"{header} came for {expected}"
            yield header, message.tensors

    def _header(self, rank: int) -> TileHeader:
        shares = self._edges.shares
        return TileHeader(stamp=self._edges.stamp, latent=self._latent, tiles=shares[rank])
