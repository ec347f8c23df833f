"""A generator that runs ahead in a thread of its own, by a bounded number of items."""

import atexit
import queue
import threading
from collections.abc import Callable, Generator
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
