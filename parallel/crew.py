"""The actors of one chain: started where the placement says, put in order, watched, ended."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError

from .errors import ChainBroken
from .front import Counters
from .placement import Placement
from .ray_stage import StageActor

SLICE_S = 0.1  # how soon a wait notices that the render was given up
_START_TIMEOUT_S = 120.0  # for an actor's process to import torch on a busy machine
_PING_S = 2.0
_ANSWER_S = 10.0  # of an actor that has nothing to do, on a busy machine
_ALIVE_S = 5.0  # between two looks at whether those who are waited for live

# a process that has ended, or that Ray has ended as its node was short of memory
GONE = (RayActorError, OutOfMemoryError)

Check = Callable[[], None]  # raises when the render was given up


@dataclass(frozen=True, kw_only=True)
class Member:
    """The actor of one seat."""

    actor: Any
    node: str
    gpu: str
    pid: int
    bundle: int

    def call(self, method: str, *args: object) -> "ray.ObjectRef[Any]":
        """On the data thread."""
        return self._begin("data", method, args)

    def control(self, method: str, *args: object) -> "ray.ObjectRef[Any]":
        """Beside whatever the data thread does."""
        return self._begin("ctl", method, args)

    def _begin(self, group: str, method: str, args: Sequence[object]) -> "ray.ObjectRef[Any]":
        call = getattr(self.actor, method).options(concurrency_group=group)
        ref: ray.ObjectRef[Any] = call.remote(*args)
        return ref


class NoReplacement(ChainBroken):
    """A device that is gone, and no other in its place."""


class Crew:
    """Actors in the order of the layout's seats: by node and GPU, so that only node boundaries
    cross the network. One that replaces another takes its seat."""

    def __init__(
        self, placement: Placement, check: Check = lambda: None, place_timeout_s: float = 60.0
    ) -> None:
        """`place_timeout_s`: how long to wait for a device in the place of one that is gone."""
        self.layout = placement.layout
        self.loaded: set[int] = set()  # members that have their weights
        self._placement = placement
        self._check = check
        self._place_timeout_s = place_timeout_s
        self._members: list[Member] = []
        self._new = {bundle: self._begin(bundle) for bundle in range(self.layout.num_devices)}

    @property
    def members(self) -> Sequence[Member]:
        """Waits until all processes are up. NoReplacement: a device is gone for good."""
        if self._new:
            arrived = self._arrive()
            if self._members:
                self._members = [arrived.get(m.bundle, m) for m in self._members]
            else:
                self._members = sorted(arrived.values(), key=lambda m: (m.node, m.gpu, m.bundle))
        return self._members

    def replace(self, i: int) -> None:
        """End this member, whatever it is at, and start another."""
        member = self._members[i]
        ray.kill(member.actor)
        self.loaded.discard(i)
        self._new[member.bundle] = self._begin(member.bundle)

    def check_alive(self, within_s: float) -> list[Counters]:
        """TimeoutError, or one of GONE, unless every process answers."""
        refs = [member.control("counters") for member in self._members]
        return wait_all(refs, max(within_s, _PING_S), "a stage to answer", self._check)

    def mend(self) -> None:
        """Between two renders: whoever does not answer is replaced."""
        refs = [member.control("counters") for member in self.members]
        answered, _ = ray.wait(refs, num_returns=len(refs), timeout=_ANSWER_S)
        for i, ref in enumerate(refs):
            try:
                if ref not in answered:
                    raise TimeoutError
                result(ref)
            except (TimeoutError, *GONE):
                self.replace(i)

    def close(self) -> None:
        """All processes end, whatever they are at."""
        for actor in [*(member.actor for member in self._members), *self._new.values()]:
            ray.kill(actor)

    def _begin(self, bundle: int) -> Any:
        options: dict[str, Any] = {"concurrency_groups": {"data": 1, "ctl": 4}}
        # no restarts by Ray: which epoch an actor belongs to is ours to say
        actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **options)(StageActor)
        return actor.options(**self._placement.stage_options(bundle)).remote()

    def _arrive(self) -> dict[int, Member]:
        """The new actors, by bundle, once their processes are up."""
        arrived: dict[int, Member] = {}
        waiting = {bundle: actor.where.remote() for bundle, actor in self._new.items()}
        looked_s = came_s = time.monotonic()  # since when every bundle has a device
        gone_s = 0.0  # how long some had none, in all: what comes may go again
        while waiting:
            self._check()
            ready, _ = ray.wait(list(waiting.values()), num_returns=1, timeout=SLICE_S)
            for bundle in [bundle for bundle, ref in waiting.items() if ref in ready]:
                ref = waiting.pop(bundle)
                try:
                    node, gpu, pid = result(ref)
                    actor = self._new[bundle]
                    arrived[bundle] = Member(
                        actor=actor, node=node, gpu=gpu, pid=pid, bundle=bundle
                    )
                except (TimeoutError, *GONE):  # on a node that was about to be found dead
                    ray.kill(self._new[bundle])
                    time.sleep(SLICE_S)
                    self._new[bundle] = self._begin(bundle)
                    waiting[bundle] = self._new[bundle].where.remote()
            now = time.monotonic()
            if not self._placement.is_whole():
                gone_s, came_s = gone_s + now - looked_s, now
            looked_s = now
            many = f"{len(waiting)} of {self.layout.num_devices} devices"
            if gone_s > self._place_timeout_s:
                raise NoReplacement(
                    f"{many} are gone, and none came to stay in their place within "
                    f"parallel.place_timeout_s={self._place_timeout_s:g}"
                )
            if now - came_s > _START_TIMEOUT_S:
                raise NoReplacement(
                    f"{many} have no process that came up within {_START_TIMEOUT_S:g} s; see Ray's "
                    "logs for the reason"
                )
        self._new = {}
        return arrived


def wait_all(
    refs: "Sequence[ray.ObjectRef[Any]]",
    timeout_s: float,
    what: str,
    check: Check,
    alive: Check = lambda: None,
) -> list[Any]:
    """Results in order, or the first error as it was raised there; TimeoutError names `what`.

    `alive` is called every few seconds, and raises if nobody is there to give them.
    """
    pending, deadline = list(refs), time.monotonic() + timeout_s
    asked = time.monotonic()
    while pending:
        check()
        if time.monotonic() - asked > _ALIVE_S:
            alive()
            asked = time.monotonic()
        ready, pending = ray.wait(pending, num_returns=len(pending), timeout=SLICE_S)
        for ref in ready:
            result(ref)
        if pending and time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
    return [result(ref) for ref in refs]


def settle_all(refs: "Sequence[ray.ObjectRef[Any]]", timeout_s: float, check: Check) -> None:
    """Until all are over, well or not, or `timeout_s` is."""
    pending, deadline = list(refs), time.monotonic() + timeout_s
    while pending and time.monotonic() < deadline:
        check()
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=SLICE_S)


def result(ref: "ray.ObjectRef[Any]") -> Any:
    """Of a call that is over; what it raised is raised here, with Ray's account as its cause."""
    try:
        return ray.get(ref, timeout=_PING_S)
    except RayTaskError as error:
        raise error.cause from error


def fails(ref: "ray.ObjectRef[Any]") -> bool:
    with contextlib.suppress(GetTimeoutError, *GONE):
        ray.get(ref, timeout=_PING_S)
        return False
    return True
