"""The kinds of window that a schedule has, by length: one walk for all that is asked of them."""

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from types import MappingProxyType

from ..parallel.tasks import Task
from .schedule import BlockSchedule

_LOOKED_AT = 10_000  # tasks of a video that may have no end: its kinds have all come long before


@lru_cache(maxsize=64)  # plans and chains ask several times, and without an end it takes a second
def kinds_of_window(schedule: BlockSchedule) -> Mapping[tuple[int, int], tuple[Task, int]]:
    """By latents, its own and those it reads from a cache: the first task, and how many."""
    kinds: dict[tuple[int, int], tuple[Task, int]] = {}
    for task in islice(schedule.tasks(), _LOOKED_AT):
        kind = task.num_latents, task.num_cached
        first, count = kinds.get(kind, (task, 0))
        kinds[kind] = first, count + 1
    return MappingProxyType(kinds)


def commonest_task(schedule: BlockSchedule) -> Task:
    """One with the window that the schedule has most of; of several, the widest."""
    kinds = kinds_of_window(schedule)
    return kinds[max(kinds, key=lambda kind: (kinds[kind][1], kind))][0]


def widest_window(schedule: BlockSchedule) -> int:
    """Latents that the largest forward reads, cached ones included."""
    return max(own + cached for own, cached in kinds_of_window(schedule))


def smallest_window(schedule: BlockSchedule) -> int:
    """Latents of the shortest forward's own."""
    return min(own for own, _ in kinds_of_window(schedule))
