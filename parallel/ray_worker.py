"""An object in a process of its own on the cluster: its methods are called there."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from .crew import SLICE_S, Check, wait_all
from .errors import ChainBroken
from .placement import Placement
from .process import settle

_CALL_S = 3600.0  # for weights to come from a slow disk before the answer
_AHEAD = 16  # items of a stream that nobody has read yet


class Host:
    """The actor: builds the object with the first call."""

    def __init__(self, build: Callable[[], object]) -> None:
        settle()
        self._build = build
        self._object: Any = None

    def call(self, method: str, args: tuple[object, ...]) -> object:
        return getattr(self._made(), method)(*args)

    def stream(self, method: str, args: tuple[object, ...]) -> Iterator[object]:
        yield from getattr(self._made(), method)(*args)

    def _made(self) -> Any:
        if self._object is None:
            self._object = self._build()
        return self._object


class RayWorker:
    """The driver's side of it."""

    def __init__(
        self, placement: Placement, build: Callable[[], object], check: Check, beside: int = 0
    ) -> None:
        """`beside`: on the device so many before the last."""
        options = placement.worker_options(placement.layout.num_devices - 1 - beside)
        actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(Host)
        self._actor = actor.options(**options).remote(build)
        self._check = check

    def call(self, method: str, *args: object) -> Any:
        try:
            ref = self._actor.call.remote(method, args)
            return wait_all([ref], _CALL_S, method, self._check)[0]
        except RayActorError as error:
            raise _lost(method) from error

    def start(self, method: str, *args: object) -> "ray.ObjectRef[Any]":
        """Behind the calls before it; nobody waits for the answer."""
        ref: ray.ObjectRef[Any] = self._actor.call.remote(method, args)
        return ref

    def stream(self, method: str, *args: object) -> Iterator[Any]:
        """Arrays, in order; the worker begins at once and stays a little ahead of the reader."""
        refs = self._actor.stream.options(
            num_returns="streaming", _generator_backpressure_num_objects=_AHEAD
        ).remote(method, args)
        return self._read(method, refs)

    def _read(self, method: str, refs: Any) -> Iterator[Any]:
        try:
            while True:
                self._check()
                if ray.wait([refs], timeout=SLICE_S)[0]:
                    # a copy: what Ray hands out is shared memory that must not be written to
                    yield np.array(ray.get(next(refs), timeout=_CALL_S))
        except StopIteration:
            return
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise _lost(method) from error

    def close(self) -> None:
        ray.kill(self._actor)


def _lost(method: str) -> ChainBroken:
    return ChainBroken(
        f"the worker that reads prompts and decodes was lost in '{method}': its process ended; see "
        "Ray's logs for the reason, which is often lack of memory, and render again"
    )
