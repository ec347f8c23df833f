"""A render made into its folder: frames become segments, and whatever ends it is written down."""

import errno
import threading
import time
from collections.abc import Callable
from contextlib import closing

from ...pipeline.backend import Backend
from ...pipeline.generator import Chunk, Generator, Report, quiet
from ...pipeline.plan import Plan
from ..cluster import open_backend
from .attempt import Attempt
from .folder import RenderFolder
from .ledger import Status
from .lock import Taken
from .saver import Saver
from .segments import Frames

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_POLL_S = 0.5
FULL_S = 600.0  # how long a full disk is waited for


class RenderRun:
    """One go at a render, in this process and the actors it starts."""

    def __init__(
        self,
        folder: RenderFolder,
        report: Report = quiet,
        open_backend: Callable[[Plan], Backend] = open_backend,
        full_s: float = FULL_S,
    ) -> None:
        """`full_s`: how long to wait for a full disk before the render is given up."""
        self._folder = folder
        self._report = report
        self._open_backend = open_backend
        self._full_s = full_s
        self._generator: Generator | None = None
        self._ending = ""  # the state that was asked for
        self._asked = threading.Event()

    def run(self) -> Status:
        """Goes on from what is in the folder, until the render is done or `stop` was called.

        Taken where another process makes it. Whatever else is raised is in the folder as well.
        """
        with self._folder.attempt() as attempt:
            try:
                whole = self._render(attempt)
                self._end(attempt, "done" if whole else self._ending)
            except Taken:
                raise
            except Exception as error:
                self._end(attempt, "failed", str(error) or type(error).__name__)
                raise
            except BaseException:
                self._end(attempt, "paused", "it was interrupted")
                raise
        return self._folder.status()

    def stop(self, state: str = "paused") -> None:
        """End within moments, as `paused` or `cancelled`; what is final stays. From any thread."""
        assert state in ("paused", "cancelled"), state
        self._ending = state
        self._asked.set()
        if self._generator is not None:
            self._generator.give_up()

    def finish(self) -> None:
        """Begin no more blocks: those in flight are the last. From any thread, once it runs."""
        assert self._generator is not None, "the render has not begun"
        self._generator.stop()

    def set_prompt(self, prompt: str) -> None:
        """Another prompt for the blocks that are yet to begin. From any thread, once it runs."""
        assert self._generator is not None, "the render has not begun"
        self._generator.set_prompt(prompt)

    def _render(self, attempt: Attempt) -> bool:
        """Whether it is whole."""
        plan, start = self._folder.plan, attempt.start_point()
        cuts, gathered = plan.cuts, _Gathered(start.frames if start else 0)
        with Saver(attempt) as saver:
            self._generator = Generator(
                plan, self._report, self._open_backend, start=start, keep=saver.keep
            )
            if self._asked.is_set():
                self._generator.give_up()
            with closing(self._generator.chunks()) as chunks:
                for chunk in chunks:
                    gathered.add(chunk)
                    if gathered.stop == cuts.stop_frame(chunk.block) and cuts.ends(chunk.block):
                        self._commit(attempt, gathered)
                        saver.committed()
                        gathered = _Gathered(gathered.stop)
            if self._asked.is_set():
                return attempt.frames_done == plan.config.video.frames
            if gathered.frames:
                self._commit(attempt, gathered)
        return True

    def _commit(self, attempt: Attempt, gathered: "_Gathered") -> None:
        if gathered.start >= attempt.frames_done:  # else it is final already
            assert gathered.start == attempt.frames_done, "segments are the same each time"
            self._patiently(lambda: attempt.commit(gathered.frames, gathered.blocks))

    def _end(self, attempt: Attempt, state: str, reason: str = "") -> None:
        self._patiently(lambda: attempt.note(state, reason=reason))

    def _patiently(self, write: Callable[[], None]) -> None:
        """A full disk is waited for: somebody may clear it."""
        deadline = time.monotonic() + self._full_s
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in _FULL or time.monotonic() > deadline:
                    raise
                if self._asked.wait(_FULL_POLL_S):
                    raise


class _Gathered:
    """Frames that do not make a segment yet."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.frames: list[Frames] = []
        self.blocks = (0, 0)

    @property
    def stop(self) -> int:
        return self.start + sum(map(len, self.frames))

    def add(self, chunk: Chunk) -> None:
        first = self.blocks[0] if self.frames else chunk.block
        self.blocks = (first, chunk.block + 1)
        self.frames.append(chunk.frames)
