"""What has broken a chain: links close all along it, and at most a few actors know why."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from ..configs.errors import first_line
from .chain import Schedule
from .crew import GONE, SLICE_S, Member, fails, result
from .errors import ChainBroken
from .front import Counters
from .layout import Layout
from .link import LinkClosed
from .tasks import Task, WalkState

_VERDICT_S = 2.0  # after the first failure, for the others to tell theirs


def look(
    members: Sequence[Member], runs: "Mapping[int, ray.ObjectRef[Any]]"
) -> tuple[list[int], set[int], BaseException | None]:
    """Lost members, those of them whose process is gone, and an error that is not of the links.

    Ends as soon as every member has shown that it lives or not.
    """
    pings = {i: member.control("counters") for i, member in enumerate(members)}
    alive, gone = set[int](), set[int]()
    deadline = time.monotonic() + _VERDICT_S
    while len(alive | gone) < len(members) and time.monotonic() < deadline:
        waiting = [ref for i, ref in pings.items() if i not in alive | gone]
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=SLICE_S)
        for i, ref in pings.items():
            if ref in ready:
                (gone if fails(ref) else alive).add(i)
    lost = [i for i in pings if i not in alive]
    living = [ref for i, ref in runs.items() if i in alive]
    ended = ray.wait(living, num_returns=len(living), timeout=_VERDICT_S)[0] if living else []
    for ref in ended:
        try:
            result(ref)
        except (LinkClosed, *GONE):
            continue
        except BaseException as error:
            return lost, gone, error
    return lost, gone, None


class Words:
    """How an actor and its task are called."""

    def __init__(
        self, layout: Layout, slices: Sequence[range], schedule: Schedule, begin: WalkState
    ) -> None:
        """`begin`: where the walk was that broke off, or before."""
        self._layout = layout
        self._slices = slices
        self._schedule = schedule
        self._begin = begin

    def lost(self, members: Sequence[Member], actor: int, done: int, *, ended: bool) -> ChainBroken:
        where = members[actor]
        number = self._first_missing(members, actor, done)
        return ChainBroken(
            f"{self.name(actor)} was lost at {self.at(number)}: its process "
            f"{where.pid} on node {where.node[:8]} {'ended' if ended else 'does not answer'}; "
            "see Ray's logs there for the reason, which is often lack of memory"
        )

    def not_loaded(self, lost: Sequence[int], first: BaseException) -> ChainBroken:
        if not lost:
            return ChainBroken(
                f"stages have not loaded their weights ({first_line(first)}): perhaps the disk "
                "that these are on is too slow; put them on one that is nearer"
            )
        return ChainBroken(
            f"{self.name(lost[0])} was lost while it loaded its weights ({first_line(first)}): "
            "perhaps its memory did not suffice; use more "
            f"{'devices' if self._layout.shared else 'stages'}, or model.dtype=bfloat16"
        )

    def at(self, number: int) -> str:
        tasks = self._schedule.walk(self._begin).tasks()
        task = next((task for task in tasks if task.number >= number), None)
        return "its end" if task is None else describe(task)

    def name(self, actor: int) -> str:
        seat, total = self._layout.seats[actor], self._layout.num_stages
        first, last = seat.stages[0], seat.stages[-1]
        what = f"stage {first + 1}"
        if first < last:
            what = f"the actor of stages {first + 1} to {last + 1}"
        layers = f"layers {self._slices[first].start} to {self._slices[last].stop - 1}"
        branch = ""
        if self._layout.num_branches > 1:
            branch = f", {('conditional', 'unconditional')[seat.branch]} branch"
        share = ""
        if self._layout.num_shares > 1:
            share = f"device {seat.share + 1} of {self._layout.num_shares} of "
        return f"{share}{what} of {total} ({layers}{branch})"

    def _first_missing(self, members: Sequence[Member], actor: int, done: int) -> int:
        """The task that an actor was at, as those after it in its chain know."""
        mesh = self._layout.mesh
        for after in mesh.line(actor, "stage")[mesh.at(actor)["stage"] + 1 :]:
            ref = members[after].control("counters")
            if ray.wait([ref], timeout=_VERDICT_S)[0]:
                try:
                    counters: Counters = result(ref)
                    return counters.task + 1
                except GONE:
                    continue
        return done


def describe(task: Task) -> str:
    """Where a task stands, in the words of people."""
    part = task.written[0] if task.written else task.parts[-1]
    return f"block {part.block}, step {part.step + 1}"
