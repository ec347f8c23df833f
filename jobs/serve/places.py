"""Who waits before whom: kept, as lists ask for the place of each and every change moves some."""

from bisect import bisect_left
from collections.abc import Iterable

Turn = tuple[int, int]  # lower is sooner


class Places:
    """Of all that wait."""

    def __init__(self, waiting: Iterable[Turn]) -> None:
        self._turns = sorted(waiting)

    def before(self, turn: Turn) -> int:
        """How many."""
        return bisect_left(self._turns, turn)

    def note(self, turn: Turn, *, waits: bool) -> None:
        """Whether it does by now, as it may have before."""
        place = bisect_left(self._turns, turn)
        waited = self._turns[place : place + 1] == [turn]
        if waits and not waited:
            self._turns.insert(place, turn)
        elif waited and not waits:
            del self._turns[place]


def turn(priority: int, number: int) -> Turn:
    """Higher priorities first, then the older one."""
    return -priority, number
