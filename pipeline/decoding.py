"""Decoding by a worker that may be lost: another goes on from the last state that was kept.

B batch, C channels, T latents, H height, W width.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from ..models.shelf import Shelf
from ..models.vae_state import DecoderState
from ..parallel.packed import pack
from .codec import Codec, Decoded
from .plan import Plan, find_device

_log = logging.getLogger("longreel")


class Worker(Protocol):
    """Runs a PackedCodec somewhere else."""

    def call(self, method: str, *args: object) -> Any: ...
    def stream(self, method: str, *args: object) -> Iterator[Any]: ...


class PackedCodec(Codec):
    """A codec whose decoder's state comes and goes in a form that is cheap to send."""

    def open_decoder(self) -> None:
        """Before there is anything to decode: what fails now fails once more when there is."""
        try:
            _ = self._vae
        except Exception:
            _log.warning("the decoder could not be opened yet", exc_info=True)

    def decode_packed(self, latents_BCTHW: Tensor, keep: bool) -> Iterator[object]:
        for item in self.decode(latents_BCTHW, keep):
            if isinstance(item, DecoderState):
                yield {name: pack(tensor) for name, tensor in item.to_tensors().items()}
            else:
                yield item

    def restore_packed(self, tensors: dict[str, Any], num_frames: int) -> None:
        held = {name: packed.tensor() for name, packed in tensors.items()}
        self.restore(DecoderState.from_tensors(held), num_frames)


def make_codec(plan: Plan, device: str, shelf: Shelf) -> PackedCodec:
    """In another process, on the device that it has."""
    return PackedCodec(replace(plan, device=find_device(device)), shelf)


class SteadyDecoder:
    """Blocks in, frames out, each once, whatever becomes of the worker.

    Blocks are read one after the other, and each is begun before the one before it is read.
    """

    def __init__(
        self,
        worker: Callable[[], Worker],
        revive: Callable[[Any], object],
        lost: type[Exception],
    ) -> None:
        """`worker`: the one there is; `revive` makes another one that, after an error of the type
        `lost`, or raises."""
        self._worker = worker
        self._revive = revive
        self._lost = lost
        self._state: tuple[DecoderState, int] | None = None  # that was kept last, and frames
        self._since: list[Tensor] = []  # latents whose frames came after it
        self._frames = 0
        self._lock = threading.Lock()  # blocks are begun by one thread and read by another
        self._is_fresh = True
        self._steady: Worker | None = None  # that stands where the blocks read so far have left it
        self._unread: deque[Worker | None] = deque()  # who has begun each block that is not read
        self._reading = False

    def restore(self, state: DecoderState, num_frames: int) -> None:
        self._state, self._frames = (state, num_frames), num_frames
        self._is_fresh = False  # the first block that is read brings the worker there

    @property
    def is_idle(self) -> bool:
        """Everything that was begun has been read to its end."""
        return not self._unread and not self._reading

    def decode(self, latents_BCTHW: Tensor, keep: bool) -> Iterator[Decoded]:
        with self._lock:
            worker = self._worker()
            if self._is_fresh:
                self._steady, self._is_fresh = worker, False
            # ahead of its turn only behind blocks that the same worker has begun
            ahead = worker is self._steady and all(one is worker for one in self._unread)
            self._unread.append(worker if ahead else None)
            stream = worker.stream("decode_packed", latents_BCTHW, keep) if ahead else iter(())
        return self._read(worker if ahead else None, stream, latents_BCTHW, keep)

    def _read(
        self, begun_by: Worker | None, stream: Iterator[Any], latents_BCTHW: Tensor, keep: bool
    ) -> Iterator[Decoded]:
        with self._lock:
            self._reading = True
            is_begun = begun_by is self._worker()
        if not is_begun:
            stream = self._begin(None, latents_BCTHW, keep)
        with self._lock:
            self._unread.popleft()  # not before it is begun: those after it would be ahead of it
        count, over = 0, False  # items that came; the state that ends a block was one of them
        while not over:
            try:
                for i, item in enumerate(stream):
                    if i >= count:
                        count, over = count + 1, isinstance(item, dict)
                        yield self._take(item)
                break
            except self._lost as error:
                if not over:  # or the block would be decoded once more, after itself
                    stream = self._begin(error, latents_BCTHW, keep)
        if not keep:
            self._since.append(latents_BCTHW)
        self._reading = False

    def _take(self, item: Any) -> Decoded:
        if not isinstance(item, dict):
            self._frames += len(item)
            frames: Decoded = item
            return frames
        state = DecoderState.from_tensors(item)
        self._state, self._since = (state, self._frames), []
        return state

    def _begin(self, error: Exception | None, latents_BCTHW: Tensor, keep: bool) -> Iterator[Any]:
        """This block, begun by a worker that stands where it should; after an error by another."""
        while True:
            if error is not None:
                with self._lock:
                    self._steady = None
                self._revive(error)
            try:
                worker = self._worker()
                if worker is not self._steady:
                    self._send_state()
                    for past in self._since:
                        for _ in worker.stream("decode_packed", past, False):
                            pass  # for the state that it leaves
                with self._lock:
                    self._steady = worker
                    return worker.stream("decode_packed", latents_BCTHW, keep)
            except self._lost as again:
                error = again

    def _send_state(self) -> None:
        if self._state:
            state, num_frames = self._state
            tensors = {name: pack(tensor) for name, tensor in state.to_tensors().items()}
            self._worker().call("restore_packed", tensors, num_frames)
