"""Checkpoints saved in a thread of their own: of those that wait, only the newest counts."""

import logging
import threading

from ...pipeline.checkpoint import Checkpoint
from .attempt import Attempt
from .lock import Taken

_log = logging.getLogger("longreel")


class Saver:
    """Of one attempt; a checkpoint waits until the frames that it counts are in segments."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._changed = threading.Condition()
        self._waiting: Checkpoint | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="longreel-saver", daemon=True)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Returns at once. From any thread."""
        with self._changed:
            self._waiting = checkpoint
            self._changed.notify()

    def committed(self) -> None:
        """There are more frames in segments. From any thread."""
        with self._changed:
            self._changed.notify()

    def __enter__(self) -> "Saver":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """What can still be saved is."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._is_ready())
                checkpoint = self._waiting if self._is_ready() else None
                if checkpoint is None:
                    return
                self._waiting = None
            try:
                self._attempt.save(checkpoint)
            except Taken:
                return  # whoever writes next says so
            except OSError as error:
                _log.warning(
                    "a checkpoint cannot be saved (%s); the render goes on, and after a crash it "
                    "would begin at the one before",
                    error,
                )

    def _is_ready(self) -> bool:
        waiting = self._waiting
        return waiting is not None and waiting.frames <= self._attempt.frames_done
