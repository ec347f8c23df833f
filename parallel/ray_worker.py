"""An object in a process of its own on the cluster: its methods are called there."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from ..models.shelf import Shelf
from .crew import GONE, SLICE_S, Check, wait_all
from .errors import ChainBroken
from .loading import Reading, Stillness
from .packed import Packed
from .placement import Placement
from .process import settle

_CALL_S = 3600.0  # for weights to come from a slow disk before the answer
_AHEAD = 16  # items of a stream that nobody has read yet
_PING_EVERY_S = 2.0
_NAME = "the worker that reads prompts and decodes"
_START_S = 120.0  # for the process to come up, before which it answers nothing


class WorkerLost(ChainBroken):
    """Its process is gone, or does not answer."""

    def __init__(self, what: str, worker: object) -> None:
        """`worker`: whose process; another may be in its place by now."""
        super().__init__(what)
        self.worker = worker


Build = Callable[[Shelf], object]


class Host:
    """The actor: builds the object with the first call, out of what is loaded already."""

    def __init__(self, build: Build) -> None:
        settle()
        self._shelf = Shelf()
        self._build = build
        self._object: Any = None
        self._reading = Reading()

    def renew(self, build: Build) -> None:
        """Another object in the place of this one."""
        if self._object is not None:
            self._object.close()
        self._build, self._object = build, None

    def call(self, method: str, args: tuple[object, ...]) -> object:
        with self._reading:  # most of what is called reads weights first
            return getattr(self._made(), method)(*args)

    def stream(self, method: str, args: tuple[object, ...]) -> Iterator[object]:
        yield from getattr(self._made(), method)(*args)

    def ping(self) -> float | None:
        """Answered while another method is at work; what a call under way has worked."""
        return self._reading.worked_s()

    def _made(self) -> Any:
        if self._object is None:
            self._object = self._build(self._shelf)
        return self._object


class RayWorker:
    """The driver's side of it."""

    def __init__(
        self,
        placement: Placement,
        build: Build,
        check: Check,
        timeout_s: float,
        hear: Callable[[str], None],
        beside: int = 0,
    ) -> None:
        """`timeout_s`: how long it may leave a ping without an answer; `hear` is told when it
        stands still; `beside`: on the device so many before the last, if that is there, or on the
        last that is."""
        self._placement, self._beside = placement, beside
        self._device = _choose(placement, beside)
        options = placement.worker_options(self._device)
        groups: dict[str, Any] = {"concurrency_groups": {"work": 1, "ping": 1}}
        actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **groups)(Host)
        self._actor = actor.options(**options).remote(build)
        self._check = check
        self._timeout_s = timeout_s
        self.hear = hear
        self._watching = threading.Lock()  # several threads may wait for it
        self._ping: Any = None
        self._pinged_s = time.monotonic()
        self._patience_s = max(timeout_s, _START_S)  # until it has answered once
        self._has_answered = False
        self._worked_s: float | None = None  # a call that was under way at the last answer
        self._looked_s = time.monotonic()

    def call(self, method: str, *args: object) -> Any:
        stillness = Stillness(self.hear)

        def watch() -> None:
            self._watch()
            stillness.see(f"{_NAME}, at '{method}',", self._worked_s)

        try:
            return wait_all([self.start(method, *args)], _CALL_S, method, watch)[0]
        except TimeoutError as error:
            raise self._lost(method, f"it has not ended that in {_CALL_S:g} s") from error
        except GONE as error:
            raise self._lost(method, "its process ended") from error

    def renew(self, build: Build) -> None:
        """For another render, when nothing of the last one is under way. WorkerLost: it is gone."""
        try:
            ref = self._actor.renew.options(concurrency_group="work").remote(build)
            wait_all([ref], self._timeout_s, "renew", self._watch)
        except (TimeoutError, *GONE) as error:
            raise self._lost("renew", "its process ended, or does not answer") from error

    def start(self, method: str, *args: object) -> "ray.ObjectRef[Any]":
        """Behind the calls before it; nobody waits for the answer."""
        ref: ray.ObjectRef[Any] = self._actor.call.options(concurrency_group="work").remote(
            method, args
        )
        return ref

    def stream(self, method: str, *args: object) -> Iterator[Any]:
        """Items in order; the worker begins at once and stays a little ahead of the reader."""
        refs = self._actor.stream.options(
            concurrency_group="work",
            num_returns="streaming",
            _generator_backpressure_num_objects=_AHEAD,
        ).remote(method, args)
        return self._read(method, refs)

    def _read(self, method: str, refs: Any) -> Iterator[Any]:
        asked_s = time.monotonic()
        try:
            while True:
                self._watch()
                if ray.wait([refs], timeout=SLICE_S)[0]:
                    yield _own(ray.get(next(refs), timeout=_CALL_S))
                    asked_s = time.monotonic()
                elif time.monotonic() - asked_s > _CALL_S:
                    raise self._lost(method, f"it has made nothing for {_CALL_S:g} s")
        except StopIteration:
            return
        except RayTaskError as error:
            raise error.cause from error
        except GONE as error:
            raise self._lost(method, "its process ended") from error

    def close(self) -> None:
        ray.kill(self._actor)

    def _watch(self) -> None:
        """WorkerLost when a ping has had no answer for too long."""
        self._check()
        with self._watching:
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        if self._ping is None:
            if now - self._pinged_s > _PING_EVERY_S:
                self._ping = self._actor.ping.options(concurrency_group="ping").remote()
                self._pinged_s = now
        elif ray.wait([self._ping], timeout=0)[0]:
            self._answer()
        elif now - self._pinged_s > self._patience_s:
            raise self._lost("ping", "it does not answer")
        elif not self._has_answered and now - self._looked_s > _PING_EVERY_S:
            self._looked_s = now
            placement = self._placement
            # Ray waits for a node in the place of this one, as we do where no other is there
            if not placement.is_there(self._device) and placement.is_there(
                _choose(placement, self._beside)
            ):
                raise self._lost("start", "its node is gone")

    def _answer(self) -> None:
        try:
            self._worked_s = ray.get(self._ping, timeout=_PING_EVERY_S)
        except (GetTimeoutError, *GONE) as error:
            raise self._lost("ping", "its process ended") from error
        self._ping, self._pinged_s = None, time.monotonic()
        self._patience_s, self._has_answered = self._timeout_s, True

    def _lost(self, method: str, how: str) -> WorkerLost:
        return WorkerLost(
            f"{_NAME} was lost in '{method}': {how}; see Ray's logs for the reason, which is often "
            "lack of memory",
            self,
        )


def _choose(placement: Placement, beside: int) -> int:
    """A device. Those that are gone may come back, but a reader waits for frames meanwhile."""
    last = placement.layout.num_devices - 1
    wanted = [last - beside, *range(last, -1, -1)]
    return next((device for device in wanted if placement.is_there(device)), last - beside)


def _own(item: Any) -> Any:
    """A copy of arrays: what Ray hands out is shared memory that must not be written to."""
    if isinstance(item, dict):
        return {name: held.tensor() for name, held in item.items() if isinstance(held, Packed)}
    return np.array(item)
