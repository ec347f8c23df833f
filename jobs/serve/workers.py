"""The processes that renders run in, between renders: idle ones, and one that was started ahead."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from .record import Record
from .worker_link import Worker

_GRACE_S = 2.0  # for a process to end by itself


class Workers:
    """Of one keeper."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`settings` go to every one."""
        self._settings = settings
        self._idle: list[Worker] = []
        self._ahead: asyncio.Task[Worker] | None = None

    def start_ahead(self) -> None:
        """So that the first render need not wait for a process to import everything."""
        self._ahead = asyncio.create_task(Worker.start(self._settings))

    async def hire(self, record: Record) -> Worker:
        """One that is idle, the one that was started ahead, or another."""
        if (worker := self._choose(record)) is not None:
            return worker
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            return await ahead
        return await Worker.start(self._settings)

    def take_back(self, worker: Worker) -> None:
        self._idle.append(worker)

    async def end(self, busy: Sequence[Worker]) -> None:
        """All of them, with those that are at work."""
        workers = [*self._idle, *busy]
        if self._ahead is not None:
            self._ahead.cancel()
            for started in await asyncio.gather(self._ahead, return_exceptions=True):
                workers += [started] if isinstance(started, Worker) else []
        await asyncio.gather(*(worker.end(grace_s=_GRACE_S) for worker in workers))

    def _choose(self, record: Record) -> Worker | None:
        """An idle worker that holds the model, else any; then no other keeps its devices."""
        self._idle = [worker for worker in self._idle if worker.alive]
        for worker in self._idle:
            if worker.model == record.model:
                self._idle.remove(worker)
                return worker
        chosen = self._idle.pop(0) if self._idle else None
        for worker in self._idle:
            worker.tell("release")
        return chosen
