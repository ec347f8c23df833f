"""What a render needs to go on where it stood, besides its plan; and when to take note of it.

B batch, C channels, T latents, H height, W width.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.vae_state import DecoderState
from ..parallel.snapshot import Snapshot

_MOST_BLOCKS = 64  # decoded between two states of the decoder, so that what is kept is bounded


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A chain between two ticks, and a decoder between two blocks that need not be its last."""

    chain: Snapshot
    decoder: DecoderState | None  # none: nothing has been decoded
    decoded: int  # blocks before this one have been
    frames: int  # of those
    clean: dict[int, Tensor]  # finished blocks that have not been decoded: latents_BCTHW


def apart(checkpoint: Checkpoint) -> Checkpoint:
    """For branches of guidance that run one after the other, if they were one batch before."""
    caches = {}
    for (*key, passing, layer), (k_BLD, v_BLD) in checkpoint.chain.caches.items():
        block, step, take = key
        branches = zip(torch.split(k_BLD, 1), torch.split(v_BLD, 1), strict=True)
        for i, pair in enumerate(branches):
            caches[block, step, take, passing + i, layer] = pair
    return replace(checkpoint, chain=replace(checkpoint.chain, caches=caches))


Keep = Callable[[Checkpoint], None]


class Keeper:
    """Puts checkpoints together, out of what the threads of a render come by."""

    def __init__(self, every_s: float, keep: Keep | None, start: Checkpoint | None) -> None:
        """Without `keep` it only tells when: a chain and a decoder over Ray repair themselves."""
        self._every_s = every_s
        self._keep = keep
        self._lock = threading.Lock()
        self._decoder = start.decoder if start else None
        self._decoded = start.decoded if start else 0
        self._frames = start.frames if start else 0
        self._clean = dict(start.clean) if start else {}
        now = time.monotonic()
        self._chain_s, self._decoder_s = now, now  # when each was last taken note of

    def wants_chain(self, has_finished: bool) -> bool:
        """Whether it is time for a snapshot of the chain; without a pause, one per block."""
        return time.monotonic() - self._chain_s >= self._every_s and (
            has_finished or self._every_s > 0
        )

    def wants_decoder(self, block: int) -> bool:
        """Whether it is time for the decoder's state after this block."""
        late = time.monotonic() - self._decoder_s >= self._every_s
        return late or block + 1 - self._decoded >= _MOST_BLOCKS

    def add_clean(self, block: int, latents_BCTHW: Tensor) -> None:
        with self._lock:
            if self._keep and block >= self._decoded:
                self._clean[block] = latents_BCTHW

    def add_decoder(self, block: int, frames: int, state: DecoderState) -> None:
        """The decoder's state after a block, and so many frames."""
        with self._lock:
            self._decoder, self._decoded, self._frames = state, block + 1, frames
            self._clean = {b: kept for b, kept in self._clean.items() if b > block}
        self._decoder_s = time.monotonic()

    def add_chain(self, snapshot: Snapshot) -> None:
        """Blocks that it counts as finished have been added before."""
        self._chain_s = time.monotonic()
        if self._keep is None:
            return
        with self._lock:
            checkpoint = Checkpoint(
                chain=snapshot,
                decoder=self._decoder,
                decoded=self._decoded,
                frames=self._frames,
                clean=dict(self._clean),
            )
        self._keep(checkpoint)
