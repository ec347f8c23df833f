"""Who runs a render: one process at a time, which shows that it lives, and may be replaced if not.

The lock file names its owner; its time of change is the owner's heartbeat. A lock is stale when
the heart has not beaten for STALE_S, or when the owner was on this machine and is gone.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .durable import write_whole

BEAT_S = 2.0
STALE_S = 20.0
_TAKE_S = 5.0  # others hold the guard for milliseconds


class Taken(ValueError):  # noqa: N818 -- what has happened to it
    """Another process runs the render, or has taken it over."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, told apart from another of the same number."""

    host: str
    pid: int
    born: str  # when it was started, as its system counts
    token: str
    space: str = ""  # in which its number counts: containers may share a host's name


class Lock:
    """Of one folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._guard = folder / ".lock-guard"

    def owner(self) -> Owner | None:
        """Whoever holds it and lives."""
        try:
            owner = _read(self._path)
            beat_s = self._path.stat().st_mtime
        except FileNotFoundError:
            return None
        if _is_gone(owner):
            return None
        is_fresh = abs(time.time() - beat_s) <= STALE_S
        return owner if is_fresh or abs(self._now_s() - beat_s) <= STALE_S else None

    def _now_s(self) -> float:
        """By the clock that hearts beat by, which may be a file server's, and not this machine's;
        it may have been set back, too."""
        try:
            os.utime(self._guard)  # a beat
            return self._guard.stat().st_mtime
        except OSError:  # who may only read
            return time.time()

    @contextmanager
    def held(self, name: str) -> Iterator["Held"]:
        """Take it, or Taken says who has it; its heart beats until the block ends."""
        mine = Owner(
            host=socket.gethostname(),
            pid=os.getpid(),
            born=_born(os.getpid()),
            token=secrets.token_hex(8),
            space=_space(),
        )
        with self._guarded(name):
            if other := self.owner():
                raise Taken(
                    f"render {name} is being made by process {other.pid} on {other.host}, and two "
                    "would write over each other; wait for it, or end that process first"
                )
            write_whole(self._path, json.dumps(asdict(mine)).encode())
        held = Held(self._path, mine, name)
        try:
            yield held
        finally:
            held.stop()
            with contextlib.suppress(Taken), self._guarded(name):
                held.check()
                self._path.unlink()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        with self._guard.open("w") as guard:
            deadline = time.monotonic() + _TAKE_S
            while not try_lock(guard.fileno()):
                if time.monotonic() > deadline:
                    raise Taken(
                        f"render {name} is being taken by another process, which does not come "
                        "to an end; look for a stopped longreel process and end it"
                    )
                time.sleep(0.05)
            yield


def try_lock(descriptor: int) -> bool:
    """Whether it is ours alone from now on, until it is closed; OSError: its file system has no
    such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def read_by_us(folder: Path) -> Iterator[None]:
    """While what is there is read in one go; any number of processes may."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without such locks
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def is_read(folder: Path) -> bool | None:
    """By any process; none: its file system does not tell."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # removed meanwhile
        return False
    try:
        return not try_lock(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


class Held:
    """The lock, by the one who has it."""

    def __init__(self, path: Path, mine: Owner, name: str) -> None:
        self._path, self._mine, self._name = path, mine, name
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="longreel-heart", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Taken if another has it by now: what this process was about to write is not for it."""
        try:
            token = _read(self._path).token
        except FileNotFoundError:
            token = ""
        if token != self._mine.token:
            raise Taken(
                f"render {self._name} was taken over while this process stood still, so nothing "
                "more is written here; the other one goes on with it"
            )

    def stop(self) -> None:
        self._over.set()
        self._heart.join()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(OSError, Taken):  # a full disk is no reason to lose it
                self.check()
                os.utime(self._path)


def _read(path: Path) -> Owner:
    """Of a damaged lock nobody that is known: its heart alone tells whether somebody lives."""
    try:
        values = json.loads(path.read_bytes())
        return Owner(**{f.name: values[f.name] for f in fields(Owner) if f.name in values})
    except (ValueError, TypeError):
        return Owner(host="an unknown machine", pid=0, born="", token="")


def _is_gone(owner: Owner) -> bool:
    is_here = owner.host == socket.gethostname() and owner.space == _space()
    return is_here and _born(owner.pid) != owner.born


def _space() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _born(pid: int) -> str:
    """Ticks since the machine's start, and which start; empty: there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"
