"""Whether who reads weights stands still: a slow disk takes some of a thread's time on the
processor, one that does not answer takes none."""

import threading
import time
from collections.abc import Callable

from ..models.checkpoint import fetching
from .errors import ChainBroken

_STILL_S = 60.0  # before it is said, and again each time after twice as long
_OVER_S = 1800.0  # before it is over: another process there would wait for the same disk


class Reading:
    """The actor's end: the thread that reads is in it, and others ask."""

    def __init__(self) -> None:
        self._clock: int | None = None  # of that thread

    def __enter__(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def __exit__(self, *raised: object) -> None:
        self._clock = None

    def worked_s(self) -> float | None:
        """On the processor; none: nobody is in it, or waits there for a download."""
        clock = self._clock
        return None if clock is None or fetching.is_set() else time.clock_gettime(clock)


class Stillness:
    """The other end, of one wait."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        """`hear` is told of those who stand still."""
        self._hear = hear
        # of each: its time on the processor, since when that is so, and when that is said
        self._seen: dict[str, tuple[float | None, float, float]] = {}

    def see(self, who: str, worked_s: float | None) -> None:
        """Now and then. ChainBroken when they stand still for good."""
        now = time.monotonic()
        before_s, since_s, patience_s = self._seen.get(who, (None, now, _STILL_S))
        if worked_s is None or worked_s != before_s:
            self._seen[who] = worked_s, now, _STILL_S
            return
        still = (
            f"{who} has stood still for {now - since_s:.0f} s where it reads weights, as a disk "
            "that does not answer makes it"
        )
        if now - since_s > _OVER_S:
            raise ChainBroken(f"{still}; see that they can be read there, and resume the render")
        if now - since_s > patience_s:
            self._seen[who] = worked_s, since_s, 2 * patience_s
            self._hear(f"{still}; it goes on when that does, within {_OVER_S / 60:g} minutes")
