"""An append-only file of events, a line each, of which every prefix can be read.

A line is the CRC-32 of its JSON in eight digits, a space, the JSON. What stands after the first
line that is not whole is not there: it is left out by the next one to write, who begins a file of
its own, so that what a process adds that was stopped and taken over is nowhere.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .durable import anyone, write_whole

Event = Mapping[str, Any]


class JournalReader:
    """Events as they come, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._attempt = 0
        self.size = 0  # bytes of whole lines so far

    def poll(self) -> list[Event]:
        """What is new. Lines of an attempt that was taken over meanwhile count for nothing."""
        try:
            with self._path.open("rb") as file:
                file.seek(self.size)
                data = file.read()
        except FileNotFoundError:
            return []
        events = []
        for line in data.splitlines(keepends=True):
            event = _parse(line)
            if event is None:
                break
            self.size += len(line)
            attempt = event.get("attempt", 0)
            if attempt >= self._attempt:
                self._attempt = attempt
                events.append(event)
        return events

    def lost(self) -> int:
        """Lines that count for nothing, as the first of them is damaged. What a process that was
        killed has left of a line is none: it has no end."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self.size)
            return file.read().count(b"\n")
        return 0


class JournalWriter:
    """One attempt's: the folder's lock is held as long as it is used."""

    def __init__(
        self, path: Path, attempt: int, size: int, may: Callable[[], None] = anyone
    ) -> None:
        """`size`: bytes of whole lines, after which everything is left out. `may` raises if
        another process writes here by now."""
        write_whole(path, path.read_bytes()[:size] if size else b"", may)
        self._file = os.open(path, os.O_RDWR | os.O_APPEND)
        self.attempt = attempt

    def append(self, **event: object) -> None:
        """On the disk when this returns; not there at all if it raises."""
        event = {**event, "attempt": self.attempt, "time": round(time.time(), 3)}
        size = os.fstat(self._file).st_size
        try:
            _write_all(self._file, _format(event))
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def close(self) -> None:
        os.close(self._file)


def _format(event: Event) -> bytes:
    text = json.dumps(event, ensure_ascii=True, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> Event | None:
    """None unless the line is whole."""
    head, space, text = line[:8], line[8:9], line[9:-1]
    if not line.endswith(b"\n") or space != b" " or head != b"%08x" % zlib.crc32(text):
        return None
    event: Event = json.loads(text)
    return event


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
