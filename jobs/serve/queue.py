"""The durable queue: one SQLite file behind one owner, which alone says what runs next.

Every method is one transaction of well under a millisecond, from any thread. What was read last is
kept: nobody else writes into the file.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .places import Places, turn
from .queue_file import open_file
from .record import OVER, NewRender, Record, State, Wish

_KEPT = 4096  # records
_PAGE = 100  # that are looked at in one go

# priority first; among equals the client that has waited longest since its last turn; then age
_NEXT = """
SELECT r.* FROM counts w LEFT JOIN clients c ON c.client = w.client
JOIN renders r ON r.number = (SELECT number FROM renders
  WHERE client = w.client AND state = 'queued' ORDER BY priority DESC, number LIMIT 1)
WHERE w.state = 'queued' AND w.renders > 0 AND w.client NOT IN
  (SELECT client FROM counts WHERE state = 'running' AND renders >= ?)
ORDER BY r.priority DESC, COALESCE(c.served, 0), r.number LIMIT 1
"""

_TO_BEGIN = "ended_at IS NULL AND started_at IS NULL"
_ANEW = "state = 'queued', wish = '', attempts = 0, ended_at = NULL, error = NULL, room_bytes = -1"


class KeyReusedError(ValueError):
    """An idempotency key came back with another request."""


class Queue:
    """Opened by one process; a second one is refused while the first lives."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, Record] = {}
        self._places: Places | None = None  # none: to be read
        self.version = 0  # counts what was written
        self._file = open_file(path)

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def add(self, new: NewRender, now: float) -> tuple[Record, bool]:
        """Its record, and whether this call made it: a key that was used gives the first one."""
        with self._transaction():
            if new.idempotency_key is not None:
                known = self._keyed(new.client, new.idempotency_key, new.digest)
                if known is not None:
                    return known, False
            self._file.execute(
                "INSERT INTO renders (render, client, request, digest, state, priority,"
                " created_at, deadline_at, parent, idempotency_key, room_bytes)"
                " VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?)",
                (
                    new.render,
                    new.client,
                    json.dumps(new.request),
                    new.digest,
                    new.priority,
                    now,
                    new.deadline_at,
                    new.parent,
                    new.idempotency_key,
                    new.room_bytes,
                ),
            )
            self._note_place(new.render)
            return self._get(new.render), True

    def get(self, render: str) -> Record | None:
        with self._lock:
            if (record := self._kept.get(render)) is not None:
                return record
            row = self._one("SELECT * FROM renders WHERE render = ?", (render,))
            if row is None:
                return None
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            record = self._kept[render] = _record(row)
            return record

    def find_key(self, client: str, key: str, digest: str) -> Record | None:
        """What this client has made with an idempotency key; KeyReusedError: of another request."""
        with self._lock:
            return self._keyed(client, key, digest)

    def find_same(self, client: str, digest: str, since: float) -> Record | None:
        """The newest render of the same request by the same client."""
        with self._lock:
            row = self._one(
                "SELECT * FROM renders WHERE client = ? AND digest = ? AND created_at >= ?"
                " ORDER BY created_at DESC, number DESC LIMIT 1",
                (client, digest, since),
            )
        return None if row is None else _record(row)

    def page(
        self,
        client: str | None,
        *,
        states: Sequence[State] = (),
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
    ) -> tuple[list[Record], bool]:
        """Renders after the named one, and whether there are more; `client=None`: everybody's. One
        that is gone stands where its id does, as ids rise with time."""
        values: dict[str, str | None] = {"client": client, "after": after}
        values |= {state: state for state in states}
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where = ["1" if client is None else "client = :client"]
        if after is not None:
            past = "number + (render < :after)" if newest_first else "number"
            place = (
                f"SELECT {past} FROM renders WHERE render <= :after ORDER BY render DESC LIMIT 1"
            )
            where.append(f"number {sign} COALESCE(({place}), 0)")
        # each state on its own: for several at once all that a client ever had would be looked at
        queries = (
            f"SELECT * FROM (SELECT * FROM renders WHERE {' AND '.join(where)} AND {its}"
            f" ORDER BY number {order} LIMIT {limit + 1})"
            for its in [f"state = :{state}" for state in dict.fromkeys(states)] or ["1"]
        )
        found = self._all(f"{' UNION ALL '.join(queries)} ORDER BY number {order}", values)
        return found[:limit], len(found) > limit

    def take_next(self, max_running_per_client: int, now: float) -> Record | None:
        """The render whose turn it is, now running; none if nobody waits who may run."""
        with self._transaction():
            row = self._one(_NEXT, (max_running_per_client,))
            if row is None:
                return None
            self._file.execute(
                "UPDATE renders SET state = 'running', attempts = attempts + 1, room_bytes = -1,"
                " started_at = COALESCE(started_at, ?) WHERE render = ?",
                (now, row["render"]),
            )
            self._file.execute(
                "INSERT INTO clients (client, served)"
                " SELECT ?, COALESCE(MAX(served), 0) + 1 FROM clients WHERE true"
                " ON CONFLICT (client) DO UPDATE SET served = excluded.served",
                (row["client"],),
            )
            self._note_place(row["render"])
            return self._get(row["render"])

    def put_back(self, render: str, attempts: int) -> None:
        """A running render waits for its turn again; `attempts`: processes it has cost so far."""
        self._update(render, "state = 'queued', wish = '', attempts = ?", attempts)

    def resume(self, render: str, now: float) -> None:
        """One that is paused, or was to be over, waits for its turn as if it had not ended; a
        deadline that has passed is none any more."""
        deadline = "deadline_at = CASE WHEN deadline_at >= ? THEN deadline_at END"
        self._update(render, f"{_ANEW}, {deadline}", now)

    def edit(self, render: str, request: Mapping[str, Any]) -> Record:
        """One that is done waits for its turn again, with more to be made of it."""
        change = f"{_ANEW}, deadline_at = NULL, video_bytes = NULL, request = ?"
        self._update(render, change, json.dumps(request))
        with self._lock:
            return self._get(render)

    def drop(self, render: str, request: Mapping[str, Any], now: float) -> Record:
        """One that was edited is done again, with what there was before."""
        change = "state = 'done', wish = '', ended_at = ?, error = NULL, request = ?"
        self._update(render, change, now, json.dumps(request))
        with self._lock:
            return self._get(render)

    def ask(self, render: str, wish: Wish) -> None:
        """What a running render shall do; whoever runs it obeys and calls `end` or `pause`."""
        self._update(render, "wish = ?", wish)

    def pause(self, render: str) -> None:
        self._update(render, "state = 'paused', wish = ''")

    def end(
        self, render: str, state: State, now: float, error: Mapping[str, str] | None = None
    ) -> None:
        assert state in OVER, state
        said = None if error is None else json.dumps(error)
        self._update(render, "state = ?, wish = '', ended_at = ?, error = ?", state, now, said)

    def add_gpu_seconds(self, render: str, seconds: float) -> None:
        self._update(render, "gpu_seconds = gpu_seconds + ?", seconds)

    def remove(self, render: str) -> None:
        with self._transaction():
            self._note_place(render, is_gone=True)
            self._file.execute("DELETE FROM renders WHERE render = ?", (render,))

    def place(self, record: Record) -> int:
        """How many wait before it, as far as that is known."""
        with self._lock:
            if self._places is None:
                rows = self._file.execute(
                    "SELECT priority, number FROM renders WHERE state = 'queued'"
                )
                self._places = Places(turn(*row) for row in rows)
            return self._places.before(turn(record.priority, record.number))

    def with_state(self, state: State) -> list[Record]:
        return self._all("SELECT * FROM renders WHERE state = ? ORDER BY number", (state,))

    def overdue(self, now: float) -> list[Record]:
        return self._all(
            "SELECT * FROM renders WHERE deadline_at < ?"
            " AND state IN ('queued', 'running', 'paused') AND wish = ''",
            (now,),
        )

    def counts(self, client: str | None = None) -> dict[str, int]:
        """How many renders are in each state."""
        where, values = ("", ()) if client is None else ("WHERE client = ?", (client,))
        query = (
            f"SELECT state, SUM(renders) FROM counts {where} GROUP BY state HAVING SUM(renders) > 0"
        )
        with self._lock:
            return dict(self._file.execute(query, values).fetchall())

    def waits_since(self) -> float | None:
        """When the oldest of those was accepted that wait for their first turn."""
        query = f"SELECT MIN(created_at) FROM renders WHERE {_TO_BEGIN} AND state = 'queued'"
        with self._lock:
            since: float | None = self._file.execute(query).fetchone()[0]
        return since

    def room(self) -> tuple[int, list[Record]]:
        """Of the disk, that renders may yet take; and those, of which only their folders say that,
        as they run, or have run."""
        total = "SELECT TOTAL(room_bytes) FROM counts WHERE state IN ('queued', 'paused')"
        unknown = "SELECT * FROM renders WHERE room_bytes < 0 AND ended_at IS NULL"
        with self._lock:
            (room,) = self._file.execute(total).fetchone()
            return int(room), [_record(row) for row in self._file.execute(unknown)]

    def room_known(self, rooms: Sequence[tuple[Record, int]]) -> None:
        """What those may take that were paused or waited, and have not run meanwhile."""
        with self._transaction():
            self._file.executemany(
                "UPDATE renders SET room_bytes = ?"
                " WHERE number = ? AND gpu_seconds = ? AND state IN ('queued', 'paused')",
                [(room, record.number, record.gpu_seconds) for record, room in rooms],
            )

    def with_video(self, client: str, num_bytes: int) -> list[Record]:
        """Those that are done whose video has so many bytes, as far as they were measured."""
        return self._all(
            "SELECT * FROM renders WHERE client = ? AND state = 'done' AND video_bytes = ?"
            " ORDER BY number DESC",
            (client, num_bytes),
        )

    def not_measured(self, client: str, after: int = 0) -> list[Record]:
        """Some of those that are done and whose video nobody has measured, by number."""
        return self._all(
            "SELECT * FROM renders INDEXED BY renders_video WHERE client = ? AND state = 'done'"
            " AND video_bytes IS NULL AND number > ? ORDER BY number LIMIT ?",
            (client, after, _PAGE),
        )

    def measured(self, sizes: Sequence[tuple[Record, int]]) -> None:
        """Bytes of the videos of these, unless an edit has made another of it meanwhile."""
        with self._transaction():
            self._file.executemany(
                "UPDATE renders SET video_bytes = ? WHERE number = ? AND ended_at = ?",
                [(size, record.number, record.ended_at) for record, size in sizes],
            )

    def _update(self, render: str, change: str, *values: object) -> None:
        with self._transaction():
            self._file.execute(f"UPDATE renders SET {change} WHERE render = ?", (*values, render))
            self._note_place(render)

    def _note_place(self, render: str, *, is_gone: bool = False) -> None:
        row = self._one("SELECT priority, number, state FROM renders WHERE render = ?", (render,))
        if self._places is not None and row is not None:
            waits = row["state"] == "queued" and not is_gone
            self._places.note(turn(row["priority"], row["number"]), waits=waits)

    def _keyed(self, client: str, key: str, digest: str) -> Record | None:
        row = self._one(
            "SELECT * FROM renders WHERE client = ? AND idempotency_key = ?", (client, key)
        )
        if row is not None and row["digest"] != digest:
            raise KeyReusedError(
                f"Idempotency-Key={key} came with another request before (render {row['render']}); "
                "give every request a key of its own"
            )
        return None if row is None else _record(row)

    def _get(self, render: str) -> Record:
        row = self._one("SELECT * FROM renders WHERE render = ?", (render,))
        assert row is not None, render
        return _record(row)

    def _all(self, query: str, values: Sequence[Any] | Mapping[str, Any]) -> list[Record]:
        with self._lock:
            rows = self._file.execute(query, values).fetchall()
        return [_record(row) for row in rows]

    def _one(self, query: str, values: Sequence[object]) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._file.execute(query, values).fetchone()
        return row

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._kept.clear()
            self.version += 1
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._file.execute("COMMIT")
            except BaseException:
                self._places = None
                if self._file.in_transaction:  # SQLite ends it itself where a disk is full
                    self._file.execute("ROLLBACK")
                raise


def _record(row: sqlite3.Row) -> Record:
    values = dict(row)
    for name in ("digest", "idempotency_key", "room_bytes", "video_bytes"):
        del values[name]
    for name in ("request", "error"):
        values[name] = json.loads(values[name] or "null")
    return Record(**values)
