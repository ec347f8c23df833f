"""Workers that read prompts and decode, and are lost; played, so that timing is the test's."""

import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError

from longreel.parallel import crew, ray_tiles, ray_worker
from longreel.parallel.crew import GONE
from longreel.parallel.link import LinkClosed
from longreel.parallel.ray_tiles import RayTiles
from longreel.parallel.ray_worker import RayWorker, WorkerLost
from longreel.pipeline.backend import GivenUp
from longreel.pipeline.decoding import SteadyDecoder
from longreel.pipeline.ray_backend import RayBackend

FRAME = np.zeros((1, 2, 2, 3), np.uint8)
WAIT_S = 30.0


class PlayedWorker:
    """Answers when it is let, and is lost for whoever waits when it is closed."""

    def __init__(self):
        self.may, self.waits, self.closed = threading.Event(), threading.Semaphore(0), False

    def work(self):
        if not self.closed:
            self.waits.release()
            assert self.may.wait(WAIT_S)
        if self.closed:
            raise WorkerLost("it is gone", self)

    def call(self, method, *args):
        self.work()
        return torch.zeros(1, 2, 3)

    def stream(self, method, *args):
        self.work()
        yield FRAME

    def close(self):
        self.closed = True
        self.may.set()


def backend_of(workers, repairs):
    """A real one, but for what it starts."""
    parallel = SimpleNamespace(repairs=repairs)
    backend = object.__new__(RayBackend)
    backend._moving, backend._tiles = threading.RLock(), None
    backend._placement = SimpleNamespace(device="cpu", has_cluster=True, remove=lambda: None)
    backend._stays = backend._ended = False
    backend._begin_tiles = lambda: None
    backend._begin_worker = lambda: workers.append(PlayedWorker()) or workers[-1]
    heard = []
    plan = SimpleNamespace(config=SimpleNamespace(parallel=parallel))
    backend._take_on(plan, threading.Event(), heard.append)
    backend._worker = backend._begin_worker()
    return backend, heard


def test_two_that_wait_for_one_lost_worker_find_one_in_its_place():
    workers, came = [], []
    backend, heard = backend_of(workers, repairs=1)

    def read():
        came.extend(backend.decode(torch.zeros(1, 4, 2, 2, 2)))

    def ask():
        came.append(backend.texts(["a dog"]))

    threads = [threading.Thread(target=work, daemon=True) for work in (read, ask)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert workers[0].waits.acquire(timeout=WAIT_S)
    workers[0].close()
    while len(workers) < 2:
        threading.Event().wait(0.01)
    workers[1].may.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert (len(came), len(workers), len(heard)) == (2, 2, 1)


@pytest.mark.parametrize("repairs", [0, 3])
def test_a_worker_that_is_always_lost_ends_the_render(repairs):
    workers = []
    backend, heard = backend_of(workers, repairs)
    begin = backend._begin_worker

    def begin_lost():
        begin().close()
        return workers[-1]

    backend._begin_worker = begin_lost
    workers[0].close()
    with pytest.raises(WorkerLost):
        list(backend.decode(torch.zeros(1, 4, 2, 2, 2)))
    assert (len(workers), len(heard)) == (1 + repairs, repairs)


def test_who_asks_when_all_has_ended_begins_no_other_worker():
    """As who tells a prompt while its reader comes to the end."""
    workers, came = [], []
    backend, heard = backend_of(workers, repairs=1)
    backend._at_end = lambda: None

    def ask():
        with pytest.raises(GivenUp):
            backend.texts(["a dog"])
        came.append("told so")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    assert workers[0].waits.acquire(timeout=WAIT_S)
    backend.end()
    thread.join(WAIT_S)
    assert (len(came), len(workers), heard) == (1, 1, [])


def test_a_worker_that_answers_and_makes_nothing_is_lost_in_the_end(monkeypatch):
    worker, ready = object.__new__(RayWorker), []
    worker._watch = lambda: None
    played = SimpleNamespace(
        wait=lambda refs, timeout: (ready, time.sleep(0.02)), get=lambda ref, timeout: ref
    )
    monkeypatch.setattr(ray_worker, "ray", played)
    monkeypatch.setattr(ray_worker, "_CALL_S", 0.3)
    ready.append("an item")
    frames = worker._read("decode_packed", itertools.repeat([1]))
    for _ in range(3):
        assert next(frames) == [1]
        time.sleep(0.2)  # its reader's time, which is not the worker's
    ready.clear()
    with pytest.raises(WorkerLost, match=r"in 'decode_packed': it has made nothing for 0\.3 s"):
        next(frames)


def test_a_worker_that_never_ends_a_call_is_lost_in_the_end(monkeypatch):
    worker = object.__new__(RayWorker)
    worker._watch, worker._worked_s, worker.hear = lambda: None, None, lambda what: None
    worker.start = lambda method, *args: "an answer"
    played = SimpleNamespace(wait=lambda refs, num_returns, timeout: ([], time.sleep(0.02) or refs))
    monkeypatch.setattr(crew, "ray", played)
    monkeypatch.setattr(ray_worker, "_CALL_S", 0.1)
    with pytest.raises(WorkerLost, match=r"in 'texts': it has not ended that in 0\.1 s"):
        worker.call("texts", ["a cat"])


@pytest.mark.parametrize("is_other_there", [False, True])
def test_a_worker_whose_node_is_gone_waits_for_it_unless_there_is_another(
    monkeypatch, is_other_there
):
    there = {0: is_other_there, 1: False}
    worker = object.__new__(RayWorker)
    layout = SimpleNamespace(num_devices=2)
    worker._placement = SimpleNamespace(layout=layout, is_there=there.__getitem__)
    worker._device, worker._beside, worker._has_answered = 1, 0, False
    worker._ping, worker._pinged_s, worker._looked_s = "a ping", time.monotonic(), 0.0
    worker._patience_s = WAIT_S
    monkeypatch.setattr(ray_worker, "ray", SimpleNamespace(wait=lambda refs, timeout: ([], refs)))
    if is_other_there:
        with pytest.raises(WorkerLost, match="its node is gone"):
            worker._look()
    else:
        worker._look()
        worker._patience_s = 0.0
        with pytest.raises(WorkerLost, match="does not answer"):  # not for ever
            worker._look()


def test_a_second_tile_worker_that_is_gone_between_two_renders_is_replaced():
    workers, began = [], []
    backend, heard = backend_of(workers, repairs=1)
    workers[0].renew = lambda build: None
    backend._build_codec = lambda: None

    def begin_tiles(others=()):
        began.append(others)
        if len(began) == 1:
            raise WorkerLost("it is gone", object())

    backend._begin_tiles = begin_tiles
    backend._take_over_worker()
    assert (len(began), len(workers), len(heard)) == (2, 2, 1)


def test_two_that_wait_for_one_worker_read_each_answer_of_it_once(monkeypatch):
    worker = object.__new__(RayWorker)
    worker._check, worker._timeout_s, worker._patience_s = lambda: None, WAIT_S, WAIT_S
    worker._watching, worker._has_answered = threading.Lock(), True
    worker._ping, worker._pinged_s = "a ping", time.monotonic()
    both, read = threading.Barrier(2, timeout=0.5), []

    def wait(refs, timeout):
        try:
            if both.wait() == 0:  # this one comes back when the other has read the answer
                while worker._ping is not None:
                    time.sleep(0.01)
        except threading.BrokenBarrierError:
            pass  # one after the other
        return refs, []

    def get(ref, timeout):
        read.append(ref)

    monkeypatch.setattr(ray_worker, "ray", SimpleNamespace(wait=wait, get=get))

    threads = [threading.Thread(target=worker._watch, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert read == ["a ping"]


def test_what_ray_ends_for_want_of_memory_is_lost_too():
    assert issubclass(ActorDiedError, GONE)
    assert issubclass(OutOfMemoryError, GONE)


class PlayedCall:
    """Of an actor: over or not, well or not."""

    def __init__(self, over):
        self.over, self.error = over, None


class TileWorker:
    def __init__(self):
        self.calls, self.beside, self.hangs = [], None, False

    def start(self, method, *args):
        self.calls.append(PlayedCall(over=method == "share_tiles"))
        return self.calls[-1]

    def call(self, method, *args):
        pass

    def stream(self, method, *args):
        for _ in range(3):
            if self.beside.hangs or any(call.error for call in self.beside.calls):
                raise LinkClosed("the other side is gone")
            yield FRAME
        self.beside.calls[-1].over = True

    def die(self):
        self.calls[-1].over, self.calls[-1].error = True, ActorDiedError()


def tiles_of_two():
    tiles = object.__new__(RayTiles)
    first, other = TileWorker(), TileWorker()
    first.beside = other
    tiles._first, tiles._others = first, [other]
    tiles._under_way = [worker.start("share_tiles") for worker in (first, other)]
    return tiles


def result(call):
    if call.error:
        raise call.error


@pytest.mark.parametrize("begun_ahead", [False, True])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_second_tile_worker_that_is_lost_is_replaced_whenever_it_is_noticed(
    monkeypatch, begun_ahead, hangs
):
    def wait(calls, num_returns, timeout):
        return [call for call in calls if call.over], []

    monkeypatch.setattr(ray_tiles, "ray", SimpleNamespace(wait=wait))
    monkeypatch.setattr(ray_tiles, "result", result)
    made = [tiles_of_two()]

    def revive(error):
        assert error.worker is made[-1]
        made.append(tiles_of_two())

    decoder = SteadyDecoder(lambda: made[-1], revive, WorkerLost)
    latents = torch.zeros(1, 4, 3, 2, 2)
    blocks = [decoder.decode(latents, False)]
    frames = [next(blocks[0])]
    if hangs:  # or its end is not known yet
        made[0]._others[0].hangs = True
    else:
        made[0]._others[0].die()
    if begun_ahead:  # the next block is begun before the reader comes back
        blocks.append(decoder.decode(latents, False))
    for block in blocks:
        frames += block
    assert (len(frames), len(made)) == (3 * len(blocks), 2)
