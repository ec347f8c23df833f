"""What the last stage has done and the coordinator has yet to hear of.

B batch, C channels, T latents, H height, W width.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .chain import Done
from .stage import Moved
from .tasks import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clean:
    """A finished block in the form that is cheapest to send to another process."""

    block: int
    step: int
    latents_BCTHW: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """News since the last one."""

    tasks: tuple[Task, ...]
    clean: tuple[_Clean, ...]  # of these tasks
    over: bool  # no more will come

    def done(self) -> list[Done]:
        blocks = {
            # a copy: what Ray hands out is shared memory that must not be written to
            clean.block: Moved(
                block=clean.block,
                step=clean.step,
                latents_BCTHW=torch.tensor(clean.latents_BCTHW),
            )
            for clean in self.clean
        }
        return [
            Done(task=task, finished=tuple(blocks[block] for block in task.finishes))
            for task in self.tasks
        ]


class Outbox:
    """Filled by the data loop, emptied by control calls. Admission bounds what it can hold."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tasks: list[Task] = []
        self._clean: list[_Clean] = []
        self._over = False

    def add(self, task: Task, moved: Sequence[Moved]) -> None:
        clean = [
            _Clean(block=m.block, step=m.step, latents_BCTHW=m.latents_BCTHW.cpu().numpy())
            for m in moved
            if m.block in task.finishes
        ]
        with self._changed:
            self._tasks.append(task)
            self._clean += clean
            if clean:
                self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def take(self, wait_s: float) -> Batch:
        """At once when a block is finished or nothing more will come; else after `wait_s`, so that
        progress alone costs a few calls a second however short the tasks are."""
        with self._changed:
            self._changed.wait_for(lambda: self._clean or self._over, wait_s)
            batch = Batch(tasks=tuple(self._tasks), clean=tuple(self._clean), over=self._over)
            self._tasks, self._clean = [], []
            return batch
