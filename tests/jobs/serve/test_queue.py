"""The queue's promises: fair order, limits, keys, and nothing lost when its process is."""

import random
import sqlite3
import subprocess
import sys

import pytest

from longreel.jobs.serve.queue import KeyReusedError, Queue
from longreel.jobs.serve.record import NewRender


@pytest.fixture
def queue(tmp_path):
    queue = opened(tmp_path / "queue.sqlite3")
    yield queue
    queue.close()


def opened(path):
    """Without waiting for the disk, which takes most of the time."""
    queue = Queue(path)
    queue._file.execute("PRAGMA synchronous = OFF")
    return queue


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


def test_a_long_queue_and_a_long_history_cost_each_render_the_same(tmp_path):
    """By what the database does: it is asked by an event loop that all clients share."""

    def work(waiting, over, begun=0):
        queue, steps = opened(tmp_path / f"{waiting}-{over}-{begun}"), [0]
        for number in range(begun):
            queue.add(new(f"b{number:04}"), 0.0)
            queue.take_next(9, 0.5)
            queue.pause(f"b{number:04}")
        queue.room_known([(record, 1) for record in queue.room()[1]])
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
        done["list again"] = lambda: (
            queue.put_back(records[0].render, 0),
            queue.pause(records[1].render),
            [queue.place(record) for record in records],
        )
        done["sent again"] = lambda: queue.find_same("a", "d", 5.0)
        done["another"] = lambda: queue.find_same("a", "e", 0.0)
        done["counted"] = lambda: (queue.counts(), queue.counts("a"), queue.waits_since())
        done["room"] = queue.room
        done["video"] = lambda: (queue.not_measured("a"), queue.with_video("a", 7))
        counts = {}
        for name, do in done.items():
            steps[0] = 0
            do()
            counts[name] = steps[0]
        queue.close()
        return counts

    few, many, old, begun = work(20, 0), work(200, 0), work(20, 180), work(20, 0, 180)
    for name, steps in few.items():
        assert many[name] < (15 if name == "list" else 2) * steps, name  # once after a start
        assert old[name] < 2 * steps, name
        assert begun[name] < 2 * steps or name == "not over", name  # a page of these is full


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


def test_places_and_room_are_those_of_the_rows_whatever_changes(queue):
    """They are kept, not counted."""
    chance = random.Random(0)

    def fail(id):
        with pytest.raises(sqlite3.Error):
            queue._update(id, "state = 'done', no")

    changes = {
        "add": lambda id: queue.add(
            new(f"{chance.random()}", priority=chance.randint(-1, 1), room_bytes=7), 0.0
        ),
        "begin": lambda id: queue.take_next(99, 1.0),
        "back": lambda id: queue.get(id).over or queue.put_back(id, 0),
        "pause": lambda id: queue.get(id).over or queue.pause(id),
        "resume": lambda id: queue.resume(id, 2.0),
        "end": lambda id: queue.end(id, chance.choice(["done", "failed"]), 2.0),
        "edit": lambda id: queue.edit(id, {"preset": "tiny"}),
        "drop": lambda id: queue.drop(id, {}, 3.0),
        "go": queue.remove,
        "gone": lambda id: queue.pause("nothing"),
        "look": lambda id: queue.room_known([(record, 5) for record in queue.room()[1]]),
        "fail": fail,
    }
    for _ in range(400):
        found, _more = queue.page(None, limit=1000)
        do = chance.choice([*changes, *["add"] * 4]) if found else "add"
        changes[do](chance.choice(found).render if found else "")
        found, _more = queue.page(None, limit=1000)
        waiting = [record for record in found if record.state == "queued"]
        waiting.sort(key=lambda record: (-record.priority, record.number))
        assert [*map(queue.place, waiting)] == [*range(len(waiting))], do
        rows = queue._file.execute("SELECT render, state, room_bytes FROM renders").fetchall()
        rooms = {id: room for id, state, room in rows if state in ("queued", "paused", "running")}
        total, unknown = queue.room()
        assert total == sum(room for room in rooms.values() if room > 0), do
        assert {record.render for record in unknown} == {id for id in rooms if rooms[id] < 0}, do


def test_what_ran_since_its_room_was_looked_at_is_looked_at_again(queue):
    queue.add(new("x", room_bytes=90), 0.0)
    assert queue.room() == (90, [])
    queue.take_next(9, 1.0)
    queue.pause("x")
    total, (seen,) = queue.room()
    assert (total, seen.render) == (0, "x")
    queue.resume("x", 2.0)
    queue.take_next(9, 3.0)
    queue.room_known([(seen, 50)])  # while it runs
    queue.add_gpu_seconds("x", 1.0)
    queue.pause("x")
    queue.room_known([(seen, 50)])  # after it ran
    assert queue.room()[0] == 0
    queue.room_known([(queue.get("x"), 20)])
    assert queue.room() == (20, [])
    queue.end("x", "cancelled", 4.0)
    assert queue.room() == (0, [])


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
