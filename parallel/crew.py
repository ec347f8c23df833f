"""The actors of one chain: started where the placement says, put in order, watched, ended."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from .placement import Placement
from .ray_stage import StageActor

SLICE_S = 0.1  # how soon a wait notices that the render was given up
_START_TIMEOUT_S = 120.0  # for an actor's process to import torch on a busy machine
_PING_S = 2.0

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
        ref: ray.ObjectRef[Any] = (
            getattr(self.actor, method).options(concurrency_group="data").remote(*args)
        )
        return ref

    def control(self, method: str, *args: object) -> "ray.ObjectRef[Any]":
        """Beside whatever the data thread does."""
        ref: ray.ObjectRef[Any] = (
            getattr(self.actor, method).options(concurrency_group="ctl").remote(*args)
        )
        return ref


class Crew:
    """Actors in the order of the layout's seats: by node and GPU, so that only node boundaries
    cross the network."""

    def __init__(self, placement: Placement, check: Check = lambda: None) -> None:
        options: dict[str, Any] = {"concurrency_groups": {"data": 1, "ctl": 4}}
        actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **options)(StageActor)
        self._actors = [
            actor.options(**placement.stage_options(device)).remote()
            for device in range(placement.layout.num_devices)
        ]
        self.layout = placement.layout
        self._check = check
        self._members: list[Member] = []

    @property
    def members(self) -> Sequence[Member]:
        """Waits until all processes are up."""
        if not self._members:
            places = wait_all(
                [actor.where.remote() for actor in self._actors],
                _START_TIMEOUT_S,
                "stages to start",
                self._check,
            )
            members = [
                Member(actor=actor, node=node, gpu=gpu, pid=pid, bundle=bundle)
                for bundle, (actor, (node, gpu, pid)) in enumerate(
                    zip(self._actors, places, strict=True)
                )
            ]
            self._members = sorted(members, key=lambda m: (m.node, m.gpu, m.bundle))
        return self._members

    def lost(self) -> list[int]:
        """Members whose process is gone or does not answer."""
        refs = [member.control("counters") for member in self.members]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=_PING_S)
        return [i for i, ref in enumerate(refs) if ref not in ready or _fails(ref)]

    def close(self) -> None:
        """All processes end, whatever they are at."""
        for actor in self._actors:
            ray.kill(actor)


def wait_all(
    refs: "Sequence[ray.ObjectRef[Any]]", timeout_s: float, what: str, check: Check
) -> list[Any]:
    """Results in order, or the first error as it was raised there; TimeoutError names `what`."""
    pending, deadline = list(refs), time.monotonic() + timeout_s
    while pending:
        check()
        ready, pending = ray.wait(pending, num_returns=len(pending), timeout=SLICE_S)
        for ref in ready:
            result(ref)
        if pending and time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
    return [result(ref) for ref in refs]


def result(ref: "ray.ObjectRef[Any]") -> Any:
    """Of a call that is over; what it raised is raised here, with Ray's account as its cause."""
    try:
        return ray.get(ref, timeout=_PING_S)
    except RayTaskError as error:
        raise error.cause from error


def _fails(ref: "ray.ObjectRef[Any]") -> bool:
    with contextlib.suppress(RayActorError, GetTimeoutError):
        ray.get(ref, timeout=_PING_S)
        return False
    return True
