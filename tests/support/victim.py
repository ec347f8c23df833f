"""A process that renders, and hurts itself at a point that it was told: what chaos is made of.

A point is the n-th time that the render comes by a place: a change of its folder, which an audit
hook sees before it happens, a step or block that is done, or a state of a chain over Ray.
"""

import errno
import json
import os
import re
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tiny_blocks import ARCHS

from longreel.jobs.home import journal, lock, record
from longreel.jobs.home.edits import extend, redo
from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.lock import Taken
from longreel.models import arch as archs

# of every process of a trial: one begins when the one before it is dead, or stands still
BEAT_S, STALE_S = 0.1, 0.6
DONE, TAKEN, FULL, KILLED = 0, 3, 4, -signal.SIGKILL  # how a victim ends
_KINDS = (
    (r"lock", "lock"),
    (r"journal", "journal"),
    (r"init\.mp4", "init"),
    (r"(r\d+-)?\d+\.m4s", "segment"),
    (r"keys-.*", "keys"),
    (r"(r\d+-)?\d+\.safetensors", "checkpoint"),
    (r"checkpoints|segments", "folder"),
)
_PART = re.compile(r"^\.(.*)\.[0-9a-f]{8}\.part$")


@dataclass(frozen=True, kw_only=True)
class Hurt:
    """What happens at the n-th time at a place. `what`: kill; stop, to be woken when another
    has finished, or `wake`, while it is at it; full, for `lasts` writes."""

    what: str
    place: str
    nth: int = 0
    whom: str = "driver"  # or "stage" or "decoder", over Ray
    lasts: int = 0

    def __str__(self) -> str:
        return f"{self.what}-{self.place.replace(' ', '-')}-{self.nth}"


@dataclass(frozen=True, kw_only=True)
class Order:
    """One go at a render."""

    folder: Path
    edit: tuple = ()  # extend or redo, and its frames: what is to become of a finished one
    hurts: tuple[Hurt, ...] = ()
    changes: dict = field(default_factory=dict)
    log: Path  # what it says, and at its end what it came by
    environment: dict = field(default_factory=dict)


def go(order: Order) -> None:
    """In a process of its own, which leads a session, so that nobody it leaves can hide."""
    os.setsid()
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order.environment)
    archs.ARCHS.update(ARCHS)
    lock.BEAT_S, lock.STALE_S = BEAT_S, STALE_S
    record._FULL_POLL_S = 0.05
    fate = Fate(order)
    fate.watch()
    folder = RenderFolder(order.folder)
    run = record.RenderRun(folder, fate.report, full_s=0.5, changes=order.changes)
    fate.run = run
    try:
        if order.edit and not folder.revision:
            if folder.status().state != "done":  # that line of its journal was cut off
                run.run()
            {"extend": extend, "redo": redo}[order.edit[0]](folder, *order.edit[1:])
        run.run()
    except Taken:
        sys.exit(TAKEN)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sys.exit(FULL)
        raise
    order.log.with_suffix(".json").write_text(json.dumps(fate.seen))


class Fate:
    """Counts what comes by, and strikes."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._full = 0  # writes that still find the disk full
        self.seen: Counter = Counter()
        self.run = None

    def watch(self) -> None:
        sys.addaudithook(self._audit)
        write, fsync = journal._write_all, os.fsync

        def write_all(file, data):
            self.come_by("append")
            half = len(data) // 2 if self._is_due("half") else 0
            write(file, data[:half])  # what a kill may leave of a line
            self.come_by("half")
            write(file, data[half:])

        def checked_fsync(file):
            if self._full > 0:
                self._full -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(file)

        journal._write_all, os.fsync = write_all, checked_fsync
        if self._order.changes.get("parallel.backend") == "ray":
            self._watch_chain()

    def report(self, what, done, total, note=""):
        self.come_by(what)

    def come_by(self, place: str) -> None:
        nth = self.seen[place]
        self.seen[place] += 1
        for hurt in self._order.hurts:
            if (hurt.place, hurt.nth) == (place, nth):
                self._strike(hurt)

    def _is_due(self, place: str) -> bool:
        return any((h.place, h.nth) == (place, self.seen[place]) for h in self._order.hurts)

    def _strike(self, hurt: Hurt) -> None:
        print("strikes:", hurt, flush=True)
        if hurt.what == "full":
            self._full = hurt.lasts
            return
        sent = signal.SIGKILL if hurt.what == "kill" else signal.SIGSTOP
        os.kill(os.getpid() if hurt.whom == "driver" else self._pid_of(hurt.whom), sent)

    def _pid_of(self, whom: str) -> int:
        from ray_cluster import pids_of

        pids = pids_of(self.run._generator._backend)
        return pids[-1] if whom == "decoder" else pids[len(pids) // 2 - 1]

    def _watch_chain(self) -> None:
        from longreel.parallel.ray_chain import RayChain

        enter = RayChain._enter

        def entered(chain, state):
            enter(chain, state)
            self.come_by(f"chain {state}")

        RayChain._enter = entered

    def _audit(self, event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            verb = "open"
        elif event == "os.rename":
            path, verb = args[1], "rename"
        elif event in ("os.remove", "os.mkdir", "shutil.rmtree"):
            path, verb = args[0], event.rpartition(".")[2]
        else:
            return None
        if isinstance(path, (str, Path)) and (kind := self._kind(Path(path))):
            self.come_by(f"{verb} {kind}")
        return None

    def _kind(self, path: Path) -> str | None:
        if self._order.folder not in path.parents:
            return None
        name = _PART.sub(r"\1", path.name)
        return next((kind for known, kind in _KINDS if re.fullmatch(known, name)), None)
