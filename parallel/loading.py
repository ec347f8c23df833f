"""Actors that load their weights, watched: a slow disk takes some of a thread's time, one that does
not answer takes none."""

import time
from collections.abc import Callable

from .crew import Crew
from .errors import ChainBroken

_STILL_S = 60.0  # before it is said, and again each time after twice as long
_OVER_S = 1800.0  # before it is over: another process there would wait for the same disk


class Loading:
    """Of those of a crew that are at it."""

    def __init__(
        self,
        crew: Crew,
        within_s: float,
        name: Callable[[int], str],
        hear: Callable[[str], None],
    ) -> None:
        """`name` is how a member is called, and `hear` is told of those who stand still."""
        self._crew = crew
        self._within_s = within_s
        self._name = name
        self._hear = hear
        # of each: its time on the processor, since when that is so, and when that is said
        self._seen: dict[int, tuple[float | None, float, float]] = {}

    def look(self) -> None:
        """Raises as Crew.check_alive does, and ChainBroken when one stands still for good."""
        for i, counters in enumerate(self._crew.check_alive(self._within_s)):
            now, worked_s = time.monotonic(), counters.loading_s
            before_s, since_s, patience_s = self._seen.get(i, (None, now, _STILL_S))
            if worked_s is None or worked_s != before_s:
                self._seen[i] = worked_s, now, _STILL_S
                continue
            still = (
                f"{self._name(i)} stands still while it loads its weights, for {now - since_s:.0f} "
                f"s now, as a disk that does not answer makes it, on node "
                f"{self._crew.members[i].node[:8]}"
            )
            if now - since_s > _OVER_S:
                raise ChainBroken(f"{still}; see that the weights can be read there, and resume it")
            if now - since_s > patience_s:
                self._seen[i] = worked_s, since_s, 2 * patience_s
                self._hear(f"{still}; it goes on when that does, within {_OVER_S / 60:g} minutes")
