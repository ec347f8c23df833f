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
        plan = self._folder.plan
        self._generator = Generator(plan, self._report, self._open_backend)
        if self._asked.is_set():
            self._generator.give_up()
        cut = _Cut(plan)
        with closing(self._generator.chunks()) as chunks:
            for chunk in chunks:
                cut.add(chunk)
                if cut.is_due():
                    self._commit(attempt, cut)
        if self._asked.is_set():
            return attempt.frames_done == plan.config.video.frames
        if cut.frames:
            self._commit(attempt, cut)
        return True

    def _commit(self, attempt: Attempt, cut: "_Cut") -> None:
        start, frames, blocks = cut.take()
        if start >= attempt.frames_done:  # else it is final already
            assert start == attempt.frames_done, "segments are the same each time"
            self._patiently(lambda: attempt.commit(frames, blocks))

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


class _Cut:
    """Frames gathered until they make a segment: whole blocks, and half a second at least.

    Where segments end follows from the plan alone, so that they are the same at every attempt.
    """

    def __init__(self, plan: Plan) -> None:
        self._schedule = plan.schedule
        self._stride = plan.arch.vae.time_stride
        self._least = (plan.config.video.fps + 1) // 2
        self._stop = 0  # the frame after the last one here
        self._blocks = (0, 0)
        self.frames: list[Frames] = []

    def add(self, chunk: Chunk) -> None:
        if not self.frames:
            self._blocks = (chunk.block, chunk.block + 1)
        self._blocks = (self._blocks[0], chunk.block + 1)
        self.frames.append(chunk.frames)
        self._stop = chunk.start + len(chunk.frames)

    def is_due(self) -> bool:
        last_latent = self._schedule.bounds(self._blocks[1] - 1)[1] - 1
        count = sum(map(len, self.frames))
        return self._stop == 1 + last_latent * self._stride and count >= self._least

    def take(self) -> tuple[int, list[Frames], tuple[int, int]]:
        """First frame, frames, blocks."""
        frames, self.frames = self.frames, []
        return self._stop - sum(map(len, frames)), frames, self._blocks
