"""A home goes on with what earlier versions left of its queue, or says why it does not."""

import contextlib
import sqlite3

import pytest

from longreel.jobs.serve.app import make_app
from longreel.jobs.serve.queue import Queue
from longreel.jobs.serve.queue_file import _CHANGES


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
    assert (queue.waits_since(), queue.room()) == (1.0, (0, []))
    assert [queue.take_next(9, 1.0).render for _ in range(2)] == ["z", "x"]
    queue.close()


def test_a_home_of_the_version_before_knows_what_its_renders_may_take(tmp_path):
    row = "INSERT INTO renders (render, client, request, digest, state, priority, created_at"
    with contextlib.closing(sqlite3.connect(tmp_path / "old")) as file:
        file.executescript("".join(_CHANGES[:2]))
        file.execute(f"{row}, room_bytes) VALUES ('x', 'a', '{{}}', 'd', 'queued', 0, 1, 30)")
        for state in ("paused", "running", "queued"):
            values = f"'{state}', 'a', '{{}}', 'd', '{state}', 0, 1, 50, 2"
            file.execute(f"{row}, room_bytes, started_at) VALUES ({values})")
        file.execute("PRAGMA user_version = 2")
        file.commit()
    with contextlib.closing(Queue(tmp_path / "old")) as queue:
        room, begun = queue.room()
        assert (room, [record.render for record in begun]) == (30, ["paused", "running", "queued"])
        queue.room_known([(record, 4) for record in begun])
        room, begun = queue.room()
        assert (room, [record.render for record in begun]) == (38, ["running"])
        assert queue.counts("a") == {"paused": 1, "queued": 2, "running": 1}


def test_a_home_that_cannot_be_made_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "in it"):
        with pytest.raises(ValueError, match=f"^home={home} cannot be made a folder .* --home"):
            make_app(home)
