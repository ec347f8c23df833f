"""What renders that were accepted may yet take of the disk: what is free is not free for others."""

from ..target import check_rest
from .errors import ApiError
from .files import AllFiles
from .queue import Queue
from .record import Record


def promised(queue: Queue, files: AllFiles) -> int:
    """Bytes at most, in a thread: those that have made more since the last time are looked at."""
    room, unknown = queue.room()
    rooms = [(record, _left(record, files)) for record in unknown]
    if known := [pair for pair in rooms if pair[0].state != "running"]:
        queue.room_known(known)
    return room + sum(left for _, left in rooms)


def check_left(record: Record, queue: Queue, files: AllFiles) -> None:
    """NoRoom where the disk cannot take what is left of one that is to go on; in a thread."""
    left, others = _left(record, files), promised(queue, files)
    way_out = "free some space, or cancel others that wait"
    check_rest(files.home.path, left, others - (0 if record.over else left), way_out)


def _left(record: Record, files: AllFiles) -> int:
    try:
        done = files.of(record.render).done
    except (ApiError, OSError):
        done = 0
    frames: int = max(0, record.request["frames"] - done)
    return frames * int(record.request.get("frame_bytes", 0))  # none: an earlier version's
