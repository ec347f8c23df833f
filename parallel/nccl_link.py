"""Link between two GPUs: tensors over NCCL, the words about them and the credits over gloo.

NCCL cannot say what is coming and does not notice that a peer is gone, so each message's words go
over a gloo link, which does both. When they arrive, the receive is posted, into memory of this
process's current GPU, while the caller still computes. A group of two ranks per edge, as a
communicator that is aborted is aborted for all its edges. A process needs NCCL_SETTINGS in its
environment: a transfer that fails is for the link to end, while torch's own watchdog would end the
process. Not yet run on two GPUs.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # its stubs hide the stores
    PrefixStore,
    Work,
)

from ..configs.errors import is_memory
from .gloo_link import GlooReceiver, GlooSender, in_short
from .link import LinkClosed, LinkSpec, Message, find_store
from .wire import Place, describe, parse, payload_bytes

_SENDER, _RECEIVER = 0, 1  # ranks
_TAG = 0  # NCCL has none: order is all that matches a receive to its send
_POLL_S = 0.0001
_ABORT_S = 5.0  # an abort that takes longer is left behind: its process is to end anyway
_FOR_EVER = timedelta(days=3650)


@dataclass(frozen=True)
class Coming:
    """A payload that is being received."""

    payload: Tensor
    places: tuple[Place, ...]
    work: Work | None  # none: it has no bytes

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(at.view(self.payload) for at in self.places)


class GpuPayloads:
    """One end's group of two ranks, and the stream it copies on; aborted from any thread."""

    def __init__(self, spec: LinkSpec, rank: int) -> None:
        check_devices(spec)
        self._spec = spec
        self._rank = rank
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._stream: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._group: Any = None  # a ProcessGroupNCCL, whose stub lacks send and recv
        self._aborted = False

    def send(self, tensors: Sequence[Tensor], places: tuple[Place, ...]) -> tuple[Work, Tensor]:
        """A copy of the tensors, wherever they are, behind what the caller has queued; it may
        overwrite them afterwards, and keeps what is returned until it is over."""
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                payload = self._empty(places)
                for at, tensor in zip(places, tensors, strict=True):
                    at.view(payload).copy_(tensor.detach(), non_blocking=tensor.is_cuda)
                caller.wait_event(self._stream.record_event())
                return self._met().send([payload], 1 - self._rank, _TAG), payload

    def ask(self, places: tuple[Place, ...]) -> Coming:
        """Memory for tensors, and what fills it."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            payload = self._empty(places)
            work = None
            if len(payload):
                work = self._met().recv([payload], 1 - self._rank, _TAG)
            return Coming(payload, places, work)

    def take(self, coming: Coming) -> tuple[Tensor, ...]:
        """Once they are there: in memory that the caller's stream keeps."""
        coming.payload.record_stream(torch.cuda.current_stream(self._device))
        return coming.tensors()

    def _empty(self, places: tuple[Place, ...]) -> Tensor:
        return torch.empty(payload_bytes(places), dtype=torch.uint8, device=self._device)

    def _met(self) -> Any:
        with self._lock:
            if self._group is None:
                self._check()
                self._group = self._make()
            if self._aborted:
                self.abort()
                self._check()
            return self._group

    def _check(self) -> None:
        if self._aborted:
            raise RuntimeError("the group was aborted")

    def _make(self) -> Any:
        spec, kind = self._spec, torch.distributed.ProcessGroupNCCL
        store = find_store(spec.host, spec.port, spec.timeout_s, self._check)
        options = kind.Options()
        options._timeout = _FOR_EVER
        return kind(PrefixStore(f"{spec.name}/nccl", store), self._rank, 2, options)

    def abort(self) -> None:
        """Ends what is under way, on this side; returns soon, whether or not NCCL does."""
        self._aborted = True  # without the lock: who holds it may wait for the other side
        group, self._group = self._group, None
        if group is not None:
            abort_nccl(group)


class NcclSender:
    """Words first, so that the other side asks for what follows them."""

    def __init__(self, spec: LinkSpec) -> None:
        self._payloads = GpuPayloads(spec, _SENDER)
        self._words = GlooSender(replace(spec, kind="gloo"))
        self._under_way: deque[tuple[Work, Tensor]] = deque()
        weakref.finalize(self, self._payloads.abort)

    def send(self, message: Message) -> None:
        words, places = describe(message)
        self._words.send(Message(words))
        if payload_bytes(places):
            try:
                self._under_way.append(self._payloads.send(message.tensors, places))
            except RuntimeError as error:
                self._words.end(f"the other side is gone or stopped ({in_short(error)})")
                self._payloads.abort()
                if is_memory(error):
                    raise
                self._words.check()
        # the other side has taken them; credits bound the others
        while self._under_way and self._under_way[0][0].is_completed():
            self._under_way.popleft()

    def close(self) -> None:
        self._words.end("closed here")
        self._payloads.abort()
        self._words.close()
        self._under_way.clear()


class NcclReceiver(GlooReceiver):
    """A gloo link's receiver of words: the thread that gets them asks for the tensors at once."""

    def __init__(self, spec: LinkSpec) -> None:
        self._payloads = GpuPayloads(spec, _RECEIVER)
        self._coming: deque[Coming] = deque()
        self._lacks = ""  # what was said where memory did not suffice for what comes
        weakref.finalize(self, self._payloads.abort)
        super().__init__(replace(spec, kind="gloo"))

    def recv(self, timeout_s: float | None = None) -> Message:
        wait_s = self._spec.timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + wait_s
        try:
            header = super().recv(timeout_s).header
        except LinkClosed:
            if self._lacks:
                raise torch.OutOfMemoryError(self._lacks) from None
            raise
        coming = self._coming.popleft()
        try:
            while coming.work is not None and not coming.work.is_completed():
                # here and not on the GPU, where a wait for a peer that is gone never ends
                self.check()
                if time.monotonic() > deadline_s:
                    self.end(f"no tensors within {wait_s:g} s")
                    self.check()
                time.sleep(_POLL_S)
            if coming.work is not None:
                coming.work.wait()  # over: it raises what went wrong
        except LinkClosed:
            self._payloads.abort()
            raise
        except RuntimeError as error:
            self.end(f"the other side is gone or stopped ({in_short(error)})")
            self._payloads.abort()
            self.check()
        return Message(header, self._payloads.take(coming))

    def _finish(self, envelope: Tensor) -> Message:
        header, places = parse(super()._finish(envelope).header)
        try:
            self._coming.append(self._payloads.ask(places))
        except RuntimeError as error:
            self._lacks = str(error) if is_memory(error) else ""
            raise
        return Message(header)

    def close(self) -> None:
        self.end("closed here")
        self._payloads.abort()
        super().close()
        self._coming.clear()


def abort_nccl(group: Any) -> None:
    """Returns soon, whether or not NCCL does."""
    thread = threading.Thread(target=group.abort, name="nccl abort", daemon=True)
    thread.start()
    thread.join(_ABORT_S)


def check_devices(spec: LinkSpec) -> None:
    """ValueError unless this process has what its end needs."""
    missing = missing_for_nccl()
    if missing:
        raise ValueError(
            f"link {spec.name} is to go over NCCL, and {missing}; set parallel.link=host, which "
            "takes tensors through the memory of the machines"
        )


def missing_for_nccl() -> str:
    """Why no NCCL link can begin or end in this process; empty if one can."""
    if not torch.distributed.is_nccl_available():
        return "this torch was built without it"
    if not torch.cuda.device_count():
        return "torch finds no CUDA device here"
    return ""
