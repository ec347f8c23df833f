"""Stages in order, whatever runs them, and the two ends that turn latents into windows and back."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .snapshot import Admission, Snapshot, join_pieces
from .stage import Inputs, Moved, Stage, split_passes
from .tasks import Task, WalkState

Wanted = Callable[[bool], bool]


def never(has_finished: bool) -> bool:
    return False


class Windows(Protocol):
    """The first stage's end: the latents that windows are made of."""

    def ready(self, task: Task) -> bool: ...
    def inputs(self, task: Task) -> Inputs: ...
    def put(self, moved: Moved) -> None: ...
    def admit(self, stop: int) -> None: ...
    def begins_prompt(self, block: int) -> bool: ...
    def change_text(self, text: object) -> int: ...
    def held(self) -> dict[int, tuple[int, Tensor]]: ...
    def restore(self, walk: WalkState, held: Mapping[int, tuple[int, Tensor]]) -> None: ...


class Stepper(Protocol):
    """The last stage's end: velocities to latents."""

    def step(self, task: Task, velocities_BCTHW: Sequence[Tensor]) -> list[Moved]: ...
    def held(self) -> dict[int, tuple[Tensor, ...]]: ...
    def restore(self, held: Mapping[int, tuple[Tensor, ...]]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Done:
    """A task that has gone through all stages, and the blocks that are clean with it."""

    task: Task
    finished: tuple[Moved, ...]


class Walk(Protocol):
    """One walk through a schedule."""

    tick_start: WalkState  # of the tick whose tasks are being taken

    def tasks(self) -> Iterator[Task]: ...


class Schedule(Protocol):
    """Where the tasks come from: the same stream at every walk, also in another process.

    But for what happens meanwhile: whether it is stopped, and which blocks begin with a new prompt.
    """

    def walk(
        self,
        start: WalkState,
        stopped: Callable[[], bool] = ...,
        begins_prompt: Callable[[int], bool] | None = ...,
    ) -> Walk: ...


class Chain(Protocol):
    """Runs tasks in their order."""

    is_loaded: bool  # what it is told now is heard at once

    def run(
        self,
        schedule: Schedule,
        start: Snapshot | None = None,
        limit: int | None = None,
        wanted: Wanted = never,
        seen: int = 0,
    ) -> Generator[Done | Snapshot]:
        """Every task once it is done; closing the generator stops the chain and frees it all.

        Blocks that nobody takes hold back the admission of new ones, so nothing grows. `start`: go
        on from there; tasks may be done once more, with the same result. `limit`: how many blocks
        may begin, where that was said before. `wanted` is asked between ticks, with whether a block
        has been finished since; if so, a snapshot follows, after every task that it counts. Blocks
        before `seen` had begun by the time that something was lost, and no change is for them.
        All this is known with the call, after which the chain may be told.
        """

    def stop(self) -> int:
        """Admit no more blocks than the first: those in flight are finished, and `run` ends. How
        many in all."""

    def change_text(self, text: object) -> int:
        """What `Windows.change_text` takes: the prompt of blocks that are yet to be admitted."""


class LocalChain:
    """All stages in this process, one task at a time."""

    is_loaded = True

    def __init__(
        self,
        stages: Sequence[Stage],
        windows: Windows,
        stepper: Stepper,
        unconditional: Sequence[Stage] = (),
    ) -> None:
        """`unconditional`: stages of that branch's own; none: `stages` run both branches."""
        self._stages = stages
        self._unconditional = unconditional
        self._windows = windows
        self._stepper = stepper
        self._admission = Admission()
        self._busy_s: list[float] = []  # once there are no stages any more

    def run(
        self,
        schedule: Schedule,
        start: Snapshot | None = None,
        limit: int | None = None,
        wanted: Wanted = never,
        seen: int = 0,
    ) -> Generator[Done | Snapshot]:
        begin = self._restore(start) if start else WalkState()
        self._admission.resume(begin.next_block, limit, seen)
        self._windows.admit(seen)
        return self._run(schedule, begin, wanted)

    def _run(
        self, schedule: Schedule, begin: WalkState, wanted: Wanted
    ) -> Generator[Done | Snapshot]:
        try:
            yield from self._steps(schedule, begin, wanted)
        finally:
            self._busy_s = self.busy_s
            self._stages = self._unconditional = ()  # and with them the weights

    def _steps(
        self, schedule: Schedule, begin: WalkState, wanted: Wanted
    ) -> Generator[Done | Snapshot]:
        walk = schedule.walk(begin, self._admission.stopped, self._windows.begins_prompt)
        tick, has_finished = begin.tick, False
        for task in walk.tasks():
            if task.tick > tick and wanted(has_finished):
                yield self._snapshot(walk.tick_start)
                has_finished = False
            tick = task.tick
            has_finished = has_finished or bool(task.finishes)
            assert self._windows.ready(task), f"task {task.number} comes before what it reads"
            velocities = self._velocities(task, self._windows.inputs(task))
            moved: list[Moved] = []
            if not task.commit:
                moved = self._stepper.step(task, velocities)
                for version in moved:
                    self._windows.put(version)
            finished = tuple(m for m in moved if m.block in task.finishes)
            yield Done(task=task, finished=finished)

    def _velocities(self, task: Task, inputs: Inputs) -> tuple[Tensor, ...]:
        if not self._unconditional:
            return _forward(self._stages, task, inputs)
        mine, *others = split_passes(inputs)  # no others: this step is not guided
        velocities = _forward(self._stages, task, mine)
        if not others:
            for stage in self._unconditional:
                stage.skip(task)
        for other in others:
            velocities += _forward(self._unconditional, task, other)
        return velocities

    def _snapshot(self, walk: WalkState) -> Snapshot:
        pieces = [
            piece
            for passes, stages in self._branches
            for stage in stages
            for piece in stage.pieces(passes)
        ]
        return Snapshot(
            walk=walk,
            latents=self._windows.held(),
            samples=self._stepper.held(),
            caches=join_pieces(pieces),
        )

    def _restore(self, start: Snapshot) -> WalkState:
        self._windows.restore(start.walk, start.latents)
        self._stepper.restore(start.samples)
        for passes, stages in self._branches:
            for stage in stages:
                stage.restore(start.walk.entries, start.caches, passes)
        return start.walk

    @property
    def _branches(self) -> list[tuple[range, Sequence[Stage]]]:
        if not self._unconditional:
            return [(branch_passes(None), self._stages)]
        return [(branch_passes(0), self._stages), (branch_passes(1), self._unconditional)]

    @property
    def busy_s(self) -> list[float]:
        """Seconds that each stage of the conditional branch has worked."""
        return [stage.busy_s for stage in self._stages] or self._busy_s

    def stop(self) -> int:
        return self._admission.stop()

    def change_text(self, text: object) -> int:
        return self._windows.change_text(text)


def branch_passes(branch: int | None) -> range:
    """The passes through the model that one branch of guidance is; none: all go one way."""
    return range(2) if branch is None else range(branch, branch + 1)


def _forward(stages: Sequence[Stage], task: Task, inputs: Inputs) -> tuple[Tensor, ...]:
    """One window through all layers; no velocities of a task that wants none."""
    velocities: tuple[Tensor, ...] = ()
    for passing in range(len(inputs.texts_BSD)):
        x = stages[0].embed(task, inputs, passing)
        for stage in stages:
            x = stage.run(task, x)
        velocities += () if task.commit else stages[-1].head(x)
    return velocities
