"""Generators that work before they are asked: in a thread of its own, so many items ahead."""

import atexit
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.05  # how soon a waiting thread notices that nobody reads any more


def run_ahead(
    items: Generator[T], most: int, on_close: Callable[[], None] = lambda: None
) -> Generator[T]:
    """The same items, at most `most` of them made before they are asked for.

    Whatever `items` raises is raised here, in its place. Closing this generator closes `items` as
    soon as it has made the item it is at, and joins the thread; `on_close` may make it give up
    sooner. So does the end of the process: a thread in the midst of C++ would abort it then.
    """
    ready: queue.Queue[tuple[T, ...] | BaseException] = queue.Queue(maxsize=most)
    stopped = threading.Event()

    def put(outcome: tuple[T, ...] | BaseException) -> None:
        while not stopped.is_set():
            try:
                return ready.put(outcome, timeout=_POLL_S)
            except queue.Full:
                continue  # the reader takes its time

    def work() -> None:
        last: tuple[T, ...] | BaseException = ()
        try:
            for item in items:
                put((item,))
                if stopped.is_set():
                    break
            items.close()
        except BaseException as error:  # handed to the reader, whatever it is
            last = error
        put(last)
        del last  # its trace holds this frame, and with those below it a model: a ring of garbage

    def end() -> None:
        stopped.set()
        on_close()
        thread.join()

    thread = threading.Thread(target=work, name="longreel-run-ahead", daemon=True)
    atexit.register(end)
    thread.start()
    try:
        while True:
            outcome = ready.get()
            if isinstance(outcome, BaseException):
                try:
                    raise outcome
                finally:
                    del outcome  # as above
            if not outcome:
                return
            yield outcome[0]
    finally:
        atexit.unregister(end)
        end()


class Begun(Iterator[T]):
    """The same items, the first of which is made from now on; closing it waits for that one."""

    def __init__(self, items: Generator[T]) -> None:
        self._items = items
        self._first: list[T] = []
        self._error: BaseException | None = None
        self._all = chain.from_iterable(self._parts())
        self._thread = threading.Thread(target=self._begin, name="longreel-begin", daemon=True)
        self._thread.start()

    def _begin(self) -> None:
        try:
            self._first += islice(self._items, 1)
        except BaseException as error:  # for who asks for the first
            self._error = error

    def _parts(self) -> Iterator[Iterable[T]]:
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # as above
        yield self._first
        yield self._items

    def __next__(self) -> T:
        return next(self._all)

    def close(self) -> None:
        self._thread.join()
        self._error = None  # nobody has asked for it
        self._items.close()
