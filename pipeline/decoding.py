"""Decoding by a worker that may be lost: another goes on from the last state that was kept.

B batch, C channels, T latents, H height, W width.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from ..models.vae_state import DecoderState
from ..parallel.packed import pack
from .codec import Codec, Decoded
from .plan import Plan, find_device


class Worker(Protocol):
    """Runs a PackedCodec somewhere else."""

    def call(self, method: str, *args: object) -> Any: ...
    def stream(self, method: str, *args: object) -> Iterator[Any]: ...


class PackedCodec(Codec):
    """A codec whose decoder's state comes and goes in a form that is cheap to send."""

    def decode_packed(self, latents_BCTHW: Tensor, keep: bool) -> Iterator[object]:
        for item in self.decode(latents_BCTHW, keep):
            if isinstance(item, DecoderState):
                yield {name: pack(tensor) for name, tensor in item.to_tensors().items()}
            else:
                yield item

    def restore_packed(self, tensors: dict[str, Any], num_frames: int) -> None:
        held = {name: packed.tensor() for name, packed in tensors.items()}
        self.restore(DecoderState.from_tensors(held), num_frames)


def make_codec(plan: Plan, device: str) -> PackedCodec:
    """In another process, on the device that it has."""
    return PackedCodec(replace(plan, device=find_device(device)))


class SteadyDecoder:
    """Blocks in, frames out, each once, whatever becomes of the worker.

    Blocks are read one after the other, and each is begun before the one before it is read.
    """

    def __init__(
        self,
        worker: Callable[[], Worker],
        revive: Callable[[Exception], object],
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

    def restore(self, state: DecoderState, num_frames: int) -> None:
        self._state, self._frames = (state, num_frames), num_frames
        self._send_state()

    def decode(self, latents_BCTHW: Tensor, keep: bool) -> Iterator[Decoded]:
        worker = self._worker()
        stream = worker.stream("decode_packed", latents_BCTHW, keep)  # it begins now
        return self._read(worker, stream, latents_BCTHW, keep)

    def _read(
        self, begun_by: Worker, stream: Iterator[Any], latents_BCTHW: Tensor, keep: bool
    ) -> Iterator[Decoded]:
        if begun_by is not self._worker():  # which was lost while the block before was read
            stream = self._worker().stream("decode_packed", latents_BCTHW, keep)
        count = 0  # items that came
        while True:
            try:
                for i, item in enumerate(stream):
                    if i >= count:
                        count += 1
                        yield self._take(item)
                if not keep:
                    self._since.append(latents_BCTHW)
                return
            except self._lost as error:
                stream = self._begin_again(error, latents_BCTHW, keep)

    def _take(self, item: Any) -> Decoded:
        if not isinstance(item, dict):
            self._frames += len(item)
            frames: Decoded = item
            return frames
        state = DecoderState.from_tensors(item)
        self._state, self._since = (state, self._frames), []
        return state

    def _begin_again(self, error: Exception, latents_BCTHW: Tensor, keep: bool) -> Iterator[Any]:
        """Another worker, brought to where the lost one stood, and its frames of this block."""
        while True:
            self._revive(error)
            try:
                self._send_state()
                for past in self._since:
                    for _ in self._worker().stream("decode_packed", past, False):
                        pass  # for the state that it leaves
                return self._worker().stream("decode_packed", latents_BCTHW, keep)
            except self._lost as again:
                error = again

    def _send_state(self) -> None:
        if self._state:
            state, num_frames = self._state
            tensors = {name: pack(tensor) for name, tensor in state.to_tensors().items()}
            self._worker().call("restore_packed", tensors, num_frames)
