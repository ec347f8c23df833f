"""The queue's promises: fair order, limits, keys, and nothing lost when its process is."""

import contextlib
import sqlite3
import subprocess
import sys

import pytest

from longreel.jobs.serve.queue import KeyReusedError, Queue
from longreel.jobs.serve.record import NewRender


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / "queue.sqlite3")
    yield queue
    queue.close()


def new(render, client="a", **more):
    return NewRender(render=render, client=client, request={"preset": "tiny"}, digest="d", **more)


def order(queue, running=100):
    taken = []
    while (record := queue.take_next(running, 1.0)) is not None:
        taken.append(record.render)
    return taken


def test_the_first_comes_first(queue):
    for render in ("x", "y", "z"):
        queue.add(new(render), 0.0)
    assert order(queue) == ["x", "y", "z"]


def test_a_higher_priority_goes_before(queue):
    queue.add(new("low", priority=-1), 0.0)
    queue.add(new("plain"), 0.0)
    queue.add(new("high", priority=2), 0.0)
    assert [queue.place(queue.get(r)) for r in ("low", "plain", "high")] == [2, 1, 0]
    assert order(queue) == ["high", "plain", "low"]


def test_clients_take_turns_however_many_one_of_them_has_sent(queue):
    for number in range(4):
        queue.add(new(f"a{number}", "a"), 0.0)
    queue.add(new("b0", "b"), 0.0)
    queue.add(new("b1", "b"), 0.0)
    queue.add(new("c0", "c"), 0.0)
    assert order(queue) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_client_at_its_limit_waits_and_others_do_not(queue):
    for number in range(3):
        queue.add(new(f"a{number}", "a"), 0.0)
    queue.add(new("b0", "b"), 0.0)
    assert order(queue, running=1) == ["a0", "b0"]
    queue.end("a0", "done", 2.0)
    assert order(queue, running=1) == ["a1"]


def test_a_key_makes_one_render_and_refuses_another_request(queue):
    first, made = queue.add(new("x", idempotency_key="k"), 0.0)
    again, made_again = queue.add(new("y", idempotency_key="k"), 0.0)
    assert (made, made_again) == (True, False)
    assert again == first
    other = NewRender(render="z", client="a", request={}, digest="other", idempotency_key="k")
    with pytest.raises(KeyReusedError, match="another request"):
        queue.add(other, 0.0)
    assert queue.add(new("theirs", "b", idempotency_key="k"), 0.0)[1]  # of another client


def test_what_is_asked_twice_in_a_short_time_is_found(queue):
    queue.add(new("x"), 100.0)
    assert queue.find_same("a", "d", since=50.0).render == "x"
    assert queue.find_same("a", "d", since=101.0) is None
    assert queue.find_same("b", "d", since=50.0) is None


def test_states_and_wishes_are_kept(queue):
    queue.add(new("x", deadline_at=5.0), 0.0)
    assert queue.overdue(4.0) == []
    assert [r.render for r in queue.overdue(6.0)] == ["x"]
    queue.take_next(1, 1.0)
    queue.ask("x", "cancel")
    assert queue.get("x").wish == "cancel"
    assert queue.overdue(6.0) == []  # it is told already
    queue.end("x", "failed", 7.0, {"code": "deadline", "message": "late"})
    record = queue.get("x")
    assert (record.state, record.wish, record.ended_at) == ("failed", "", 7.0)
    assert record.error == {"code": "deadline", "message": "late"}
    queue.put_back("x", 1)
    assert queue.get("x").attempts == 1
    queue.put_back("x", 0)
    assert queue.get("x").attempts == 0


def test_pages_go_both_ways_and_end(queue):
    for number in range(5):
        queue.add(new(f"r{number}", "ab"[number == 4]), 0.0)
    page, more = queue.page("a", limit=3)
    assert ([r.render for r in page], more) == (["r3", "r2", "r1"], True)
    page, more = queue.page("a", limit=3, after="r1")
    assert ([r.render for r in page], more) == (["r0"], False)
    page, more = queue.page("a", limit=4, newest_first=False)
    assert ([r.render for r in page], more) == (["r0", "r1", "r2", "r3"], False)
    for newest_first, rest in ((True, ["r2", "r1", "r0"]), (False, ["r3"])):
        page, _ = queue.page("a", after="r2-that-is-gone", newest_first=newest_first)
        assert [r.render for r in page] == rest
    assert queue.page("a", after="before all of them")[0] == []
    assert queue.page(None, limit=9)[0][0].render == "r4"
    queue.take_next(9, 0.0)
    assert [r.render for r in queue.page("a", states=("running",))[0]] == ["r0"]


def test_what_was_added_is_there_after_a_kill(tmp_path):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from longreel.jobs.serve.queue import Queue\n"
        "from longreel.jobs.serve.record import NewRender\n"
        "queue = Queue(Path(sys.argv[1]))\n"
        "queue.add(NewRender(render='x', client='a', request={}, digest='d'), 0.0)\n"
        "queue.take_next(1, 1.0)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = tmp_path / "queue.sqlite3"
    subprocess.run([sys.executable, "-P", "-c", code, str(path)], timeout=60)
    queue = Queue(path)
    assert [r.render for r in queue.with_state("running")] == ["x"]
    queue.close()


def test_a_home_has_one_server(queue, tmp_path):
    with pytest.raises(ValueError, match="served by another longreel"):
        Queue(tmp_path / "queue.sqlite3")


def test_a_queue_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "queue.sqlite3"
    Queue(path).close()
    with sqlite3.connect(path) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    with pytest.raises(ValueError, match="newer longreel"):
        Queue(path)
    path.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(ValueError, match="no queue of longreel"):
        Queue(path)


def test_a_home_that_cannot_keep_a_queue_is_refused(tmp_path):
    (tmp_path / "queue.sqlite3").mkdir()
    with pytest.raises(ValueError, match=r"cannot keep the queue in queue\.sqlite3"):
        Queue(tmp_path / "queue.sqlite3")


def test_a_long_queue_and_a_long_history_cost_each_render_the_same(tmp_path):
    """By what the database does: it is asked by an event loop that all clients share."""

    def work(waiting, over):
        queue, steps = Queue(tmp_path / f"{waiting}-{over}"), [0]
        for number in range(waiting + over):
            queue.add(new(f"r{number:04}", deadline_at=9.0), 0.0)
            if number < over:
                queue.end(f"r{number:04}", "done", 1.0)
        queue.measured([(queue.get(f"r{number:04}"), number) for number in range(over)])

        def count():
            steps[0] += 1
            return 0

        queue._file.set_progress_handler(count, 1)
        done = {"look": lambda: queue.overdue(5.0), "begin": lambda: queue.take_next(9, 1.0)}
        records, _ = queue.page("a", states=("queued",), limit=waiting)
        done["watch"] = lambda: queue.page("a", states=("running",))  # as a page does each second
        done["not over"] = lambda: queue.page("a", states=("running", "paused"))
        done["list"] = lambda: [queue.place(record) for record in records]
        done["sent again"] = lambda: queue.find_same("a", "d", 5.0)
        done["another"] = lambda: queue.find_same("a", "e", 0.0)
        done["counted"] = lambda: (queue.counts(), queue.counts("a"), queue.waits_since())
        done["room"] = lambda: (queue.room_bytes(), queue.begun())
        done["video"] = lambda: (queue.not_measured("a"), queue.with_video("a", 7))
        counts = {}
        for name, do in done.items():
            steps[0] = 0
            do()
            counts[name] = steps[0]
        queue.close()
        return counts

    few, many, old = work(20, 0), work(200, 0), work(20, 180)
    for name, steps in few.items():
        assert many[name] < 15 * steps, name
        assert old[name] < 2 * steps, name
    for name in ("look", "begin", "watch", "not over", "sent again", "another", "counted", "video"):
        assert many[name] < 2 * few[name], name


FIRST = """
CREATE TABLE renders (
  number INTEGER PRIMARY KEY AUTOINCREMENT, render TEXT NOT NULL UNIQUE, client TEXT NOT NULL,
  request TEXT NOT NULL, digest TEXT NOT NULL, state TEXT NOT NULL, wish TEXT NOT NULL DEFAULT '',
  priority INTEGER NOT NULL, created_at REAL NOT NULL, started_at REAL, ended_at REAL,
  deadline_at REAL, attempts INTEGER NOT NULL DEFAULT 0, gpu_seconds REAL NOT NULL DEFAULT 0,
  error TEXT, parent TEXT, idempotency_key TEXT, UNIQUE (client, idempotency_key)
);
CREATE INDEX renders_client ON renders (client, number);
CREATE TABLE clients (client TEXT PRIMARY KEY, served INTEGER NOT NULL);
INSERT INTO renders (render, client, request, digest, state, priority, created_at)
  VALUES ('x', 'a', '{}', 'd', 'queued', 0, 1), ('y', 'a', '{}', 'd', 'done', 0, 2),
         ('z', 'b', '{}', 'd', 'queued', 1, 3);
PRAGMA user_version = 1;
"""


@pytest.mark.parametrize(
    "indexes",
    [
        "CREATE INDEX renders_state ON renders (state);",
        "CREATE INDEX renders_state ON renders (state, deadline_at);"
        "CREATE INDEX renders_client_state ON renders (client, state);",
    ],
)
def test_a_home_of_an_earlier_version_is_as_fast_as_a_new_one(tmp_path, indexes):
    def built(path):
        with contextlib.closing(sqlite3.connect(path)) as file:
            return {
                *file.execute("SELECT type, name, sql FROM sqlite_master WHERE type != 'table'")
            }

    with contextlib.closing(sqlite3.connect(tmp_path / "old")) as file:
        file.executescript(FIRST + indexes)
    for name in ("old", "new"):
        Queue(tmp_path / name).close()
    assert built(tmp_path / "old") == built(tmp_path / "new")
    queue = Queue(tmp_path / "old")
    assert (queue.counts(), queue.counts("b")) == ({"queued": 2, "done": 1}, {"queued": 1})
    assert (queue.waits_since(), queue.room_bytes()) == (1.0, 0)
    assert order(queue) == ["z", "x"]
    queue.close()


def test_renders_are_counted_as_they_move_and_go(queue):
    for number in range(4):
        queue.add(new(f"r{number}", "ab"[number % 2]), 0.0)
    queue.take_next(9, 1.0)
    queue.end("r1", "failed", 2.0)
    queue.remove("r2")
    queue.end("r3", "done", 2.0)
    queue.edit("r3", {})
    assert queue.counts() == {"running": 1, "failed": 1, "queued": 1}
    assert queue.counts("b") == {"failed": 1, "queued": 1}
    assert queue.counts("c") == {}


def test_the_size_of_a_video_is_forgotten_when_it_is_edited(queue):
    queue.add(new("x"), 0.0)
    queue.end("x", "done", 1.0)
    (found,) = queue.not_measured("a")
    queue.measured([(found, 7)])
    assert [r.render for r in queue.with_video("a", 7)] == ["x"]
    assert (queue.not_measured("a"), queue.with_video("b", 7)) == ([], [])
    queue.edit("x", {})
    queue.end("x", "done", 2.0)
    queue.measured([(found, 7)])  # of before the edit
    assert queue.with_video("a", 7) == []
    assert [r.render for r in queue.not_measured("a")] == ["x"]
