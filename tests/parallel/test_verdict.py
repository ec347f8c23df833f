"""Where a lost stage is said to have been."""

from itertools import count
from types import SimpleNamespace

from longreel.parallel.tasks import Part, Task, WalkState
from longreel.parallel.verdict import Words


class Endless:
    """A schedule of one step a block, without an end."""

    def walk(self, start, *rest):
        return SimpleNamespace(tasks=lambda: map(task, count(start.number)))


def task(number):
    part = Part(block=number, step=0, start=number, stop=number + 1, write=True)
    return Task(number=number, tick=number, parts=(part,))


def words(begin):
    return Words(SimpleNamespace(), (), Endless(), WalkState(number=begin, next_block=begin))


def test_a_task_is_named_by_its_block_and_step():
    assert words(0).at(3) == "block 3, step 1"
    assert words(18).at(20) == "block 20, step 1"


def test_one_before_the_place_where_the_chain_went_on_is_the_first_after_it():
    """Of a stage that was lost before it had a task: the walk has no such number, nor an end."""
    assert words(18).at(0) == "block 18, step 1"
