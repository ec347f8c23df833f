"""Link between processes of one node: a ring of shared memory, with a unix socket as its doorbell.

The memory has no name: the sender makes it (memfd) and passes it over the socket, whose own name is
abstract. So the kernel frees everything with the last process, however that ends.
"""

import contextlib
import hashlib
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from .link import LinkClosed, LinkSpec, Message
from .wire import describe, empty, parse, payload_bytes

_BELL = struct.Struct("<QQ")  # length of the words; size of the new memory that comes along, or 0
_RETRY_S = 0.005
_SMALLEST_BYTES = 1 << 16


def _address(spec: LinkSpec) -> bytes:
    """Abstract (it begins with a zero byte): no file, gone with its socket. At most 107 bytes."""
    words = f"{spec.host}:{spec.port}/{spec.name}".encode()
    return b"\0longreel-" + hashlib.sha256(words).hexdigest().encode()


def _map(file: int, num_bytes: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(file, num_bytes), dtype=torch.uint8)


class _Line:
    """The socket of one end, which closes safely under the thread that waits on it."""

    def __init__(self, spec: LinkSpec) -> None:
        self._name = spec.name
        self._busy = threading.Lock()  # held by the call that may be using the socket
        self._reason = ""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.slots: list[Tensor | None] = [None] * spec.credits

    @contextlib.contextmanager
    def in_use(self, waiting_for: str) -> Iterator[None]:
        """Around a call: what goes wrong inside closes the line and becomes LinkClosed."""
        with self._busy:
            try:
                self.check()
                yield
            except TimeoutError:
                self._end(f"{waiting_for} in time")
            except (OSError, EOFError) as error:
                self._end(f"the other side is gone ({error})")
            if self._reason:
                self._release()
                self.check()

    def check(self) -> None:
        if self._reason:
            raise LinkClosed(f"link {self._name}: {self._reason}")

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        with contextlib.suppress(OSError):  # not connected yet, or already closed
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._end("closed here")  # wakes whoever is inside, who then lets go of the lock
        with self._busy:
            self._release()

    def _release(self) -> None:
        self.socket.close()
        self.slots = [None] * len(self.slots)

    def replace_socket(self, new: socket.socket) -> None:
        self.socket, old = new, self.socket
        old.close()
        self.check()  # a close that came before saw only the old one


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self._end_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return min(left_s, threading.TIMEOUT_MAX)


class ShmSender:
    def __init__(self, spec: LinkSpec) -> None:
        self._spec = spec
        self._line = _Line(spec)
        self._meeting = _Deadline(spec.timeout_s)
        self._connected = False
        self._num_sent = 0
        self._num_unread = 0

    def send(self, message: Message) -> None:
        words, places = describe(message)
        with self._line.in_use(f"no credit within {self._spec.timeout_s:g} s: not received"):
            self._connect()
            self._wait_for_credit()
            index = self._num_sent % self._spec.credits
            num_bytes = payload_bytes(places)
            slot = self._line.slots[index]
            file = -1
            if slot is None or len(slot) < num_bytes:
                # a power of two, so that it seldom grows; pages nobody touched cost nothing
                size = max(_SMALLEST_BYTES, 1 << max(num_bytes - 1, 0).bit_length())
                file = os.memfd_create("longreel")
                try:
                    os.ftruncate(file, size)
                    slot = self._line.slots[index] = _map(file, size)
                except BaseException:
                    os.close(file)
                    raise
            for at, tensor in zip(places, message.tensors, strict=True):
                at.view(slot).copy_(tensor.detach())
            self._ring(words, file, len(slot))
            self._num_sent += 1
            self._num_unread += 1
