"""Snapshots of a chain of actors, fetched while it works: nothing here waits."""

from collections.abc import Sequence
from typing import Any

import ray

from .chain import Wanted
from .crew import Member, result
from .marks import Marked, Part, Vault
from .snapshot import Snapshot

_WAIT_S = 2.0  # of a control call, for the next tick to begin


class Taker:
    """Of one epoch."""

    def __init__(
        self, members: Sequence[Member], vault: Vault, wanted: Wanted, timeout_s: float
    ) -> None:
        """`timeout_s`: how long an actor may be behind the first stage."""
        self._members = members
        self._vault = vault
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._seen = 0
        self._has_finished = False
        self._asked: ray.ObjectRef[Any] | None = None
        self._marked: Marked | None = None
        self._parts: list[ray.ObjectRef[Any]] = []
        self._ready: Snapshot | None = None

    def poll(self, done: int, has_finished: bool) -> Snapshot | None:
        """A snapshot once all tasks that it counts are among the `done` ones; else soon."""
        self._has_finished = self._has_finished or has_finished
        if self._asked is None and self._marked is None and self._ready is None:
            if self._wanted(self._has_finished):
                self._ask()
        elif self._asked is not None and _is_there(self._asked):
            self._marked, self._asked = result(self._asked), None
            if self._marked is None:
                self._ask()
            else:
                self._seen = self._marked.number
                args = self._seen, self._vault.known, self._timeout_s
                self._parts = [member.control("collect", *args) for member in self._members]
        elif self._marked is not None and all(map(_is_there, self._parts)):
            parts: list[Part] = [result(part) for part in self._parts]
            self._ready, self._marked = self._vault.assemble(self._marked, parts), None
            self._parts = []
        if self._ready is not None and self._ready.walk.number <= done:
            ready, self._ready = self._ready, None
            self._has_finished = False
            return ready
        return None

    def _ask(self) -> None:
        self._asked = self._members[0].control("ask_mark", self._seen, _WAIT_S)


def _is_there(ref: "ray.ObjectRef[Any]") -> bool:
    return bool(ray.wait([ref], timeout=0)[0])
