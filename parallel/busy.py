"""How long each stage has worked, asked now and then: nothing here waits."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import ray

from .crew import GONE, Member, result
from .layout import Layout

_EVERY_S = 1.0


class Busy:
    """Of the actors of one epoch."""

    def __init__(self, layout: Layout, members: Sequence[Member]) -> None:
        self._layout = layout
        self._members = members
        self._asked: list[ray.ObjectRef[Any]] = []
        self._asked_s = 0.0

    def poll(self) -> list[float] | None:
        """Seconds by stage, of its devices on average, when there is news of them."""
        now, refs = time.monotonic(), self._asked
        if refs and len(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) == len(refs):
            self._asked = []
            with contextlib.suppress(*GONE):  # who is lost is noticed elsewhere
                busy = defaultdict[int, list[float]](list)
                for seat, counters in zip(self._layout.seats, map(result, refs), strict=True):
                    for stage, seconds in zip(seat.stages, counters.busy_s, strict=True):
                        busy[stage].append(seconds)
                return [fmean(busy[stage]) for stage in sorted(busy)]
        elif not refs and now - self._asked_s > _EVERY_S:
            self._asked_s = now
            self._asked = [member.control("counters") for member in self._members]
        return None
