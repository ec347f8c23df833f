"""Faults of one process, drawn from a seed: a child makes a render, and is hurt at some point.

Points are the reports of a render and everything it does to files, so every state that it can
leave on the disk is one of them.
"""

import errno
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from unittest import mock

from longreel.jobs.home import durable, lock, record
from longreel.jobs.home.record import RenderRun

KINDS = ("kill", "stop", "truncate", "flip", "full", "cut journal")
_WRITES = ("os.rename", "os.remove", "os.truncate", "os.link")
_WRITING = os.O_WRONLY | os.O_RDWR
_STALE_S = 0.5
_WAIT_S = 120.0


@dataclass(frozen=True)
class Fault:
    kind: str
    at: int  # point


def draw(seed, points):
    """One to three faults; `points`: how many an undisturbed render passes."""
    rng = random.Random(seed)
    return [
        Fault(KINDS[(seed + i) % len(KINDS)], rng.randrange(1, points))
        for i in range(rng.randint(1, 3))
    ]


class Points:
    """Counts them, and does something at one."""

    def __init__(self, at=0, act=lambda: None):
        self.count, self._at, self._act = 0, at, act

    def report(self, what, done, total, note=""):
        self.passed()

    def hook(self, event, args):
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if event in _WRITES or writes:
            self.passed()

    def passed(self):
        self.count += 1
        if self.count == self._at:
            self._act()


def count_points(folder):
    """Of an undisturbed render, which it makes."""
    code, read = 0, os.pipe()
    pid = os.fork()
    if pid == 0:
        points = Points()
        sys.addaudithook(points.hook)
        RenderRun(folder, points.report).run()
        os.write(read[1], str(points.count).encode())
        os._exit(0)
    code = _wait(pid)
    assert code == 0, code
    return int(os.read(read[0], 100))


def suffer(home, folder, fault, seed):
    """The render begun or gone on with, hurt once; whatever it was, its process is gone after."""
    if fault.kind == "full":
        return _fill(folder, fault)
    sent = signal.SIGSTOP if fault.kind == "stop" else signal.SIGKILL
    pid = os.fork()
    if pid == 0:
        points = Points(fault.at, lambda: os.kill(os.getpid(), sent))
        sys.addaudithook(points.hook)
        try:
            RenderRun(folder, points.report).run()
        finally:
            os._exit(0)
    if fault.kind == "stop":
        return _wake_later(home, folder, pid)
    _wait(pid)
    _damage(folder, fault, seed)
    return None


def _wake_later(home, folder, pid):
    """Another goes on with what a stopped process has; then that one wakes up."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFEXITED(status):
        return  # it was over before the point
    assert os.WIFSTOPPED(status)
    with mock.patch.object(lock, "STALE_S", _STALE_S):
        time.sleep(2 * _STALE_S)
        RenderRun(home.open(folder.id)).run()
    before = contents(folder)
    os.kill(pid, signal.SIGCONT)
    _wait(pid)
    assert contents(folder) == before, "a process that was replaced has written"


def _damage(folder, fault, seed):
    rng = random.Random(seed)
    files = sorted((folder.path / "checkpoints").glob("*.safetensors"))
    if fault.kind == "cut journal":
        files = [folder.path / "journal"]
    if fault.kind == "kill" or not files:
        return
    path = files[-1]
    data = bytearray(path.read_bytes())
    if fault.kind == "flip" and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        least = len(data) // 2 if fault.kind == "cut journal" else 0
        del data[rng.randrange(least, len(data) + 1) :]
    path.write_bytes(data)


def _fill(folder, fault):
    """A disk that is full for some writes, and then no more."""
    real, left, points = os.fsync, [5], Points(fault.at)

    def fsync(descriptor):
        points.passed()
        if points.count >= fault.at // 4 and left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with (
        mock.patch.object(os, "fsync", fsync),
        mock.patch.object(record, "_FULL_POLL_S", 0.01),
    ):
        RenderRun(folder).run()


def _wait(pid):
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"a render did not end within {_WAIT_S:g} s")


def contents(folder):
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name not in ("lock", ".lock-guard")}


def leftovers(folder):
    return [path.name for path in folder.path.rglob(f".*{durable.PART}")]
