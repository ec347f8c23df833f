"""A chain over Ray actors: PLACE -> LOAD -> JOIN -> RUN -> DRAIN, from one process that only waits.

The coordinator decides nothing per step and sees no activation: it starts the data loops, asks the
last stage a few times a second what is done, and tells the first how much of it was taken.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError

from .chain import Done, Schedule, Stepper, Windows
from .crew import SLICE_S, Check, Crew, Member, result, wait_all
from .edges import wire
from .errors import ChainBroken
from .link import LinkClosed, LinkSpec, Rendezvous, choose_kind
from .messages import Stamp
from .outbox import Batch
from .placement import this_node
from .ray_stage import Counters
from .stage import Stage
from .tasks import Task

_log = logging.getLogger("longreel")
_NEWS_S = 0.1  # how old news of progress may be
_CONTROL_S = 10.0  # for an answer to a control call
_LOAD_S = 3600.0  # for a slice of the weights to come from a slow disk
_VERDICT_S = 2.0  # after the first failure, for the others to tell theirs


@dataclass(frozen=True, kw_only=True)
class ChainParts:
    """What the actors build for themselves: called there, on the device that is named."""

    stage: Callable[[range, str], Stage]
    windows: Callable[[str], Windows]
    stepper: Callable[[str], Stepper]


class RayChain:
    """Runs one schedule over a crew, and ends the crew with it."""

    def __init__(
        self,
        crew: Crew,
        device: str,
        parts: ChainParts,
        slices: Sequence[range],
        *,
        timeout_s: float,
        link: str = "auto",
        check: Check = lambda: None,
    ) -> None:
        """`link` is parallel.link. `check` is called now and then from every wait, and raises to
        give the render up."""
        self._crew = crew
        self._layout = crew.layout
        self._device = device
        self._parts = parts
        self._slices = slices
        self._timeout_s = timeout_s
        self._wanted_link = link
        self._check = check
        self._stamp = Stamp(render=uuid.uuid4().hex[:12], epoch=0)
        self._running = threading.Event()
        self._done = 0  # tasks
        self.state = "PLACE"

    def run(self, schedule: Schedule) -> Generator[Done]:
        try:
            members = self._crew.members  # in the order of seats
            self._last = members[self._layout.last]
            self._load(members)
            with Rendezvous(this_node()) as meeting:
                self._join(members, meeting)
                runs = self._start(members, schedule)
                try:
                    yield from self._follow(members, runs)
                    self._enter("DRAIN")
                    wait_all(runs, self._timeout_s, "stages to end", self._check)
                except (LinkClosed, RayActorError, TimeoutError) as error:
                    raise self._verdict(members, runs, schedule, error) from error
        finally:
            self._running.clear()
            self._crew.close()
            self._enter("OVER")

    def stop(self) -> None:
        if self._running.is_set():
            self._crew.members[0].control("stop")

    def change_text(self, text: object) -> None:
        if self._running.is_set():
            self._crew.members[0].control("change_text", text)

    def _load(self, members: Sequence[Member]) -> None:
        self._enter("LOAD")
        loads = []
        for member, seat in zip(members, self._layout.seats, strict=True):
            builds = [
                partial(self._parts.stage, self._slices[i], self._device) for i in seat.stages
            ]
            loads.append(member.call("load", builds, self._device))
        try:
            wait_all(loads, _LOAD_S, "weights to load", self._check)
        except (RayActorError, TimeoutError) as error:
            lost = self._crew.lost()
            raise ChainBroken(
                f"{self._name(lost[0]) if lost else 'a stage'} was lost while it loaded its "
                f"weights ({_short(error)}): perhaps its memory did not suffice; use more "
                f"{'devices' if self._layout.shared else 'stages'}, or model.dtype=bfloat16"
            ) from error

    def _join(self, members: Sequence[Member], meeting: Rendezvous) -> None:
        self._enter("JOIN")
        link = partial(self._link, members, meeting)
        refs = []
        for member, edges in zip(
            members, wire(self._layout, self._stamp, self._timeout_s, link), strict=True
        ):
            windows = partial(self._parts.windows, self._device) if member is members[0] else None
            stepper = partial(self._parts.stepper, self._device) if member is self._last else None
            refs.append(member.call("join", edges, windows, stepper))
        wait_all(refs, self._timeout_s, "stages to join", self._check)

    def _link(
        self, members: Sequence[Member], meeting: Rendezvous, start: int, stop: int
    ) -> LinkSpec:
        here, there = members[start], members[stop]
        one_node = here.node == there.node
        return LinkSpec(
            kind=choose_kind(
                self._wanted_link,
                cuda=self._device == "cuda",
                one_node=one_node,
                one_gpu=one_node and here.gpu == there.gpu,
            ),
            name=f"{self._stamp.render}/{self._stamp.epoch}/{start}-{stop}",
            host=meeting.host,
            port=meeting.port,
            timeout_s=self._timeout_s,
        )

    def _start(self, members: Sequence[Member], schedule: Schedule) -> "list[ray.ObjectRef[Any]]":
        self._enter("RUN")
        self._done = 0
        # the first stage walks through the schedule; the others are told, task by task
        runs = [
            member.call("run", schedule if i == 0 else None) for i, member in enumerate(members)
        ]
        self._running.set()
        return runs

    def _follow(
        self, members: Sequence[Member], runs: "Sequence[ray.ObjectRef[Any]]"
    ) -> Generator[Done]:
        taken, watched = 0, list(runs)
        while True:
            batch = self._news(watched)
            for done in batch.done():
                self._done = done.task.number + 1
                yield done
                if done.finished:
                    taken += len(done.finished)
                    members[0].control("taken", taken)
            if batch.over:
                return

    def _news(self, watched: "list[ray.ObjectRef[Any]]") -> Batch:
        """What the last stage has done; the failure of any stage instead, if there is one."""
        news = self._last.control("take", _NEWS_S)
        deadline = time.monotonic() + _NEWS_S + _CONTROL_S
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

    def _verdict(
        self,
        members: Sequence[Member],
        runs: "Sequence[ray.ObjectRef[Any]]",
        schedule: Schedule,
        first: BaseException,
    ) -> BaseException:
        """What has broken the chain: links close all along it, and one stage knows why."""
        ready, _ = ray.wait(list(runs), num_returns=len(runs), timeout=_VERDICT_S)
        for ref in ready:
            try:
                result(ref)
            except (LinkClosed, RayActorError):
                continue
            except BaseException as error:
                return error
        lost = self._crew.lost()
        if not lost:
            return ChainBroken(
                f"stages lost touch at {self._at(schedule, self._done)}: {_short(first)}; raise "
                f"parallel.transfer_timeout_s={self._timeout_s:g} if a step takes that long"
            )
        number = self._first_missing(members, lost[0])
        where = members[lost[0]]
        ended = runs[lost[0]] in ready
        return ChainBroken(
            f"{self._name(lost[0])} was lost at {self._at(schedule, number)}: its process "
            f"{where.pid} on node {where.node[:8]} {'ended' if ended else 'does not answer'}; "
            "see Ray's logs there for the reason, which is often lack of memory, and render again"
        )

    def _first_missing(self, members: Sequence[Member], actor: int) -> int:
        """The task that an actor was at, as those after it in its chain know."""
        mesh = self._layout.mesh
        for after in mesh.line(actor, "stage")[mesh.at(actor)["stage"] + 1 :]:
            ref = members[after].control("counters")
            if ray.wait([ref], timeout=_VERDICT_S)[0]:
                try:
                    counters: Counters = result(ref)
                    return counters.task + 1
                except RayActorError:
                    continue
        return self._done

    def _at(self, schedule: Schedule, number: int) -> str:
        task = next((t for t in schedule.tasks(lambda: False) if t.number == number), None)
        return "its end" if task is None else describe(task)

    def _name(self, actor: int) -> str:
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

    def _enter(self, state: str) -> None:
        self.state = state
        _log.debug("chain %s: %s", self._stamp.render, state)


def describe(task: Task) -> str:
    """Where a task stands, in the words of people."""
    part = task.written[0] if task.written else task.parts[-1]
    return f"block {part.block}, step {part.step + 1}"


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
