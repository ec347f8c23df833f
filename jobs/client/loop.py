"""An event loop in a thread of its own, for callers who have none."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Loop:
    """The thread ends with `close`, or with the program."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._gate = threading.Lock()  # nothing is begun that nobody would run
        self._open = True
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="longreel-client", daemon=True
        )
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Ctrl-C here ends it there. LoopClosed: nothing of it was begun."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError(
                "a callback that this client's own thread runs has called it, which would wait for "
                "itself; use a client of its own there"
            )
        future = self._begin(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T]) -> Iterator[T]:
        end: Any = object()
        turn = asyncio.Lock()  # a step that was interrupted may still be ending

        async def step() -> T:
            async with turn:
                return await anext(items, end)

        async def close() -> None:
            async with turn:
                await items.aclose()

        try:
            while (item := self.call(step())) is not end:
                yield item
        finally:
            # not waited for: the collector may be here in the loop's own thread, or at exit
            with contextlib.suppress(LoopClosed):  # which has closed them
                self._begin(close())

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """What is under way is ended, iterators are closed, and then `last` is done."""
        with self._gate:
            if not self._open:
                return
            self._open = False
            ending = asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        try:
            ending.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        with self._gate:
            if self._open:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise LoopClosed("the client is closed; make another one")

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await last()


class LoopClosed(RuntimeError):  # noqa: N818 -- a state, which is no error where iterators end
    """Asked of a loop that has been closed."""
