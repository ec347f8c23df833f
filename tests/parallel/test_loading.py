"""Who is said to stand still while weights are read; without Ray."""

import queue
import threading
import time
from types import SimpleNamespace

import pytest

from longreel.models.checkpoint import locate
from longreel.parallel import loading
from longreel.parallel.errors import ChainBroken
from longreel.parallel.loading import Stillness
from longreel.parallel.ray_stage import StageActor


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(loading, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def test_who_stands_still_is_said_ever_more_seldom_and_ends_it(clock):
    heard = []

    def see_for_an_hour():
        while clock.now_s < 3600:
            stillness.see("one that is slow", clock.now_s / 1000)
            stillness.see("one that is done", None)
            stillness.see("one", 7.0)
            clock.now_s += 5

    stillness = Stillness(lambda words: heard.append((clock.now_s, words.split(" has")[0])))
    with pytest.raises(ChainBroken, match=r"^one has stood still for 1805 s where it reads"):
        see_for_an_hour()
    assert heard == [(at_s, "one") for at_s in (65, 125, 245, 485, 965)]


def test_only_a_thread_that_works_moves():
    """As those that answer meanwhile are others."""
    waits, may, actor = threading.Event(), threading.Event(), StageActor()
    works, stage = threading.Event(), SimpleNamespace(cache_bytes=lambda: 0, busy_s=0.0)

    def build(shelf):
        while not works.is_set():
            pass
        waits.set()
        assert may.wait(60)
        return stage

    def moves(within_s):
        before_s, deadline_s = actor.counters().reading_s, time.monotonic() + within_s
        while actor.counters().reading_s == before_s and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return actor.counters().reading_s != before_s

    thread = threading.Thread(target=actor.load, args=([build], "cpu"), daemon=True)
    thread.start()
    assert moves(within_s=20)
    works.set()
    assert waits.wait(20)
    assert not all(moves(within_s=0.5) for _ in range(40))  # it has yet to get to where it waits
    may.set()
    thread.join(20)
    assert actor.counters().reading_s is None


def test_who_downloads_weights_does_not_stand_still(tmp_path, monkeypatch):
    """The thread that loads waits for those of the hub's client, which gives up by itself."""
    at, may, actor = queue.Queue(), threading.Semaphore(0), StageActor()
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "weights.safetensors").touch()

    def wait(place):
        at.put(place)
        assert may.acquire(timeout=60)

    def snapshot_download(repo, *, allow_patterns):
        wait("hub")
        return str(tmp_path)

    def build(shelf):
        locate("org/name", "transformer")
        wait("disk")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    thread = threading.Thread(target=actor.load, args=([build], "cpu"), daemon=True)
    thread.start()
    seen = {}
    for _ in range(2):
        place = at.get(timeout=20)
        seen[place] = actor.counters().reading_s is not None
        may.release()
    thread.join(20)
    assert seen == {"hub": False, "disk": True}
