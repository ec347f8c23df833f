"""The thread that runs a client: it ends with everything in it, however that was left."""

import asyncio
import gc
import threading
import time

import pytest

from longreel.jobs.client.loop import Loop, LoopClosed


async def nothing():
    pass


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close(nothing)


def numbers(closed):
    async def items():
        try:
            for number in range(1000):
                yield number
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)  # as a connection that is closed takes a moment
            closed.append(True)

    return items()


def test_closing_ends_iterators_that_are_collected_later(loop):
    """What pytest calls unraisable, of a generator whose loop is gone, fails this test."""
    closed = []
    items = loop.iterate(numbers(closed))
    assert next(items) == 0
    loop.close(nothing)
    assert closed
    del items
    gc.collect()


def test_an_iterator_that_is_dropped_is_closed(loop):
    closed = []
    items = loop.iterate(numbers(closed))
    assert [next(items), next(items)] == [0, 1]
    del items
    loop.call(wait_for(closed))


async def wait_for(closed):
    async with asyncio.timeout(30):
        while not closed:
            await asyncio.sleep(0.001)


def test_an_iterator_that_is_collected_in_the_loops_own_thread_does_not_stop_it(loop):
    closed = []
    box = [loop.iterate(numbers(closed))]
    next(box[0])

    async def drop():
        box.clear()
        gc.collect()

    loop.call(drop())
    loop.call(wait_for(closed))


def test_closing_ends_what_other_threads_wait_for(loop):
    outcome = []

    def wait():
        try:
            loop.call(asyncio.sleep(600))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not loop.call(count_tasks()) > 1:
        time.sleep(0.001)
    loop.close(nothing)
    thread.join(30)
    assert not thread.is_alive()
    assert "Cancelled" in type(outcome[0]).__name__


async def count_tasks():
    return len(asyncio.all_tasks())


def test_nothing_is_begun_after_the_end_and_the_last_call_is_made_once(loop):
    made = []

    async def last():
        made.append(True)

    loop.close(last)
    loop.close(last)
    assert made == [True]
    with pytest.raises(LoopClosed, match="closed"):
        loop.call(nothing())
    with pytest.raises(LoopClosed):
        next(loop.iterate(numbers([])))
