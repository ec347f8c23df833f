"""Stages in order, whatever runs them, and the two ends that turn latents into windows and back."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .stage import Inputs, Moved, Stage, split_passes
from .tasks import Task


class Windows(Protocol):
    """The first stage's end: the latents that windows are made of."""

    def ready(self, task: Task) -> bool: ...
    def inputs(self, task: Task) -> Inputs: ...
    def put(self, moved: Moved) -> None: ...
    def begins_prompt(self, block: int) -> bool: ...
    def change_text(self, text: object) -> None: ...


class Stepper(Protocol):
    """The last stage's end: velocities to latents."""

    def step(self, task: Task, velocities_BCTHW: Sequence[Tensor]) -> list[Moved]: ...


@dataclass(frozen=True, kw_only=True)
class Done:
    """A task that has gone through all stages, and the blocks that are clean with it."""

    task: Task
    finished: tuple[Moved, ...]


class Schedule(Protocol):
    """Where the tasks come from: the same stream at every call, also in another process.

    But for what happens meanwhile: whether it is stopped, and which blocks begin with a new prompt.
    """

    def tasks(
        self, stopped: Callable[[], bool] = ..., begins_prompt: Callable[[int], bool] | None = ...
    ) -> Iterator[Task]: ...


class Chain(Protocol):
    """Runs tasks in their order."""

    def run(self, schedule: Schedule) -> Generator[Done]:
        """Every task once it is done; closing the generator stops the chain and frees it all.

        Blocks that nobody takes hold back the admission of new ones, so nothing grows.
        """

    def stop(self) -> None:
        """Admit no more blocks: those in flight are finished, and `run` ends."""

    def change_text(self, text: object) -> None:
        """What `Windows.change_text` takes: the prompt of blocks that are yet to be admitted."""


class LocalChain:
    """All stages in this process, one task at a time."""

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
        self._stopped = threading.Event()

    def run(self, schedule: Schedule) -> Generator[Done]:
        for task in schedule.tasks(self._stopped.is_set, self._windows.begins_prompt):
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
        for other in others:
            velocities += _forward(self._unconditional, task, other)
        return velocities

    def stop(self) -> None:
        self._stopped.set()

    def change_text(self, text: object) -> None:
        self._windows.change_text(text)


def _forward(stages: Sequence[Stage], task: Task, inputs: Inputs) -> tuple[Tensor, ...]:
    """One window through all layers; no velocities of a task that wants none."""
    x = stages[0].embed(task, inputs)
    for stage in stages:
        x = stage.run(task, x)
    return () if task.commit else stages[-1].head(x)
