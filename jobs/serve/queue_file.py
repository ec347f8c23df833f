"""The queue's file: its tables, its one owner, and what earlier versions left of it."""

import sqlite3
from pathlib import Path

# Each makes the next version out of the one before it; a new file goes through all of them.
_CHANGES = (
    """
    CREATE TABLE renders (
      number INTEGER PRIMARY KEY AUTOINCREMENT,
      render TEXT NOT NULL UNIQUE,
      client TEXT NOT NULL,
      request TEXT NOT NULL,
      digest TEXT NOT NULL,
      state TEXT NOT NULL,
      wish TEXT NOT NULL DEFAULT '',
      priority INTEGER NOT NULL,
      created_at REAL NOT NULL,
      started_at REAL,
      ended_at REAL,
      deadline_at REAL,
      attempts INTEGER NOT NULL DEFAULT 0,
      gpu_seconds REAL NOT NULL DEFAULT 0,
      error TEXT,
      parent TEXT,
      idempotency_key TEXT,
      UNIQUE (client, idempotency_key)
    );
    CREATE INDEX renders_client ON renders (client, number);
    CREATE TABLE clients (client TEXT PRIMARY KEY, served INTEGER NOT NULL);
    """,
    # What is asked on the event loop takes as long however many renders there are.
    """
    ALTER TABLE renders ADD COLUMN room_bytes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE renders ADD COLUMN video_bytes INTEGER;
    DROP INDEX IF EXISTS renders_state; -- the first homes have one without deadlines
    DROP INDEX IF EXISTS renders_client_state; -- which others have
    CREATE INDEX renders_state ON renders (state, deadline_at);
    CREATE INDEX renders_client_state ON renders (client, state);
    CREATE INDEX renders_digest ON renders (client, digest, created_at);
    CREATE INDEX renders_video ON renders (client, video_bytes) WHERE state = 'done';
    CREATE INDEX renders_turn ON renders (client, priority DESC, number) WHERE state = 'queued';
    CREATE INDEX renders_to_begin ON renders (state, created_at, room_bytes, ended_at, started_at)
      WHERE ended_at IS NULL AND started_at IS NULL;
    CREATE INDEX renders_begun ON renders (number)
      WHERE ended_at IS NULL AND started_at IS NOT NULL;

    CREATE TABLE counts (
      client TEXT, state TEXT, renders INTEGER NOT NULL, PRIMARY KEY (client, state)
    );
    INSERT INTO counts SELECT client, state, COUNT(*) FROM renders GROUP BY client, state;
    CREATE TRIGGER counts_added AFTER INSERT ON renders BEGIN
      INSERT INTO counts VALUES (NEW.client, NEW.state, 1)
        ON CONFLICT DO UPDATE SET renders = renders + 1;
    END;
    CREATE TRIGGER counts_removed AFTER DELETE ON renders BEGIN
      UPDATE counts SET renders = renders - 1 WHERE (client, state) = (OLD.client, OLD.state);
    END;
    CREATE TRIGGER counts_moved AFTER UPDATE OF state ON renders BEGIN
      UPDATE counts SET renders = renders - 1 WHERE (client, state) = (OLD.client, OLD.state);
      INSERT INTO counts VALUES (NEW.client, NEW.state, 1)
        ON CONFLICT DO UPDATE SET renders = renders + 1;
    END;
    """,
    # What renders may yet take of the disk is added up as well: -1 where nobody has looked at what
    # they have made.
    """
    UPDATE renders SET room_bytes = -1 WHERE ended_at IS NULL AND started_at IS NOT NULL;
    DROP INDEX renders_begun;
    DROP INDEX renders_to_begin;
    CREATE INDEX renders_to_begin ON renders (state, created_at, ended_at, started_at)
      WHERE ended_at IS NULL AND started_at IS NULL;
    CREATE INDEX renders_room ON renders (number) WHERE room_bytes < 0 AND ended_at IS NULL;

    DROP TRIGGER counts_added; DROP TRIGGER counts_removed; DROP TRIGGER counts_moved;
    DROP TABLE counts;
    CREATE TABLE counts (
      client TEXT, state TEXT, renders INTEGER NOT NULL, room_bytes INTEGER NOT NULL,
      PRIMARY KEY (client, state)
    );
    INSERT INTO counts
      SELECT client, state, COUNT(*), SUM(MAX(room_bytes, 0)) FROM renders GROUP BY client, state;
    CREATE TRIGGER counts_added AFTER INSERT ON renders BEGIN
      INSERT INTO counts VALUES (NEW.client, NEW.state, 1, MAX(NEW.room_bytes, 0))
        ON CONFLICT DO UPDATE
          SET renders = renders + 1, room_bytes = room_bytes + excluded.room_bytes;
    END;
    CREATE TRIGGER counts_removed AFTER DELETE ON renders BEGIN
      UPDATE counts SET renders = renders - 1, room_bytes = room_bytes - MAX(OLD.room_bytes, 0)
        WHERE (client, state) = (OLD.client, OLD.state);
    END;
    CREATE TRIGGER counts_moved AFTER UPDATE OF state, room_bytes ON renders BEGIN
      UPDATE counts SET renders = renders - 1, room_bytes = room_bytes - MAX(OLD.room_bytes, 0)
        WHERE (client, state) = (OLD.client, OLD.state);
      INSERT INTO counts VALUES (NEW.client, NEW.state, 1, MAX(NEW.room_bytes, 0))
        ON CONFLICT DO UPDATE
          SET renders = renders + 1, room_bytes = room_bytes + excluded.room_bytes;
    END;
    """,
)
VERSION = len(_CHANGES)


def open_file(path: Path) -> sqlite3.Connection:
    """Ours alone until it is closed or we die, of this version. ValueError says why it is not."""
    try:
        file = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=0)
    except sqlite3.OperationalError as error:
        raise _unusable(path, error) from error
    file.row_factory = sqlite3.Row
    try:
        _take(file, path)
    except BaseException:
        file.close()
        raise
    return file


def _take(file: sqlite3.Connection, path: Path) -> None:
    try:
        # held until close or death: a second server on this home would run renders twice
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        file.execute("BEGIN IMMEDIATE")  # or a home that is up to date would only be read
        file.execute("ROLLBACK")
        (version,) = file.execute("PRAGMA user_version").fetchone()
        for number, change in enumerate(_CHANGES[version:], start=version + 1):
            file.executescript(f"BEGIN; {change} PRAGMA user_version = {number}; COMMIT;")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise _unusable(path, error) from error
        raise ValueError(
            f"home={path.parent} is served by another longreel already, and two would run its "
            "renders twice; end that one, or give --home another folder"
        ) from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"home={path.parent} holds {path.name}, which is no queue of longreel ({error}); "
            "move that file away, or give --home another folder"
        ) from error
    if version > VERSION:
        raise ValueError(
            f"home={path.parent} was written by a newer longreel (queue format {version}, this "
            f"one reads up to {VERSION}), so its renders cannot be understood; use that version"
        )


def _unusable(path: Path, error: sqlite3.OperationalError) -> ValueError:
    return ValueError(
        f"home={path.parent} cannot keep the queue in {path.name} ({error}), so no render would "
        "outlive the server; make it a folder that can be written, on a disk with room, or give "
        "--home another one"
    )
