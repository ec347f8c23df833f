"""The kinds of window that a schedule has, by length: one walk for all that is asked of them."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from types import MappingProxyType

from ..parallel.tasks import Task
from .schedule import BlockSchedule

_LOOKED_AT = 10_000  # tasks of a video that may have no end


@lru_cache(maxsize=64)  # plans and chains ask several times, and without an end it takes a second
def kinds_of_window(schedule: BlockSchedule) -> Mapping[tuple[int, int], tuple[Task, int]]:
    """By latents, its own and those it reads from a cache: the first task, and how many."""
    kinds: dict[tuple[int, int], tuple[Task, int]] = {}
    for task in telling_tasks(schedule, _LOOKED_AT):
        kind = task.num_latents, task.num_cached
        first, count = kinds.get(kind, (task, 0))
        kinds[kind] = first, count + 1
    return MappingProxyType(kinds)


def telling_tasks(schedule: BlockSchedule, most: int) -> Iterator[Task]:
    """All kinds of window are among them: so many tasks of a video's beginning, and where it goes
    on, all of a short one that ends as it does, as the last block is of a size of its own."""
    tasks = schedule.tasks()
    yield from islice(tasks, most)
    if schedule.num_latents is not None and next(tasks, None) is not None:
        fewer = schedule.num_latents - _num_alike(schedule) * schedule.size
        yield from replace(schedule, num_latents=fewer).tasks()


def _num_alike(s: BlockSchedule) -> int:
    """Blocks of a video's midst without which its windows are of the same kinds."""
    assert s.num_blocks is not None
    made = s.num_blocks - s.first_block
    reach = -(-(max(s.left + s.right, s.clean) + s.sink) // s.size)
    if s.burst:
        bursts = max(1, made // s.burst)
        size, larger = divmod(made, bursts)
        few = 3 + reach // s.burst  # of each size: at its beginning, amid others, at its end
        return max(0, larger - few) * (size + 1) + max(0, bursts - larger - few) * size
    together = most = s.max_inflight if s.joint != 1 or not s.stagger else 1
    if s.window:  # it holds more blocks where none are to their left
        together = max(1, min(most, (s.window - s.left) // s.size))
    # as many as begin together, so that these are the same ones at the end
    return max(0, made - 2 * most - 3 - reach) // together * together


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
