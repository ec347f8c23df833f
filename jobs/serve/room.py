"""What renders that were accepted may yet take of the disk: what is free is not free for others."""

from .errors import ApiError
from .files import AllFiles
from .queue import Queue
from .record import Record


def promised(queue: Queue, files: AllFiles) -> int:
    """Bytes at most, in a thread: those that have begun are looked at."""
    return queue.room_bytes() + sum(_left(record, files) for record in queue.begun())


def _left(record: Record, files: AllFiles) -> int:
    try:
        done = files.of(record.render).done
    except (ApiError, OSError):
        done = 0
    frames: int = record.request["frames"] - done
    return frames * int(record.request.get("frame_bytes", 0))  # none: an earlier version's
