"""Which render a video is of that comes back to the server: by its size, then by its bytes."""

import hashlib
from contextlib import suppress

from .errors import ApiError
from .files import AllFiles, RenderFiles
from .queue import Queue
from .record import Record
from .streams import pieces


def find_video(queue: Queue, files: AllFiles, client: str, data: bytes) -> Record | None:
    """The newest such render of this client, in a thread: those that are done and have come to be
    since the last time are opened, each once."""
    _measure(queue, files, client)
    for record in queue.with_video(client, len(data)):
        with suppress(ApiError, OSError):  # whose files are gone
            if _has(files.of(record.render), data):
                return record
    return None


def _measure(queue: Queue, files: AllFiles, client: str) -> None:
    last = 0
    while records := queue.not_measured(client, last):
        sizes = []
        for record in records:
            with suppress(ApiError, OSError):
                made = files.of(record.render)
                sizes.append((record, sum(count for _, count in made.parts(made.segments()))))
        queue.measured(sizes)
        last = records[-1].number


def _has(made: RenderFiles, data: bytes) -> bool:
    hashed = hashlib.sha256()
    for piece in pieces(made.parts(made.segments()), 0, len(data)):
        hashed.update(piece)
    return hashed.digest() == hashlib.sha256(data).digest()
