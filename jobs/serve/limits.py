"""What one client may ask of a server: bounds with their reasons, in one place."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of every client alike. Tests make them small."""

    head_bytes: int = 64 * 1024  # of a request: its line and headers
    head_s: float = 10.0  # for it to arrive
    body_bytes: int = 16 * 2**20  # a picture of 12 million pixels as PNG, and its request
    body_s: float = 30.0  # for the whole of a body to arrive
    prompt_chars: int = 4000
    frames: int = 57_601  # an hour at 16 a second
    pixels: int = 1920 * 1088  # of a frame
    steps: int = 200
    upload_pixels: int = 16_000_000
    queued: int = 500  # renders of a client that have not ended
    running: int = 1_000_000  # of a client at once; the server's own number is the usual bound
    writes: int = 250  # that may come in one burst
    writes_per_s: float = 5.0  # after it
    socket_bytes: int = 64 * 1024  # of a WebSocket message from a client
    idle_s: float = 120.0  # that a worker without a render keeps its devices on a cluster
    unread_s: float = 120.0  # a render paced by its reader waits so long for one


class Bucket:
    """Of writes that a client may still make; it fills again with time. One thread."""

    def __init__(self, size: float, per_s: float) -> None:
        self._size, self._per_s = size, per_s
        self._left: dict[str, tuple[float, float]] = {}  # by client, and when that was

    def take(self, client: str) -> float:
        """Seconds to wait before the next may come; 0: this one was taken."""
        now = time.monotonic()
        left, then = self._left.get(client, (self._size, now))
        left = min(self._size, left + (now - then) * self._per_s)
        wait = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._left[client] = (left - (wait == 0.0), now)
        return wait
