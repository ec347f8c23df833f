"""A chain over Ray actors, from one process that only waits and repairs.

PLACE -> LOAD -> JOIN -> RUN -> DRAIN, and from any of them FENCE -> REPAIR -> LOAD -> JOIN in the
next epoch. The coordinator decides nothing per step and sees no activation: it starts the data
loops, asks the last stage a few times a second what is done, tells the first how much of it was
taken, and fetches a snapshot now and then, from which the next epoch goes on.
"""

import logging
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from ..configs.errors import first_line
from ..models.shelf import Shelf
from .busy import Busy
from .chain import Done, Schedule, Stepper, Wanted, Windows, branch_passes, never
from .crew import GONE, SLICE_S, Check, Crew, Member, NoReplacement, result, settle_all, wait_all
from .edges import wire
from .errors import ChainBroken
from .link import LinkClosed, LinkSpec, Rendezvous, choose_kind
from .loading import Stillness
from .marks import Vault
from .messages import Stamp
from .outbox import Batch
from .placement import this_node
from .snapshot import EMPTY, PackedSnapshot, Snapshot, pack_snapshot
from .stage import Stage
from .taker import Taker
from .telling import Telling
from .verdict import Words, look

_log = logging.getLogger("longreel")
_NEWS_S = 0.1  # how old news of progress may be
_CONTROL_S = 10.0  # for an answer to a control call
_LOAD_S = 3600.0  # for a slice of the weights to come from a slow disk
_BREAKS = (LinkClosed, TimeoutError, *GONE)
_ANEW = "; layers are split anew over the devices that are left"

Bear = Callable[[ChainBroken], None]  # raises it when there were too many


@dataclass(frozen=True, kw_only=True)
class ChainParts:
    """What the actors build for themselves: called there, on the device that is named."""

    stage: Callable[[range, str, Shelf], Stage]
    windows: Callable[[str], Windows]
    stepper: Callable[[str], Stepper]
    # told of a block and what is read from it on, and of the oldest that later epochs read for
    remember: Callable[[int, object, int], None] = lambda block, text, oldest: None


@dataclass(frozen=True, kw_only=True)
class Devices:
    """What a chain runs on: its actors, and the layers of each stage."""

    crew: Crew
    slices: Sequence[range]
    device: str  # "cuda" or "cpu"


class RayChain:
    """Runs one schedule over a crew, and ends the crew unless that went well."""

    def __init__(
        self,
        devices: Devices,
        parts: ChainParts,
        *,
        timeout_s: float,
        link: str = "auto",
        check: Check = lambda: None,
        repairs: int = 0,
        regroup: Callable[[Bear], Devices] | None = None,
        hear: Callable[[str], None] = lambda what: None,
    ) -> None:
        """`link` is parallel.link. `check` is called now and then from every wait, and raises to
        give the render up. `repairs`: how many failures in a row are borne without a new block
        between them, each of which `hear` is told of; `regroup` finds others for devices that are
        lost for good, and is told how to bear what it loses meanwhile."""
        self._devices = devices
        self._parts = parts
        self._timeout_s = timeout_s
        self._wanted_link = link
        self._check = check
        self._repairs = repairs
        self._regroup = regroup
        self._hear = hear
        self._stamp = Stamp(render=uuid.uuid4().hex[:12], epoch=0)
        self._members: Sequence[Member] = ()
        # what each member's data thread is at, to be cut off: joins, and then its loop
        self._runs: dict[int, ray.ObjectRef[Any]] = {}
        self._vault = Vault()
        self._telling = Telling(parts.remember, check)
        self._start: Snapshot | None = None  # of the next epoch
        self._done = 0  # tasks, in this epoch's count
        self._newest = -1  # block that is finished
        self._failures, self._failed_at = 0, -1  # in a row; the newest block at the last
        self._enter("PLACE")
        self.is_well = False  # all is done, and nobody is at anything
        self.busy_s: list[float] = []  # by stage, of its devices on average; a moment old

    def run(
        self,
        schedule: Schedule,
        start: Snapshot | None = None,
        limit: int | None = None,
        wanted: Wanted = never,
        seen: int = 0,
    ) -> Generator[Done | Snapshot]:
        """Of what it is told from the call on, the first epoch knows."""
        self._go_on_from(start)
        self._telling.limit, self._telling.seen = limit, seen
        return self._run(schedule, wanted)

    def _run(self, schedule: Schedule, wanted: Wanted) -> Generator[Done | Snapshot]:
        self._devices.crew.loaded.clear()  # it may have served another render
        try:
            self._place()
            while True:
                try:
                    yield from self._epoch(schedule, wanted)
                    self.is_well = True
                    return
                except _BREAKS as error:
                    self._telling.shut()
                    lost, broken = self._judge(schedule, error)
                    self._bear(broken)
                self._repair(lost)
        finally:
            self._runs = {}
            self._telling.end(self._newest + 1)
            if not self.is_well:
                self._devices.crew.close()
            self._enter("OVER")

    def stop(self) -> int:
        return self._telling.stop()

    def change_text(self, text: object) -> int:
        return self._telling.change_text(text)

    def _go_on_from(self, start: Snapshot | None) -> None:
        self._start = start
        self._telling.walk = (start or EMPTY).walk

    def _epoch(self, schedule: Schedule, wanted: Wanted) -> Generator[Done | Snapshot]:
        """From the last snapshot to the end, or to what breaks it."""
        self._done = (self._start or EMPTY).walk.number
        members = self._members
        self._last = members[self._devices.crew.layout.last]
        self._enter("LOAD")
        self._load(self._words(schedule))
        with Rendezvous(this_node()) as meeting:
            self._enter("JOIN")
            with self._telling.joining():
                self._join(meeting)
                self._telling.open(members[0])
            # the first stage walks through the schedule; the others are told, task by task
            self._runs = {
                i: member.call("run", schedule if i == 0 else None)
                for i, member in enumerate(members)
            }
            self._enter("RUN")
            yield from self._follow(Taker(members, self._vault, wanted, self._timeout_s))
            # the last stage's news also end when it fails; once it ends well, everything is done
            last = self._runs[members.index(self._last)]
            wait_all([last], self._timeout_s, "the last stage to end", self._check)
            self._telling.end(self._newest + 1)
            self._enter("DRAIN")
            settle_all(list(self._runs.values()), self._timeout_s, self._check)

    def _load(self, words: Words) -> None:
        crew, slices, device = self._devices.crew, self._devices.slices, self._devices.device
        loads = []
        for i, seat in enumerate(crew.layout.seats):
            if i not in crew.loaded:
                builds = [partial(self._parts.stage, slices[n], device) for n in seat.stages]
                loads.append(self._members[i].call("load", builds, device))
        stillness = Stillness(self._hear)

        def watch() -> None:
            for i, counters in enumerate(crew.check_alive(self._timeout_s)):
                who = f"{words.name(i)} on node {self._members[i].node[:8]}"
                stillness.see(who, counters.reading_s)

        wait_all(loads, _LOAD_S, "weights to load", self._check, watch)
        crew.loaded.update(range(len(self._members)))

    def _join(self, meeting: Rendezvous) -> None:
        crew, device = self._devices.crew, self._devices.device
        edges = wire(crew.layout, self._stamp, self._timeout_s, partial(self._link, meeting))
        for i, member in enumerate(self._members):
            first, last = i == 0, member is self._last
            windows = partial(self._parts.windows, device) if first else None
            stepper = partial(self._parts.stepper, device) if last else None
            passes, start = self._passes(i), self._part_of_start(i, first=first, last=last)
            told = self._telling.limit, self._telling.seen
            self._runs[i] = member.call("join", edges[i], windows, stepper, passes, start, *told)
        wait_all(
            list(self._runs.values()),
            max(self._timeout_s, _CONTROL_S),
            "stages to join",
            self._check,
        )

    def _passes(self, i: int) -> range:
        layout = self._devices.crew.layout
        return branch_passes(layout.seats[i].branch if layout.num_branches > 1 else None)

    def _part_of_start(self, i: int, *, first: bool, last: bool) -> PackedSnapshot | None:
        if self._start is None:
            return None
        stages = self._devices.crew.layout.seats[i].stages
        layers = {layer for n in stages for layer in self._devices.slices[n]}
        return pack_snapshot(
            self._start, first=first, last=last, layers=layers, passes=self._passes(i)
        )

    def _link(self, meeting: Rendezvous, start: int, stop: int) -> LinkSpec:
        here, there = self._members[start], self._members[stop]
        one_node = here.node == there.node
        return LinkSpec(
            kind=choose_kind(
                self._wanted_link,
                cuda=self._devices.device == "cuda",
                one_node=one_node,
                one_gpu=one_node and here.gpu == there.gpu,
            ),
            name=f"{self._stamp.render}/{self._stamp.epoch}/{start}-{stop}",
            host=meeting.host,
            port=meeting.port,
            timeout_s=self._timeout_s,
        )

    def _follow(self, taker: Taker) -> Generator[Done | Snapshot]:
        taken, watched = 0, list(self._runs.values())
        busy = Busy(self._devices.crew.layout, self._members)
        while True:
            batch = self._news(watched)
            finished = False
            for done in batch.done():
                self._telling.came(done.task.admits)
                self._done = done.task.number + 1
                yield done
                if done.finished:
                    finished = True
                    taken += len(done.finished)
                    self._newest = max(self._newest, *(moved.block for moved in done.finished))
                    self._members[0].control("taken", taken)
            if snapshot := taker.poll(self._done, finished):
                self._go_on_from(snapshot)
                yield snapshot
            self.busy_s = busy.poll() or self.busy_s
            if batch.over:
                return

    def _news(self, watched: "list[ray.ObjectRef[Any]]") -> Batch:
        """What the last stage has done; the failure of any stage instead, if there is one."""
        news = self._last.control("take", _NEWS_S)
        deadline = time.monotonic() + _NEWS_S + min(_CONTROL_S, self._timeout_s)
        while True:
            self._check()
            ready, _ = ray.wait([news, *watched], num_returns=1, timeout=SLICE_S)
            for ref in ready:
                outcome = result(ref)
                if ref == news:
                    assert isinstance(outcome, Batch)
                    return outcome
                watched.remove(ref)
            if time.monotonic() > deadline:
                raise TimeoutError("the last stage does not answer")

    def _judge(self, schedule: Schedule, first: BaseException) -> tuple[list[int], ChainBroken]:
        """Which members are lost, and in words what has broken; what a stage raised is raised."""
        state = self.state
        self._enter("FENCE")
        lost, gone, error = look(self._members, self._runs)
        if error is not None:
            raise error from first
        words = self._words(schedule)
        if state == "LOAD":
            return lost, words.not_loaded(lost, first)
        if lost:
            ended = lost[0] in gone
            return lost, words.lost(self._members, lost[0], self._done, ended=ended)
        return lost, ChainBroken(
            f"stages lost touch at {words.at(self._done)}: {first_line(first)}; raise "
            f"parallel.transfer_timeout_s={self._timeout_s:g} if a step takes that long"
        )

    def _words(self, schedule: Schedule) -> Words:
        begin = (self._start or EMPTY).walk
        return Words(self._devices.crew.layout, self._devices.slices, schedule, begin)

    def _bear(self, broken: ChainBroken, then: str = "") -> None:
        """Raises it when there were too many in a row without a new block between them."""
        if self._newest > self._failed_at:
            self._failures = 0
        self._failures, self._failed_at = self._failures + 1, self._newest
        if self._failures > self._repairs:
            raise broken
        self._hear(f"{broken}{then}")

    def _place(self) -> None:
        """Every process is up, in the order of seats; where devices are gone for good, all anew on
        those that are left, which is part of the repair of what broke the chain, if it did."""
        try:
            self._members = self._devices.crew.members
        except NoReplacement as error:
            if self._failures:
                self._hear(f"{error}{_ANEW}")
            else:
                self._bear(error, _ANEW)
            assert self._regroup is not None, "who bears a failure has it"
            self._devices = self._regroup(partial(self._bear, then=_ANEW))
            self._members = self._devices.crew.members

    def _repair(self, lost: Sequence[int]) -> None:
        """Nobody of this epoch works on; the lost are replaced, or all make do with fewer."""
        crew = self._devices.crew
        alive = [i for i in range(len(self._members)) if i not in lost]
        cuts = [self._members[i].control("cut") for i in alive]
        ends = {i: self._runs[i] for i in alive if i in self._runs}
        settle_all([*cuts, *ends.values()], self._timeout_s, self._check)
        stuck = [i for i, ref in ends.items() if not ray.wait([ref], timeout=0)[0]]
        self._runs = {}
        self._enter("REPAIR")
        self._stamp = Stamp(render=self._stamp.render, epoch=self._stamp.epoch + 1)
        for i in {*lost, *stuck}:
            crew.replace(i)
        self._place()

    def _enter(self, state: str) -> None:
        self.state = state
        self.is_loaded = state in ("RUN", "DRAIN", "OVER")
        _log.debug("chain %s/%d: %s", self._stamp.render, self._stamp.epoch, state)
