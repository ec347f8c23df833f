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
from .wire import Place, describe, empty, parse, payload_bytes

_BELL = struct.Struct("<QQ")  # length of the words; size of the new memory that comes along, or 0
_ACK = b"\1"
_RETRY_S = 0.005
_SMALLEST_BYTES = 1 << 16


def _address(spec: LinkSpec) -> bytes:
    """Abstract (it begins with a zero byte): no file, gone with its socket. At most 107 bytes."""
    words = f"{spec.host}:{spec.port}/{spec.name}".encode()
    return b"\0longreel-" + hashlib.sha256(words).hexdigest().encode()


def _map(file: int, num_bytes: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(file, num_bytes), dtype=torch.uint8)


def _check_peer(connected: socket.socket) -> None:
    """Abstract names know no permissions, so any user of the node could have come."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, _ = struct.unpack("3i", credentials)
    if user != os.getuid():
        raise PermissionError(f"the other side belongs to user {user}")


class _Deadline:
    def __init__(self, timeout_s: float) -> None:
        self._end_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Never quite nothing: what is already there is taken even when time is up."""
        return max(1e-3, min(self._end_s - time.monotonic(), 1e6))

    def passed(self) -> bool:
        return time.monotonic() > self._end_s


class _Line:
    """The socket and the ring of one end, closed safely under the thread that uses them."""

    def __init__(self, spec: LinkSpec) -> None:
        self._name = spec.name
        self._busy = threading.Lock()  # held by the call that uses the socket
        self._reason = ""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.slots = [torch.empty(0, dtype=torch.uint8)] * spec.credits

    @contextlib.contextmanager
    def in_use(self, too_late: str) -> Iterator[None]:
        """Around a call: what fails inside ends the link and becomes LinkClosed."""
        with self._busy:
            try:
                self.check()
                yield
                return
            except TimeoutError:
                self._end(too_late)
            except (ConnectionError, EOFError):
                self._end("the other side closed it or died")
            except OSError as error:
                self._end(str(error))
            self._release()
            self.check()

    def check(self) -> None:
        if self._reason:
            raise LinkClosed(f"link {self._name}: {self._reason}")

    def close(self) -> None:
        self._end("closed here")  # wakes the call inside, which then lets go of the lock
        with self._busy:
            self._release()

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        with contextlib.suppress(OSError):  # not connected yet, or closed before
            self.socket.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        self.socket.close()
        self.slots.clear()

    def read(self, num_bytes: int, deadline: _Deadline) -> bytes:
        parts = []
        while num_bytes:
            self.socket.settimeout(deadline.left_s())
            parts.append(self.socket.recv(num_bytes))
            if not parts[-1]:
                raise EOFError
            num_bytes -= len(parts[-1])
        return b"".join(parts)


class ShmSender:
    def __init__(self, spec: LinkSpec) -> None:
        self._spec = spec
        self._line = _Line(spec)
        self._num_sent = 0
        self._num_unread = 0
        # in the background, so that two ends opened in any order never wait for each other
        self._meeting = threading.Thread(target=self._meet, name=f"meet {spec.name}", daemon=True)
        self._meeting.start()

    def _meet(self) -> None:
        spec, line = self._spec, self._line
        late = f"nobody opened the other side within {spec.timeout_s:g} s"
        # the next send says what went wrong
        with contextlib.suppress(LinkClosed), line.in_use(late):
            deadline = _Deadline(spec.timeout_s)
            while True:
                try:
                    line.socket.connect(_address(spec))
                except ConnectionRefusedError:  # nobody listens there yet
                    if deadline.passed():
                        raise TimeoutError from None
                    line.check()
                    time.sleep(_RETRY_S)
                else:
                    _check_peer(line.socket)
                    return line.check()  # a close before the connection woke nobody

    def send(self, message: Message) -> None:
        self._meeting.join()
        words, places = describe(message)
        with self._line.in_use(f"the other side took no message for {self._spec.timeout_s:g} s"):
            self._wait_for_credit()
            index = self._num_sent % self._spec.credits
            with self._room(index, places) as new_memory:
                for at, tensor in zip(places, message.tensors, strict=True):
                    at.view(self._line.slots[index]).copy_(tensor.detach())
                self._ring(words, len(self._line.slots[index]), new_memory)
            self._num_sent += 1
            self._num_unread += 1

    def _wait_for_credit(self) -> None:
        """Takes the receipts that came; waits for one if every slot is full."""
        self._line.socket.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            self._take_receipts()
        self._line.socket.settimeout(self._spec.timeout_s)
        if self._num_unread == self._spec.credits:
            self._take_receipts()

    def _take_receipts(self) -> None:
        receipts = self._line.socket.recv(self._spec.credits)
        if not receipts:
            raise EOFError
        self._num_unread -= len(receipts)

    @contextlib.contextmanager
    def _room(self, index: int, places: tuple[Place, ...]) -> Iterator[int | None]:
        """Makes the slot large enough; the file of its new memory, if it had to be."""
        num_bytes = payload_bytes(places)
        if len(self._line.slots[index]) >= num_bytes:
            yield None
            return
        # a power of two, so that it seldom grows; pages that nobody touches cost nothing
        size = max(_SMALLEST_BYTES, 1 << (num_bytes - 1).bit_length())
        file = os.memfd_create("longreel")
        try:
            os.ftruncate(file, size)
            self._line.slots[index] = _map(file, size)
            yield file
        finally:
            os.close(file)

    def _ring(self, words: bytes, size: int, new_memory: int | None) -> None:
        bell = self._line.socket
        if new_memory is None:
            bell.sendall(_BELL.pack(len(words), 0) + words)
        else:
            socket.send_fds(bell, [_BELL.pack(len(words), size)], [new_memory])
            bell.sendall(words)

    def close(self) -> None:
        self._line.close()
        self._meeting.join()


class ShmReceiver:
    def __init__(self, spec: LinkSpec) -> None:
        self._spec = spec
        self._line = _Line(spec)
        self._met = False
        self._num_received = 0
        self._meeting = _Deadline(spec.timeout_s)
        with self._line.in_use(""):
            self._line.socket.bind(_address(spec))
            self._line.socket.listen(1)

    def _meet(self, deadline: _Deadline) -> None:
        listener = self._line.socket
        listener.settimeout(min(deadline.left_s(), self._meeting.left_s()))
        self._line.socket, _ = listener.accept()
        listener.close()
        self._line.check()  # a close meanwhile shut down only the listener
        _check_peer(self._line.socket)
        self._met = True

    def recv(self, timeout_s: float | None = None) -> Message:
        wait_s = self._spec.timeout_s if timeout_s is None else timeout_s
        with self._line.in_use(f"no message within {wait_s:g} s"):
            deadline = _Deadline(wait_s)
            if not self._met:
                self._meet(deadline)
            index = self._num_received % self._spec.credits
            header, places = parse(self._listen(index, deadline))
            slot = self._line.slots[index]
            tensors = tuple(empty(at).copy_(at.view(slot)) for at in places)
            self._num_received += 1
            with contextlib.suppress(ConnectionError):  # the other side left after sending it
                self._line.socket.sendall(_ACK)
            return Message(header, tensors)

    def _listen(self, index: int, deadline: _Deadline) -> bytes:
        """The words of the next message, with its slot as large as the sender's."""
        line = self._line
        line.socket.settimeout(deadline.left_s())
        bell, files, _, _ = socket.recv_fds(line.socket, _BELL.size, 1, socket.MSG_CMSG_CLOEXEC)
        try:
            if not bell:
                raise EOFError
            bell += line.read(_BELL.size - len(bell), deadline)
            length, size = _BELL.unpack(bell)
            if files:
                line.slots[index] = _map(files[0], size)
        finally:
            for file in files:
                os.close(file)
        return line.read(length, deadline)

    def close(self) -> None:
        self._line.close()
