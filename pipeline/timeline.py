"""When every task runs on every stage: the schedule's stream against a model of a machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..parallel.tasks import Task
from .cost import Cost
from .schedule import BlockSchedule


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Seconds since the start; the outer row is the task, the inner one the stage.

    Where each branch of guidance has a chain, the conditional one's stages come first.
    """

    schedule: BlockSchedule
    cost: Cost
    layers: tuple[range, ...]  # of each stage
    tasks: tuple[Task, ...]
    arrivals: tuple[tuple[float, ...], ...]  # a task's window can be read from here on
    starts: tuple[tuple[float, ...], ...]
    stops: tuple[tuple[float, ...], ...]
    home: tuple[float, ...]  # a task's result is back at the first stage

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
    rows: list[list[_Visit]] = []
    home: list[float] = []
    for task in tasks:
        at = max((newest.get(part.block, 0.0) for part in task.parts), default=0.0)
        row = chain.take(task, at)
        for other in others:
            row += other.take(task, fork.carry(row[0].start, cost.window_bytes(task)))
            met = merge.carry(row[-1].stop, cost.prediction_bytes(task))
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
        arrivals=tuple(tuple(visit.arrival for visit in row) for row in rows),
        starts=tuple(tuple(visit.start for visit in row) for row in rows),
        stops=tuple(tuple(visit.stop for visit in row) for row in rows),
        home=tuple(home),
    )


@dataclass(frozen=True, slots=True)
class _Visit:
    """Of a task on a stage."""

    arrival: float
    start: float
    stop: float


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
    """Stages, when each may take the next task, and the links between them."""

    def __init__(self, layers: Sequence[range], cost: Cost) -> None:
        self._layers = layers
        self._cost = cost
        self._links = [_Link(cost) for _ in layers]
        self.free = [0.0] * len(layers)

    def take(self, task: Task, at: float) -> list[_Visit]:
        visits: list[_Visit] = []
        for stage, layers in enumerate(self._layers):
            if stage:
                at = self._links[stage].carry(at, self._cost.activation_bytes(task))
            start = max(at, self.free[stage])
            stop = start + self._cost.stage_seconds(task, layers)
            visits.append(_Visit(at, start, stop))
            self.free[stage] = at = stop
        return visits
