"""What has become of a batch's items, on disk: a line an event, read back when it goes on."""

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..home.lock import try_lock
from .batch_items import Asked

NAME = "batch.jsonl"


class BatchLog:
    """Appended to by one batch at a time; a line that is cut short counts as not written."""

    def __init__(self, folder: Path) -> None:
        """ValueError: another batch is at it."""
        self._path = folder / NAME
        self._last: dict[str, dict[str, Any]] = {}
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._take()
            os.ftruncate(self._file, self._read())
            if "" not in self._last:  # what its idempotency keys begin with
                self._append({"item": "", "batch": secrets.token_hex(8)})
        except BaseException:
            self.close()
            raise

    def last(self, asked: Asked) -> dict[str, Any]:
        """The newest line about it; empty if it is new, or is another request by now."""
        line = self._last.get(asked.name, {})
        return line if line.get("digest") == _digest(asked) else {}

    def key(self, asked: Asked, attempt: int) -> str:
        """The same for the same attempt at the same item, in whichever process: one render."""
        batch = self._last[""]["batch"]
        text = f"{batch} {asked.name} {_digest(asked)} {attempt}"
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def note(self, asked: Asked, state: str, attempt: int, **facts: object) -> None:
        line = {"item": asked.name, "digest": _digest(asked), "state": state, "attempt": attempt}
        self._append(line | facts)

    def close(self) -> None:
        os.close(self._file)

    def _take(self) -> None:
        with suppress(OSError):  # a file system without such locks
            if not try_lock(self._file):
                raise ValueError(
                    f"{self._path} is written by another batch that is going on, and two would "
                    "make the same videos twice; wait for it, or name another folder"
                )

    def _append(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)
        self._last[line["item"]] = line

    def _read(self) -> int:
        """Bytes of whole lines."""
        whole = 0
        for text in self._path.read_bytes().splitlines(keepends=True):
            try:
                line = json.loads(text)
                if not text.endswith(b"\n"):
                    break
                self._last[line["item"]] = line
            except (ValueError, KeyError, TypeError):
                break
            whole += len(text)
        return whole


def _digest(asked: Asked) -> str:
    text = json.dumps([asked.prompt, dict(asked.more)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
