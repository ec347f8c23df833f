"""Link between stages of one process: tensors change hands, nothing is copied."""

import threading
from collections import deque

from .link import LinkClosed, LinkSpec, Message


class _Pipe:
    """What both ends share: the messages under way and, in the end, why there will be no more."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: deque[Message] = deque()
        self.closed_by = ""  # "sender" or "receiver", when it is

    def close(self, side: str) -> None:
        with self.changed:
            self.closed_by = self.closed_by or side
            self.changed.notify_all()


# Both ends live in this process and know each other by name only; a name is here until both came.
_waiting: dict[str, tuple[str, _Pipe]] = {}
_lock = threading.Lock()


def _meet(name: str, side: str) -> _Pipe:
    with _lock:
        if name not in _waiting:
            _waiting[name] = side, _Pipe()
            return _waiting[name][1]
        first, pipe = _waiting.pop(name)
        assert first != side, f"link {name}: two {side}s"
        return pipe


def _forget(name: str, pipe: _Pipe) -> None:
    with _lock:
        if name in _waiting and _waiting[name][1] is pipe:
            del _waiting[name]


def _reason(spec: LinkSpec, pipe: _Pipe, side: str, timeout_s: float) -> LinkClosed:
    if not pipe.closed_by:
        pipe.close(side)
        what = "no message" if side == "receiver" else "no credit"
        return LinkClosed(f"link {spec.name}: {what} within {timeout_s:g} s")
    where = "closed here" if pipe.closed_by == side else "the other side closed it"
    return LinkClosed(f"link {spec.name}: {where}")


class LocalSender:
    def __init__(self, spec: LinkSpec) -> None:
        self._spec = spec
        self._pipe = _meet(spec.name, "sender")

    def send(self, message: Message) -> None:
        pipe, spec = self._pipe, self._spec
        with pipe.changed:
            pipe.changed.wait_for(
                lambda: pipe.closed_by or len(pipe.messages) < spec.credits, spec.timeout_s
            )
            if pipe.closed_by or len(pipe.messages) == spec.credits:
                raise _reason(spec, pipe, "sender", spec.timeout_s)
            pipe.messages.append(message)
            pipe.changed.notify_all()

    def close(self) -> None:
        _forget(self._spec.name, self._pipe)
        self._pipe.close("sender")


class LocalReceiver:
    def __init__(self, spec: LinkSpec) -> None:
        self._spec = spec
        self._pipe = _meet(spec.name, "receiver")

    def recv(self, timeout_s: float | None = None) -> Message:
        pipe = self._pipe
        wait_s = self._spec.timeout_s if timeout_s is None else timeout_s
        with pipe.changed:
            pipe.changed.wait_for(lambda: pipe.closed_by or pipe.messages, wait_s)
            if not pipe.messages or pipe.closed_by == "receiver":
                pipe.messages.clear()
                raise _reason(self._spec, pipe, "receiver", wait_s)
            pipe.changed.notify_all()
            return pipe.messages.popleft()

    def close(self) -> None:
        _forget(self._spec.name, self._pipe)
        self._pipe.close("receiver")
        with self._pipe.changed:
            self._pipe.messages.clear()
