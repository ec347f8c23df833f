"""How renders stand, put together once for all who ask at about the same time."""

import hashlib
import time
from functools import cached_property
from typing import TYPE_CHECKING

from .record import Record
from .schemas import RenderView
from .view import view

if TYPE_CHECKING:
    from .context import Context

_FRESH_S = 0.1  # as workers tell it
_KEPT = 1024  # renders


class Status:
    """Of one render at one moment, with what is made of it when somebody asks."""

    def __init__(self, view: RenderView, version: int) -> None:
        self.view, self.version, self.made = view, version, time.monotonic()

    @cached_property
    def body(self) -> bytes:
        return self.view.model_dump_json().encode()

    @cached_property
    def tag(self) -> str:
        return f'"{hashlib.blake2b(self.body, digest_size=12).hexdigest()}"'

    @cached_property
    def progress(self) -> str:
        return self.view.model_dump_json(include={"status", "progress"})


class Statuses:
    """Those that were asked for last; what the queue has changed is never kept."""

    def __init__(self) -> None:
        self._kept: dict[str, Status] = {}

    def of(self, context: "Context", record: Record) -> Status:
        """As it is by now: the record may have been read before a change."""
        version, kept = context.queue.version, self._kept.get(record.render)
        record = context.queue.get(record.render) or record
        if (
            kept is not None
            and kept.version == version
            and (record.over or time.monotonic() - kept.made < _FRESH_S)
        ):
            return kept
        while len(self._kept) >= _KEPT:
            del self._kept[next(iter(self._kept))]
        status = self._kept[record.render] = Status(view(context, record), version)
        return status
