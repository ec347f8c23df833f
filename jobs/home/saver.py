"""Checkpoints saved in a thread of their own: of those that wait, only the newest counts."""

import logging
import threading

from ...configs.errors import first_line
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
        self._told = ""  # to the journal: what fails again and again is there once
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
                self._save(checkpoint)
            except Taken:
                return  # whoever writes next says so

    def _save(self, checkpoint: Checkpoint) -> None:
        """Whatever it ends with, the next one may go well, and the frames do without."""
        try:
            self._attempt.save(checkpoint)
        except Taken:
            raise
        except Exception as error:
            what = f"a checkpoint cannot be saved ({first_line(error)})"
            so = "the render goes on, and after a crash it would begin at the one before"
            # of a bug the trace as well
            _log.warning("%s; %s", what, so, exc_info=not isinstance(error, OSError))
            if what != self._told:
                self._told = what
                self._attempt.tell("repair", reason=f"{what}; {so}")

    def _is_ready(self) -> bool:
        waiting = self._waiting
        return waiting is not None and waiting.frames <= self._attempt.frames_done
