"""Consecutive stages in a process of their own: weights, and one epoch of a chain after the other.

A plain class: crew.py makes it an actor. One thread loads, joins and runs; control calls come from
others and only count, take, or close.
"""

import os
from collections.abc import Callable, Collection, Sequence

import torch

from ..models.shelf import Shelf
from .chain import Schedule, Stepper, Windows
from .edges import Edges
from .front import Counters, Front
from .loading import Reading
from .loop import Loop
from .marks import Marked, Part
from .outbox import Batch
from .process import settle
from .snapshot import CacheKey, PackedSnapshot
from .stage import Stage


class StageActor:
    """Nothing costly happens before `load`; then `join` and `run`, as often as need be.

    Several stages share an actor where they share a device: they take their turns on it anyway.
    """

    def __init__(self) -> None:
        settle()
        self._shelf = Shelf()
        self._stages: list[Stage] = []
        self._device = torch.device("cpu")
        self._loop: Loop | None = None  # of this epoch, or of the last
        self._reading = Reading()

    def where(self) -> tuple[str, str, int]:
        """Node, GPU, process."""
        import ray

        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        return context.get_node_id(), ",".join(gpus), os.getpid()

    def load(self, builds: Sequence[Callable[[Shelf], Stage]], device: str) -> None:
        """Weights are read here, in the process that keeps them, and not twice for two renders."""
        settle()
        self._leave()
        self._stages = []  # before the next ones take their memory
        self._device = torch.device(device)
        with self._reading:
            self._stages = [build(self._shelf) for build in builds]

    def join(
        self,
        edges: Edges,
        windows: Callable[[], Windows] | None,
        stepper: Callable[[], Stepper] | None,
        passes: range = range(2),
        start: PackedSnapshot | None = None,
        limit: int | None = None,
        seen: int = 0,
    ) -> None:
        """Open this epoch's links; the first stage is given windows, the last a stepper.

        Of two branches, the conditional one's: the other's first and last stage send and receive.
        `passes`: those through the model that this stage runs. `start`: where the chain goes on.
        `limit`: blocks that may begin at all, if it was stopped in an earlier epoch; `seen`: those
        that had begun in it. The first stage may be told from here on.
        """
        settle()
        assert self._stages, "load() comes first"
        self._leave()
        front = None if windows is None else Front(windows(), edges.timeout_s / 4)
        made = None if stepper is None else stepper()
        self._loop = Loop(self._stages, self._device, edges, passes, front, made)
        self._loop.open(start, limit, seen)  # `cut` closes what is open by then

    def run(self, schedule: Schedule | None) -> None:
        """Every task: the first stage is given them all, the others hear of them from it.

        LinkClosed when a neighbour is lost or this stage is cut off. At a good end links stay open,
        until all stages have theirs: closing loses what is under way.
        """
        settle()
        self.loop.run(schedule)

    def take(self, wait_s: float) -> Batch:
        """Last stage: what is done since the last call."""
        return self.loop.outbox.take(wait_s)

    def taken(self, count: int) -> None:
        """First stage: so many finished blocks have found their reader."""
        if self.loop.front is not None:
            self.loop.front.take(count)

    def stop(self) -> int:
        """First stage: admit no more blocks; what is in flight is finished. How many in all."""
        return self.loop.admission.stop()

    def change_text(self, text: object) -> int:
        """First stage: the prompt of blocks that are yet to be admitted, and which is the first."""
        assert self.loop.front is not None
        return self.loop.front.change_text(text)

    def ask_mark(self, seen: int, wait_s: float) -> Marked | None:
        """First stage: its part of a snapshot that is newer than number `seen`."""
        return self.loop.marks.ask(seen, wait_s)

    def collect(self, number: int, known: Collection[CacheKey], wait_s: float) -> Part:
        """This actor's part of that snapshot."""
        return self.loop.marks.collect(number, known, wait_s)

    def cut(self) -> None:
        """`run` ends with LinkClosed, here and, as the links go, at every neighbour."""
        if self._loop is not None:
            self._loop.cut()

    def counters(self) -> Counters:
        loop = self._loop
        return Counters(
            task=-1 if loop is None else loop.task,
            cache_bytes=sum(stage.cache_bytes() for stage in self._stages),
            busy_s=tuple(stage.busy_s for stage in self._stages),
            admitted=None if loop is None or loop.front is None else loop.front.admitted(),
            reading_s=self._reading.worked_s(),
        )

    def _leave(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    @property
    def loop(self) -> Loop:
        """Of this epoch."""
        assert self._loop is not None, "join() comes first"
        return self._loop
