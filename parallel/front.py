"""The first stage's door: tasks enter when what they read has come round and there is room."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .chain import Windows
from .snapshot import Snapshot
from .stage import Inputs, Moved
from .tasks import Task, WalkState


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """How many blocks have gone in, have gone in for the last time, and were taken."""

    begun: int
    finished: int
    taken: int


@dataclass(frozen=True, kw_only=True)
class Counters:
    """How far an actor is, for whoever watches it."""

    task: int  # that it has the input of, or had last; -1: none yet
    cache_bytes: int
    busy_s: tuple[float, ...]  # of each of its stages
    admitted: Admitted | None  # at the first stage
    reading_s: float | None  # of the thread that reads weights, on the processor; none: none does


class Front:
    """Windows under a lock: one thread enters tasks, another brings versions, a third says taken.

    Admission is the only push-back: a task that begins a block waits while as many finished blocks
    as one tick makes, and one more, have not been taken. Everything before it goes on.
    """

    def __init__(self, windows: Windows, patience_s: float) -> None:
        """`patience_s`: how long to wait without a word to the others."""
        self._windows = windows
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._begun = self._finished = self._taken = 0  # blocks
        self._entered = self._home = 0  # tasks
        self._tick = -1
        self._finished_in_tick = 0
        self._burst = 0  # most blocks that one tick has finished
        self._marked: dict[int, tuple[int, Tensor]] | None = None  # held when a mark was sent

    def enter(self, task: Task, idle: Callable[[], None]) -> Inputs:
        """The task's window, when its time has come; `idle` is called now and then until it has."""
        while task.admits and not self._wait(self._has_room):
            idle()
        while not self._wait(lambda: self._windows.ready(task) or self._home == self._entered):
            idle()
        with self._changed:
            assert self._windows.ready(task), f"task {task.number} comes before what it reads"
            self._count(task)
            return self._windows.inputs(task)

    def put(self, moved: Sequence[Moved]) -> None:
        """What one task has made, in the order of tasks."""
        with self._changed:
            for version in moved:
                self._windows.put(version)
                if self._marked is not None:
                    self._marked[version.block] = version.step, version.latents_BCTHW
            self._home += 1
            self._changed.notify_all()

    def restore(self, start: Snapshot) -> None:
        with self._changed:
            self._windows.restore(start.walk, start.latents)

    def begin_mark(self) -> None:
        """A mark is sent: what comes round before it does was made before it."""
        with self._changed:
            self._marked = self._windows.held()

    def end_mark(self, walk: WalkState) -> dict[int, tuple[int, Tensor]]:
        """It has come round: the latents that a walk from there reads."""
        with self._changed:
            assert self._marked is not None, "a mark came that was not sent"
            marked, self._marked = self._marked, None
        return {block: held for block, held in marked.items() if block in walk.kept}

    def take(self, count: int) -> None:
        """`count` finished blocks have been taken so far; calls may overtake each other."""
        with self._changed:
            self._taken = max(self._taken, count)
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """Whoever waits, or comes to, gets this instead."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def check(self) -> None:
        with self._changed:
            if self._error:
                raise self._error

    def change_text(self, text: object) -> int:
        with self._changed:
            return self._windows.change_text(text)

    def admit(self, stop: int) -> None:
        """Blocks before this one had begun in an epoch before."""
        with self._changed:
            self._windows.admit(stop)

    def begins_prompt(self, block: int) -> bool:
        """Whether this block reads another prompt than the one before: from now on that is so."""
        with self._changed:
            return self._windows.begins_prompt(block)

    def admitted(self) -> Admitted:
        with self._changed:
            return Admitted(begun=self._begun, finished=self._finished, taken=self._taken)

    def _has_room(self) -> bool:
        # one more than a burst: the next begins while the last one is on its way to the consumer
        return self._finished - self._taken < self._burst + 1

    def _wait(self, condition: Callable[[], bool]) -> bool:
        with self._changed:
            met = self._changed.wait_for(lambda: self._error or condition(), self._patience_s)
            if self._error:
                raise self._error
            return bool(met)

    def _count(self, task: Task) -> None:
        self._entered += 1
        if task.tick != self._tick:
            self._tick, self._finished_in_tick = task.tick, 0
        self._begun += len(task.admits)
        self._finished += len(task.finishes)
        self._finished_in_tick += len(task.finishes)
        self._burst = max(self._burst, self._finished_in_tick)
