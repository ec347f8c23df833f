"""Link between processes anywhere, over TCP: a gloo group of two ranks per edge.

A group of its own, because gloo closes every connection of a group in which one wait timed out.
Nothing here touches torch's default group. And gloo tells of a closed connection only those whose
bytes have not begun to come or go: so a byte follows each payload, and is what is waited for.
"""

import contextlib
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # its stubs hide the stores
    PrefixStore,
    ProcessGroupGloo,
    Work,
)

from .link import LinkClosed, LinkSpec, Message, find_store
from .wire import describe, empty, parse, payload_bytes

_SENDER, _RECEIVER = 0, 1  # ranks
_ENVELOPE, _WORDS, _PAYLOAD, _END, _RECEIPT, _NOTHING = range(6)  # tags
_ENVELOPE_BYTES = 2048  # one small message for the words of nearly every message
_LENGTH_BYTES = 8
_RETRY_S = 0.005
_FOR_EVER = timedelta(days=3650)


def own_address(host: str, port: int) -> str:
    """Of the interface that reaches the coordinator: where the other stages can reach us too."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # datagrams: nothing is sent
        return str(probe.getsockname()[0])


def agreed(store: PrefixStore, wish: str) -> bool:
    """Whether those who come to this store do that: meet or part, whichever was asked first."""
    said: bytes = store.compare_set("fate", "", wish)
    return said == wish.encode()


def make_gloo(
    store: PrefixStore, rank: int, num: int, address: str, timeout_s: float
) -> ProcessGroupGloo:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=timeout_s)
    options._threads = 1
    return ProcessGroupGloo(store, rank, num, options)


def cut_gloo(group: Any, other: int, tag: int) -> None:
    """gloo cannot abort a wait (its abort() leaves a blocked recv blocked), but one wait that times
    out closes the connections under all others, here and on the other side. `tag`: of a message
    that never comes."""
    with contextlib.suppress(RuntimeError):
        nothing = torch.empty(1, dtype=torch.uint8)
        group.recv([nothing], other, tag).wait(timedelta(milliseconds=1))


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def in_short(error: RuntimeError) -> str:
    """Without the place in gloo's source before it and the advice after."""
    text = str(error).splitlines()[0].partition(". ")[0]
    return text.rpartition("] ")[2] if text.startswith("[/") else text


class _Pair:
    """The group of one end, its threads, and in the end the reason why it is no more."""

    def __init__(self, spec: LinkSpec, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        self.changed = threading.Condition()
        self.reason = ""
        self._timeout = timedelta(seconds=spec.timeout_s)
        self._group: Any = None  # a ProcessGroupGloo, whose stub lacks send and recv
        self._threads: list[threading.Thread] = []

    def start(self, *loops: Callable[[], None]) -> None:
        """Runs each in a thread, beside one that waits for the other side."""
        for loop in (self._meet, *loops):
            name = f"link {self.spec.name}"
            thread = threading.Thread(target=self._run, args=(loop,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except LinkClosed:
            pass  # ended by somebody who said why
        except RuntimeError as error:  # what gloo and the store raise
            self.end(f"the other side is gone or stopped ({in_short(error)})")
        except BaseException as error:
            self.end(f"failed here ({error!r})")
            raise

    def _find(self) -> PrefixStore:
        spec = self.spec
        try:
            store = find_store(spec.host, spec.port, spec.timeout_s, self.check)
        except LinkClosed:
            raise
        except RuntimeError as error:
            self.end(f"no rendezvous at {spec.host}:{spec.port} ({in_short(error)})")
            raise LinkClosed(self.reason) from None
        return PrefixStore(spec.name, store)

    def _meet(self) -> None:
        """Polls for the other side, as a wait inside the store or gloo could not be interrupted.

        Both meet or neither: who went in alone would be in gloo for all of its timeout.
        """
        store = self._find()
        store.set(f"came{self.rank}", "")
        limit_s = self.spec.timeout_s
        deadline_s = time.monotonic() + limit_s
        while not store.check([f"came{1 - self.rank}"]):
            if self.reason or time.monotonic() > deadline_s:
                if agreed(store, "part"):
                    return self.end(f"nobody opened the other side within {limit_s:g} s")
                break  # it is on its way in
            time.sleep(_RETRY_S)
        if not agreed(store, "meet"):
            return self.end("the other side is gone or stopped (closed before the ends had met)")
        spec = self.spec
        group = make_gloo(store, self.rank, 2, own_address(spec.host, spec.port), spec.timeout_s)
        with self.changed:
            self.check()
            self._group = group
            self.changed.notify_all()

    def _met(self) -> Any:
        """Waits until the ends have met; LinkClosed if they do not."""
        with self.changed:
            self.changed.wait_for(lambda: self._group is not None or self.reason)
            self.check()
            return self._group

    def check(self) -> None:
        if self.reason:
            raise LinkClosed(f"link {self.spec.name}: {self.reason}")

    def post_send(self, tensor: Tensor, tag: int) -> Work:
        work: Work = self._met().send([tensor], 1 - self.rank, tag)
        return work

    def post_recv(self, tensor: Tensor, tag: int) -> Work:
        work: Work = self._met().recv([tensor], 1 - self.rank, tag)
        return work

    def wait(self, works: list[Work]) -> None:
        for work in works:
            work.wait(self._timeout)

    def end(self, reason: str) -> None:
        """For the first reason given; returns at once, while threads are on their way out."""
        with self.changed:
            if self.reason:
                return
            self.reason = reason
            group, self._group = self._group, None
            self.changed.notify_all()
        if group is not None:
            cut_gloo(group, 1 - self.rank, _NOTHING)

    def close(self) -> None:
        self.end("closed here")
        for thread in self._threads:
            thread.join(self.spec.timeout_s)  # moments, unless a subclass waits for more than gloo


class GlooSender:
    """Copies in `send`; one thread sends the copies and another collects receipts."""

    def __init__(self, spec: LinkSpec) -> None:
        self._spec = spec
        self._pair = _Pair(spec, _SENDER)
        self._copies = [torch.empty(0, dtype=torch.uint8)] * spec.credits  # reused, in turn
        self._outbox: deque[tuple[bytes, list[Tensor]]] = deque()
        self._num_sent = 0
        self._num_received = 0  # by the other side's caller
        self._pair.start(self._push, self._collect)
        weakref.finalize(self, self._pair.close)  # at exit, before threads inside gloo are killed

    def send(self, message: Message) -> None:
        pair, spec = self._pair, self._spec
        with pair.changed:
            pair.changed.wait_for(lambda: pair.reason or self._has_credit(), spec.timeout_s)
            late = not self._has_credit()
        if late:
            pair.end(f"the other side took no message for {spec.timeout_s:g} s")
        pair.check()
        words, places = describe(message)
        index = self._num_sent % spec.credits
        if len(self._copies[index]) < payload_bytes(places):
            self._copies[index] = torch.empty(payload_bytes(places), dtype=torch.uint8)
        views = [at.view(self._copies[index]) for at in places]
        for view, tensor in zip(views, message.tensors, strict=True):
            view.copy_(tensor.detach())
        with pair.changed:
            pair.check()
            self._num_sent += 1
            self._outbox.append((words, views))
            pair.changed.notify_all()

    def check(self) -> None:
        """LinkClosed once the link is over."""
        self._pair.check()

    def end(self, reason: str) -> None:
        """For the first reason given; `close` still has to follow."""
        self._pair.end(reason)

    def _has_credit(self) -> bool:
        return self._num_sent - self._num_received < self._spec.credits

    def _push(self) -> None:
        """Waits for no send: a receipt says that its message has gone, and `send` for how long."""
        pair, under_way = self._pair, deque[list[Work]]()  # which must live until then
        num_posted = 0
        while True:
            with pair.changed:
                pair.changed.wait_for(lambda: self._outbox or pair.reason)
                pair.check()
                words, views = self._outbox.popleft()
                while len(under_way) > num_posted - self._num_received:
                    under_way.popleft()
            under_way.append(self._post(words, views))
            num_posted += 1

    def _post(self, words: bytes, views: list[Tensor]) -> list[Work]:
        """Every part at once; the other side asks for them in the same order."""
        envelope = torch.zeros(_ENVELOPE_BYTES, dtype=torch.uint8)
        envelope[:_LENGTH_BYTES].view(torch.int64)[0] = len(words)
        all_words = torch.frombuffer(bytearray(words), dtype=torch.uint8)
        inside, outside = all_words.tensor_split([_ENVELOPE_BYTES - _LENGTH_BYTES])
        envelope[_LENGTH_BYTES : _LENGTH_BYTES + len(inside)] = inside
        works = [self._pair.post_send(envelope, _ENVELOPE)]
        if len(outside):
            works.append(self._pair.post_send(outside, _WORDS))
        full = [view for view in views if view.numel()]
        works += [self._pair.post_send(_as_bytes(view), _PAYLOAD) for view in full]
        if full:
            works.append(self._pair.post_send(torch.zeros(1, dtype=torch.uint8), _END))
        return works

    def _collect(self) -> None:
        pair, receipt = self._pair, torch.empty(1, dtype=torch.uint8)
        while True:
            # a receiver may be busy for long; `send` knows when it is too long
            pair.post_recv(receipt, _RECEIPT).wait(_FOR_EVER)
            with pair.changed:
                self._num_received += 1
                pair.changed.notify_all()

    def close(self) -> None:
        self._pair.close()
        self._outbox.clear()


class GlooReceiver:
    """A thread receives ahead; credits keep what it may hold to a few messages."""

    def __init__(self, spec: LinkSpec) -> None:
        self._spec = spec
        self._pair = _Pair(spec, _RECEIVER)
        self._inbox: deque[Message] = deque()
        self._receipts: deque[Work] = deque()
        self._pair.start(self._pull)
        weakref.finalize(self, self._pair.close)

    def recv(self, timeout_s: float | None = None) -> Message:
        pair = self._pair
        wait_s = self._spec.timeout_s if timeout_s is None else timeout_s
        with pair.changed:
            pair.changed.wait_for(lambda: pair.reason or self._inbox, wait_s)
            message = self._inbox.popleft() if self._inbox else None
        if message is None:
            pair.end(f"no message within {wait_s:g} s")
            pair.check()
            raise AssertionError("an ended pair has a reason")
        with contextlib.suppress(LinkClosed, RuntimeError):  # the other side left after sending it
            self._acknowledge()
        return message

    def check(self) -> None:
        """LinkClosed once the link is over."""
        self._pair.check()

    def end(self, reason: str) -> None:
        """For the first reason given; `close` still has to follow."""
        self._pair.end(reason)

    def _acknowledge(self) -> None:
        """Nobody waits for a receipt, but its Work must live until it has left."""
        receipt = torch.ones(1, dtype=torch.uint8)
        self._receipts.append(self._pair.post_send(receipt, _RECEIPT))
        if len(self._receipts) > self._spec.credits:
            self._pair.wait([self._receipts.popleft()])

    def _pull(self) -> None:
        pair, envelope = self._pair, torch.empty(_ENVELOPE_BYTES, dtype=torch.uint8)
        while True:
            # idle is no fault: how long to wait for a message, only `recv` knows
            pair.post_recv(envelope, _ENVELOPE).wait(_FOR_EVER)
            message = self._finish(envelope)
            with pair.changed:
                pair.check()
                self._inbox.append(message)
                pair.changed.notify_all()

    def _finish(self, envelope: Tensor) -> Message:
        length = int(envelope[:_LENGTH_BYTES].view(torch.int64)[0])
        words = envelope[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if len(words) < length:
            rest = torch.empty(length - len(words), dtype=torch.uint8)
            self._pair.wait([self._pair.post_recv(rest, _WORDS)])
            words = torch.cat([words, rest])
        header, places = parse(words.numpy().tobytes())
        tensors = [empty(at) for at in places]
        full = [tensor for tensor in tensors if tensor.numel()]
        works = [self._pair.post_recv(_as_bytes(tensor), _PAYLOAD) for tensor in full]
        if full:
            end = self._pair.post_recv(torch.empty(1, dtype=torch.uint8), _END)
            self._pair.wait([end, *works])
        return Message(header, tuple(tensors))

    def close(self) -> None:
        self._pair.close()
        self._inbox.clear()
        self._receipts.clear()
