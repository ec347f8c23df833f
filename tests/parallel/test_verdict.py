"""Where a lost stage is said to have been."""

from itertools import count
from types import SimpleNamespace

from longreel.configs.parallel import ParallelConfig
from longreel.parallel.layout import make_layout
from longreel.parallel.tasks import Part, Task, WalkState
from longreel.parallel.verdict import Words

LAYOUT = make_layout(ParallelConfig())


class Endless:
    """A schedule of one step a block, without an end."""

    def walk(self, start, *rest):
        return SimpleNamespace(tasks=lambda: map(task, count(start.number)))


def task(number):
    part = Part(block=number, step=0, start=number, stop=number + 1, write=True)
    return Task(number=number, tick=number, parts=(part,))


def words(begin):
    return Words(LAYOUT, (range(4),), Endless(), WalkState(number=begin, next_block=begin))


def test_a_task_is_named_by_its_block_and_step():
    assert words(0).at(3) == "block 3, step 1"
    assert words(18).at(20) == "block 20, step 1"


def test_one_before_the_place_where_the_chain_went_on_is_the_first_after_it():
    """Of a stage that was lost before it had a task: the walk has no such number, nor an end."""
    assert words(18).at(0) == "block 18, step 1"


def test_who_is_slow_to_load_is_not_said_to_lack_memory():
    slow = str(words(0).not_loaded([], TimeoutError("waited 3600 s for weights to load")))
    assert slow.startswith("stages have not loaded their weights (waited 3600 s for weights to")
    assert "memory" not in slow
    lost = str(words(0).not_loaded([0], RuntimeError("it died\nat once")))
    assert lost.startswith("stage 1 of 1 (layers 0 to 3) was lost while it loaded its weights (it ")
    assert "more stages" in lost
