"""When every task runs on every stage: the schedule's stream against a model of a machine."""

from dataclasses import dataclass

from ..parallel.tasks import Task
from .cost import Cost
from .schedule import BlockSchedule


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Seconds since the start; the outer row is the task, the inner one the stage."""

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
        return len(self.layers)


def play(schedule: BlockSchedule, num_stages: int, cost: Cost) -> Timeline:
    """Every stage keeps the one order; links send while stages compute, one window at a time."""
    assert schedule.num_latents is not None, "a video without an end takes for ever"
    tasks = tuple(schedule.tasks())
    widest = max(tasks, key=cost.layer_seconds)
    layers = cost.split(num_stages, widest)
    stage_free, link_free = [0.0] * num_stages, [0.0] * num_stages
    newest: dict[int, float] = {}  # when a block's newest version is at the first stage
    arrivals: list[tuple[float, ...]] = []
    starts: list[tuple[float, ...]] = []
    stops: list[tuple[float, ...]] = []
    home: list[float] = []
    for task in tasks:
        at = max((newest.get(part.block, 0.0) for part in task.parts), default=0.0)
        rows: tuple[list[float], ...] = ([], [], [])
        for stage in range(num_stages):
            start = max(at, stage_free[stage])
            stop = start + cost.stage_seconds(task, layers[stage])
            for row, value in zip(rows, (at, start, stop), strict=True):
                row.append(value)
            stage_free[stage] = stop
            at = stop
            if num_stages > 1:
                sent = max(stop, link_free[stage]) + _bytes(task, stage, num_stages, cost)
                link_free[stage] = sent
                at = sent + cost.seconds.hop
        newest.update((part.block, at) for part in task.written)
        for column, row in zip((arrivals, starts, stops), rows, strict=True):
            column.append(tuple(row))
        home.append(at)
    return Timeline(
        schedule=schedule,
        cost=cost,
        layers=tuple(layers),
        tasks=tasks,
        arrivals=tuple(arrivals),
        starts=tuple(starts),
        stops=tuple(stops),
        home=tuple(home),
    )


def _bytes(task: Task, stage: int, num_stages: int, cost: Cost) -> float:
    """Seconds on the link after a stage; from the last one only latents go round."""
    if stage + 1 < num_stages:
        return cost.activation_bytes(task) * cost.seconds.byte
    latents = sum(part.num_latents for part in task.written)
    return latents * cost.sizes.latent * cost.seconds.byte
