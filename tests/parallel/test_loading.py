"""Which actors are said to stand still while they load; without Ray."""

import queue
import threading
import time
from types import SimpleNamespace

import pytest

from longreel.models.checkpoint import locate
from longreel.parallel import loading
from longreel.parallel.errors import ChainBroken
from longreel.parallel.loading import Loading
from longreel.parallel.ray_stage import StageActor


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(loading, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    return clock


def test_who_stands_still_is_said_ever_more_seldom_and_ends_it(clock):
    """The second is slow and moves; the third is ready."""
    heard = []

    def check_alive(within_s):
        worked_s = (7.0, clock.now_s / 1000, None)
        return [SimpleNamespace(loading_s=seconds) for seconds in worked_s]

    def hear(words):
        heard.append(clock.now_s)

    def look_for_an_hour():
        while clock.now_s < 3600:
            watched.look()
            clock.now_s += 5

    members = [SimpleNamespace(node="0123456789")] * 3
    crew = SimpleNamespace(check_alive=check_alive, members=members)
    watched = Loading(crew, 1.0, lambda i: f"stage {i + 1}", hear)
    with pytest.raises(ChainBroken, match=r"^stage 1 stands still .* for 1805 s .* node 01234567;"):
        look_for_an_hour()
    assert heard == [65, 125, 245, 485, 965]


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
        before_s, deadline_s = actor.counters().loading_s, time.monotonic() + within_s
        while actor.counters().loading_s == before_s and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return actor.counters().loading_s != before_s

    thread = threading.Thread(target=actor.load, args=([build], "cpu"), daemon=True)
    thread.start()
    assert moves(within_s=20)
    works.set()
    assert waits.wait(20)
    time.sleep(0.1)
    assert not moves(within_s=0.5)
    may.set()
    thread.join(20)
    assert actor.counters().loading_s is None


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
        seen[place] = actor.counters().loading_s is not None
        may.release()
    thread.join(20)
    assert seen == {"hub": False, "disk": True}
