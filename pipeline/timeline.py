"""When every task runs on every stage: the schedule's stream against a model of a machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..parallel.tasks import Task
from .cost import Cost
from .schedule import BlockSchedule


@dataclass(frozen=True, slots=True)
class Visit:
    """Of one pass of a task on a stage."""

    arrival: float  # it can be read from here on
    start: float
    stop: float


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Seconds since the start; the outer row is the task, the inner one the stage.

    Where each branch of guidance has a chain, the conditional one's stages come first.
    """

    schedule: BlockSchedule
    cost: Cost
    layers: tuple[range, ...]  # of each stage
    tasks: tuple[Task, ...]
    visits: tuple[tuple[tuple[Visit, ...], ...], ...]  # innermost: of each pass
    home: tuple[float, ...]  # a task's result is back at the first stage

    @cached_property
    def starts(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(visits[0].start for visits in row) for row in self.visits)

    @cached_property
    def stops(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(visits[-1].stop for visits in row) for row in self.visits)

    @property
    def num_stages(self) -> int:
        """Of a chain."""
        return self.num_devices // self.cost.branches

    @property
    def num_devices(self) -> int:
        return len(self.layers)


def play(schedule: BlockSchedule, num_stages: int, cost: Cost) -> Timeline:
    """Every stage keeps the one order; links send while stages compute, one window at a time."""
    assert schedule.num_latents is not None, "a video without an end takes for ever"
    assert not schedule.beginning.kept, "a section's context is made by nobody here"
    tasks = tuple(schedule.tasks())
    layers = cost.split(num_stages, max(tasks, key=cost.layer_seconds))
    chain = _Chain(layers, cost)
    others = [_Chain(layers, cost) for _ in range(cost.branches - 1)]
    ring, fork, merge = _Link(cost), _Link(cost), _Link(cost)
    newest: dict[int, float] = {}  # when a block's newest version is at the first stage
    rows: list[tuple[tuple[Visit, ...], ...]] = []
    home: list[float] = []
    for task in tasks:
        at = max((newest.get(part.block, 0.0) for part in task.parts), default=0.0)
        row = chain.take(task, at)
        for other in others:
            row += other.take(task, fork.carry(row[0][0].start, cost.window_bytes(task)))
            met = merge.carry(row[-1][-1].stop, cost.prediction_bytes(task))
            chain.free[-1] = max(chain.free[-1], met)  # the last stage waits for it
        at = chain.free[-1]
        if num_stages > 1:
            latents = sum(part.num_latents for part in task.written)
            at = ring.carry(at, latents * cost.sizes.latent)
        newest.update((part.block, at) for part in task.written)
        rows.append(row)
        home.append(at)
    return Timeline(
        schedule=schedule,
        cost=cost,
        layers=tuple(layers * cost.branches),
        tasks=tasks,
        visits=tuple(rows),
        home=tuple(home),
    )


class _Link:
    """When it has sent what was given to it so far."""

    def __init__(self, cost: Cost) -> None:
        self._seconds = cost.seconds
        self._free = 0.0

    def carry(self, at: float, num_bytes: int) -> float:
        """When these arrive, which are there to be sent at a time."""
        self._free = max(at, self._free) + num_bytes * self._seconds.byte
        return self._free + self._seconds.hop


class _Chain:
    """Stages, when each may take the next pass, and the links between them."""

    def __init__(self, layers: Sequence[range], cost: Cost) -> None:
        self._layers = layers
        self._cost = cost
        self._links = [_Link(cost) for _ in layers]
        self.free = [0.0] * len(layers)

    def take(self, task: Task, at: float) -> tuple[tuple[Visit, ...], ...]:
        """Its passes follow one another: a stage is at one while the next is at another."""
        passes = [self._take(task, passing, at) for passing in range(self._cost.passes)]
        return tuple(zip(*passes, strict=True))

    def _take(self, task: Task, passing: int, at: float) -> list[Visit]:
        visits: list[Visit] = []
        for stage, layers in enumerate(self._layers):
            if stage:
                at = self._links[stage].carry(at, self._cost.activation_bytes(task))
            start = max(at, self.free[stage])
            stop = start + self._cost.pass_seconds(task, passing, layers)
            visits.append(Visit(at, start, stop))
            self.free[stage] = at = stop
        return visits
