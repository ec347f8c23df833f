"""Takes renders from the queue, one per worker, and sees to it that every one of them ends.

One event loop. Whatever is decided is in the queue before anybody is told, so that a server which
is killed at any moment finds its renders again: those that ran wait for their turn, and go on from
their folders.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from itertools import count
from typing import Any

from .errors import ApiError, is_short, without_paths
from .files import AllFiles
from .limits import Limits
from .live import Live
from .logs import complain, say
from .metrics import Metrics
from .queue import Queue
from .record import Record, State
from .worker_link import News, Worker
from .workers import Workers

MAX_ATTEMPTS = 3  # processes that may die over the same work
_TICK_S = 0.2  # how soon a deadline is noticed
_STOP_S = 60.0  # a step may take long; after it the worker's process is ended
_RETRY_S = 0.5  # before another attempt
_PASSING = (OSError, sqlite3.Error)  # a full disk, too many open files: what may go well later
_LATE = "deadline", "it was not done by its deadline"
_SHUTDOWN_S = 10.0  # for renders to reach the end of their step when the server ends


class Keeper:
    """Workers, and what they are at."""

    def __init__(
        self,
        queue: Queue,
        *,
        workers: int,
        settings: Mapping[str, Any],
        limits: Limits,
        files: AllFiles,
        metrics: Metrics,
    ) -> None:
        """`settings` go to every worker."""
        self._queue, self._num_workers, self._workers = queue, workers, Workers(settings)
        self._limits, self._files, self._metrics = limits, files, metrics
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False
        self._prompts = count(1)
        self._looked = time.monotonic()
        self.live: dict[str, Live] = {}

    def recover(self) -> None:
        """Before anything runs: those that ran when the last server ended."""
        for record in self._queue.with_state("running"):
            say("found again", render=record.render, wish=record.wish)
            if record.wish == "cancel":
                self._queue.end(record.render, "cancelled", time.time())
            elif record.wish == "pause":
                self._queue.pause(record.render)
            else:
                self._queue.put_back(record.render, 0)

    async def run(self) -> None:
        """Until cancelled; then renders stop at the end of their step, for a next server."""
        self._workers.start_ahead()
        said = ""
        try:
            while True:
                try:
                    self._look()
                    said = ""
                except Exception as error:  # or no render would ever begin again
                    if said != (said := f"{type(error).__name__}: {error}"):
                        complain("the queue stands still", error=said)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            await self._shut_down()

    def wake(self) -> None:
        self._wake.set()

    def _look(self) -> None:
        """At deadlines, at what has become final, and at who may begin."""
        self._expire()
        before, self._looked = self._looked, time.monotonic()
        for live in self.live.values():
            self._count(live)
            if live.worker is not None and live.stands_still(self._looked - before):
                live.still_s = 0.0  # said once
                self._spawn(self._end_worker(live, live.worker, "a render stands still"))
        self._start_some()

    def stop(self, record: Record, wish: str) -> None:
        """Cancel or pause: at the end of the step that it is at, if it runs."""
        if record.state == "running":
            self._queue.ask(record.render, "cancel" if wish == "cancel" else "pause")
            if live := self.live.get(record.render):
                self._tell_to_stop(live)
        elif wish == "cancel":
            self._end(record, "cancelled")
            return
        else:
            self._queue.pause(record.render)
        self._changed(record, wish)

    def accepted(self, record: Record) -> None:
        self._changed(record, "admitted")

    def dropped(self, record: Record) -> None:
        self._changed(record, "dropped")

    def resume(self, record: Record) -> None:
        """One that is yet to stop goes on at once, or as soon as it has stopped."""
        if record.state == "running":
            self._queue.ask(record.render, "")
            self._changed(record, "resumed")
        else:
            self._queue.resume(record.render, time.time())
            self._changed(record, "queued")

    async def change_prompt(self, render: str, prompt: str, asked: int | None = None) -> bool:
        """ApiError unless the worker has taken it. `asked` is the reader's number for it; whether
        it is the newest change, sent once more, which counts once."""
        if (live := self.live.get(render)) is None:
            raise ApiError(409, "not_running", "the prompt of a render changes while it runs")
        return await live.change_prompt(next(self._prompts), prompt, asked)

    def take(self, render: str, frames: int, waits: bool = False) -> None:
        """A reader has so many frames of a render, which may wait for it; or waits for more."""
        live = self.live.get(render)
        if live is None or not live.paced:
            return
        if waits or frames > live.taken:
            live.taken_at = time.monotonic()
        if frames > live.taken:
            live.taken = frames
            live.tell_taken()

    def _tell_to_stop(self, live: Live) -> None:
        if live.worker is not None:
            live.worker.tell("stop", render=live.record.render)
            self._spawn(self._end_if_deaf(live, live.worker))

    async def _end_if_deaf(self, live: Live, worker: Worker) -> None:
        await asyncio.sleep(_STOP_S)
        if live.worker is worker:
            await self._end_worker(live, worker, "worker does not stop")

    async def _end_worker(self, live: Live, worker: Worker, why: str) -> None:
        """Whoever listens to it learns that."""
        complain(why, render=live.record.render, pid=worker.pid)
        await worker.end()

    def _expire(self) -> None:
        for record in self._queue.overdue(time.time()):
            if record.state == "running":
                self.stop(record, "cancel")
            else:
                self._fail(record, *_LATE)
        for live in [*self.live.values()]:
            if live.paced and time.monotonic() - live.taken_at > self._limits.unread_s:
                live.taken_at = time.monotonic()
                current = self._queue.get(live.record.render)
                if current is not None and not current.wish:
                    say("nobody reads", render=current.render)
                    self.stop(current, "pause")

    def _start_some(self) -> None:
        while not self._ending and len(self.live) < self._num_workers:
            record = self._queue.take_next(self._limits.running, time.time())
            if record is None:
                return
            now = time.monotonic()
            live = self.live[record.render] = Live(record=record, since=now, taken_at=now)
            self._changed(record, "running")
            self._spawn(self._carry(live))

    async def _carry(self, live: Live) -> None:
        """From a worker's start to what has become of the render."""
        news: News | None = None
        try:
            there = await asyncio.to_thread(self._files.segments, live.record.render)
            live.seen = len(there)
            live.worker = await self._workers.hire(live.record)
            news = await self._work(live, live.worker)
        except (RuntimeError, TimeoutError, ValueError, *_PASSING) as error:
            complain("no worker", render=live.record.render, error=str(error))
            if is_short(error):
                news = {"how": "not begun"}  # nothing was lost over it
        finally:
            worker, live.worker = live.worker, None  # it may be at another render soon
            if worker is not None:
                # one that has met a bug may have a device that fails whatever comes next
                if news is None or self._ending or news.get("code") == "internal_error":
                    await worker.end()
                else:
                    self._workers.take_back(worker)
            try:
                await self._surely(partial(self._settle, live, news))
            finally:
                del self.live[live.record.render]  # not before: a server that ends waits for it
            self.wake()

    async def _surely(self, write: Callable[[], None]) -> None:
        """Until the queue takes it: whoever waits for a render would wait for ever."""
        said = ""
        while True:
            try:
                return write()
            except _PASSING as error:
                if said != (said := str(error)):
                    complain("the queue takes nothing", error=said)
                if self._ending:
                    return  # the next server finds it as running
            await asyncio.sleep(_RETRY_S)

    async def _work(self, live: Live, worker: Worker) -> News | None:
        record = live.record
        current = self._queue.get(record.render)
        worker.model = record.model
        worker.tell("run", render=record.render, request=record.request)
        live.tell_taken()
        if self._ending or (current is not None and current.wish):
            self._tell_to_stop(live)
        while (news := await worker.hear()) is not None:
            match news["event"]:
                case "progress":
                    live.note(news)
                case "prompt":
                    live.answer_prompt(news)
                case "over":
                    return news
        return None

    def _settle(self, live: Live, news: News | None) -> None:
        """What the queue holds from here on."""
        live.end_prompts()
        render = live.record.render
        self._count(live, at_end=True)
        now, devices = time.monotonic(), live.record.request.get("devices", 1)
        self._queue.add_gpu_seconds(render, (now - live.since) * devices)
        live.since = now  # or a second try would add them again
        record = self._queue.get(render)
        if record is None:
            return
        how = "lost" if news is None else news["how"]
        if how == "done":
            self._end(record, "done")
        elif how == "failed":
            assert news is not None
            self._fail(record, news["code"], news["message"])
        elif self._stopped_as_wished(record):
            return
        elif how == "lost" and record.attempts >= MAX_ATTEMPTS and not self._ending:
            self._fail(
                record,
                "worker_lost",
                f"{record.attempts} processes were lost over it, often for lack of memory; make "
                "it smaller, or see the server's log",
            )
        else:
            if how == "lost":
                self._metrics.recoveries.inc()
            attempts = {"lost": record.attempts, "not begun": record.attempts - 1}.get(how, 0)
            self._spawn(self._put_back_soon(record, 0 if self._ending else attempts))

    async def _put_back_soon(self, record: Record, attempts: int) -> None:
        """It counts as running until then, so that it may be asked to stop meanwhile."""
        await asyncio.sleep(0 if self._ending else _RETRY_S)
        await self._surely(partial(self._put_back, record.render, attempts))

    def _put_back(self, render: str, attempts: int) -> None:
        now = self._queue.get(render)
        if now is not None and not self._stopped_as_wished(now):
            self._queue.put_back(render, attempts)
            self._changed(now, "queued")

    def _stopped_as_wished(self, record: Record) -> bool:
        """Whether somebody wanted it to stop, or its deadline did."""
        if record.wish == "cancel":
            if record.deadline_at is not None and record.deadline_at < time.time():
                self._fail(record, *_LATE)
            else:
                self._end(record, "cancelled")
        elif record.wish == "pause":
            self._queue.pause(record.render)
            self._changed(record, "paused")
        return record.wish in ("cancel", "pause")

    def _count(self, live: Live, at_end: bool = False) -> None:
        """What has become final since the last look."""
        segments = self._files.segments(live.record.render, at_end)
        for segment in segments[live.seen :]:
            if segment.number == 0:
                self._metrics.first_frame.observe(time.monotonic() - live.since)
            self._metrics.frames.inc(segment.frames)
            self._metrics.blocks.inc(segment.blocks[1] - segment.blocks[0])
        live.seen = len(segments)

    def _fail(self, record: Record, code: str, message: str) -> None:
        said = {"code": code, "message": without_paths(message)}
        self._end(record, "failed", said, code=code, error=message)

    def _end(
        self, record: Record, state: State, said: Mapping[str, str] | None = None, **facts: object
    ) -> None:
        """`said`: to clients, of a failure; `facts`: for the log."""
        self._queue.end(record.render, state, time.time(), said)
        self._metrics.ended.labels(state).inc()
        self._metrics.gpu_seconds.observe(record.gpu_seconds)
        self._changed(record, state, **facts)

    def _changed(self, record: Record, event: str, **facts: object) -> None:
        say(event, render=record.render, client=record.client, **facts)
        self.wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shut_down(self) -> None:
        self._ending = True
        for live in self.live.values():
            self._tell_to_stop(live)
        deadline = time.monotonic() + _SHUTDOWN_S
        while self.live and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await self._workers.end([live.worker for live in self.live.values() if live.worker])
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
