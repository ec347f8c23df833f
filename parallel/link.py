"""How messages with tensors go from one stage to the next: what every link promises.

A link joins one sender and one receiver, each used by one thread and closed from any. Either end
may be opened first, and opening does not wait for the other; they have `timeout_s` to meet. The
first `LinkClosed` is the end of the link, on both sides: to go on, open another of another name.
"""

import errno
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, Self

from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # its stubs hide the store
    TCPStore,
    is_nccl_available,
)

KINDS = ("local", "gloo", "shm", "nccl")
_FIRST_TRY_S = 0.5  # to find a rendezvous
_BACKLOG = 1024  # of links that find it at once
# in the environment of a process whose links go over NCCL: they end what fails, not torch
NCCL_SETTINGS = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}


class LinkClosed(RuntimeError):  # noqa: N818 -- an end that callers expect, not always a fault
    """The only error of a link, but for want of a GPU's memory: the peer is gone, a wait timed out,
    or it was closed here."""


@dataclass(frozen=True, slots=True)
class Message:
    """Tensors under way, with the sender's own words about them.

    Received tensors belong to the receiver, who may write to them. gloo and shm deliver copies in
    CPU memory wherever the tensor was, nccl on the receiver's current GPU;
    local hands over the very tensor, so its sender lets go.
    """

    header: bytes  # small, for instance a pickled dataclass
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """One edge of a chain in one epoch: both ends are opened with the same."""

    kind: str  # "local" in one process, "shm" on one node, "gloo" anywhere, "nccl" between GPUs
    name: str  # render/epoch/edge; never used twice
    host: str  # of the coordinator's Rendezvous
    port: int
    credits: int = 2  # messages sent and not yet received; bounds memory
    timeout_s: float  # for the ends to meet, for a send to find credit, for a recv unless it says

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"link kind {self.kind!r} is unknown, so {self.name} cannot be opened; "
                f"choose one of {', '.join(KINDS)}"
            )
        assert self.credits >= 1, self
        assert self.timeout_s > 0, self


class Sender(Protocol):
    def send(self, message: Message) -> None:
        """Returns when the message is copied or handed over, and may be under way for long after.

        Blocks while `credits` messages are sent and not received. LinkClosed when that takes longer
        than `timeout_s`, or at once when either side closes or the other process dies.
        """

    def close(self) -> None:
        """From any thread, any number of times: releases both sides at once.

        What was sent and not received may be lost: who needs it closes after hearing that it came.
        """


class Receiver(Protocol):
    def recv(self, timeout_s: float | None = None) -> Message:
        """The next message, in the order sent.

        LinkClosed after `timeout_s` (the link's, unless given) without one: who waits for work that
        may be long in coming says how long. LinkClosed at once when either side closes or dies;
        messages that had already arrived are still delivered unless it was closed here.
        """

    def close(self) -> None:
        """As the sender's."""


def open_sender(spec: LinkSpec) -> Sender:
    match spec.kind:
        case "local":
            from .local_link import LocalSender

            return LocalSender(spec)
        case "shm":
            from .shm_link import ShmSender

            return ShmSender(spec)
        case "nccl":
            from .nccl_link import NcclSender

            return NcclSender(spec)
        case _:
            from .gloo_link import GlooSender

            return GlooSender(spec)


def open_receiver(spec: LinkSpec) -> Receiver:
    match spec.kind:
        case "local":
            from .local_link import LocalReceiver

            return LocalReceiver(spec)
        case "shm":
            from .shm_link import ShmReceiver

            return ShmReceiver(spec)
        case "nccl":
            from .nccl_link import NcclReceiver

            return NcclReceiver(spec)
        case _:
            from .gloo_link import GlooReceiver

            return GlooReceiver(spec)


def choose_kind(wanted: str, *, cuda: bool, one_node: bool, one_gpu: bool) -> str:
    """What joins two processes: NCCL from GPU to GPU, else what goes through the host's memory.

    `wanted` is parallel.link. One GPU cannot be both ranks of an NCCL group.
    """
    if wanted == "nccl":
        if not cuda or one_gpu:
            why = "two of them share a GPU" if cuda else "they run on CPUs"
            raise ValueError(
                f"parallel.link=nccl goes from one GPU to another, and the stages cannot: {why}; "
                "set parallel.link=auto, or give every stage a GPU of its own"
            )
        return "nccl"
    if wanted == "auto" and cuda and not one_gpu and is_nccl_available():
        return "nccl"
    return "shm" if one_node else "gloo"


def find_store(host: str, port: int, timeout_s: float, check: Callable[[], None]) -> TCPStore:
    """A Rendezvous's, from another process. RuntimeError: none is there.

    `check` is called before each try, and may raise. Nothing interrupts a try of torch's, so the
    first is short; each is twice as long as the last, as a name server that does not answer can
    take seconds of every one.
    """
    deadline_s, try_s = time.monotonic() + timeout_s, _FIRST_TRY_S
    while True:
        check()
        timeout = timedelta(seconds=min(try_s, timeout_s))
        try:
            store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
        except RuntimeError:
            if time.monotonic() > deadline_s:
                raise
            try_s *= 2
        else:
            store.set_timeout(timedelta(seconds=timeout_s))
            return store


def _listen(host: str) -> socket.socket:
    """On this address alone, where torch would be heard on every network of the machine, and would
    ask a name server about all who come, as it writes their addresses as those of IPv6."""
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        # a router's, which sends on what comes for it
        return socket.create_server(("", 0), backlog=_BACKLOG)


class Rendezvous:
    """Where links meet: a store that the coordinator keeps while it has a chain."""

    def __init__(self, host: str | None = None, timeout_s: float = 60.0) -> None:
        """`host` is this machine as the stages reach it; its own name for itself if not given."""
        self.host = host or socket.gethostbyname(socket.gethostname())
        listening = _listen(self.host)
        self.port: int = listening.getsockname()[1]
        self._store: TCPStore | None = TCPStore(
            self.host,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listening.detach(),
        )

    def close(self) -> None:
        """Links that have met live on; no other can meet."""
        self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()
