"""How many steps the blocks of a render have taken, and which are at which."""

from ..parallel.chain import Done
from ..parallel.tasks import WalkState


class Tally:
    """From where a walk through the schedule stands."""

    def __init__(self, walk: WalkState, steps: int) -> None:
        self._steps = steps  # of each block
        self._levels = dict(walk.in_flight)  # steps that blocks in flight have taken
        self._finished = walk.next_block - len(self._levels)

    def add(self, done: Done) -> None:
        self._levels.update({part.block: part.step + 1 for part in done.task.written})
        for moved in done.finished:
            del self._levels[moved.block]
            self._finished += 1

    @property
    def taken(self) -> int:
        return self._finished * self._steps + sum(self._levels.values())

    @property
    def note(self) -> str:
        return " ".join(f"{block}:{step}" for block, step in sorted(self._levels.items()))
