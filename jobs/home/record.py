"""A render made into its folder: frames become segments, and whatever ends it is written down."""

import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...configs.errors import first_line, is_memory
from ...models.fingerprint import SCHEME
from ...pipeline.backend import Backend
from ...pipeline.checkpoint import apart
from ...pipeline.generator import Chunk, Generator, Report, quiet
from ...pipeline.parts import fingerprints
from ...pipeline.plan import Plan
from ..cluster import open_backend
from .attempt import Attempt
from .folder import RenderFolder
from .home import way_on
from .ledger import Status
from .lock import Taken
from .measures import Changes, in_words, next_measure
from .saver import Saver
from .segments import Frames
from .splice import Splice

_log = logging.getLogger("longreel")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_POLL_S = 0.5
FULL_S = 600.0  # how long a full disk is waited for


class _Stopped(Exception):  # noqa: N818 -- nobody's error: it was asked for
    """While a full disk was waited for."""


class RenderRun:
    """One go at a render, in this process and the actors it starts."""

    def __init__(
        self,
        folder: RenderFolder,
        report: Report = quiet,
        open_backend: Callable[..., Backend] = open_backend,
        full_s: float = FULL_S,
        changes: Changes = MappingProxyType({}),
    ) -> None:
        """`full_s`: how long to wait for a full disk before the render is given up. `changes`: of
        fields that change no frame, such as parallel.num_stages, for this go alone."""
        self._folder = folder
        self._report = report
        self._open_backend = open_backend
        self._full_s = full_s
        self._changes = changes
        self._attempt: Attempt | None = None
        self._telling = threading.Condition()
        self._generator: Generator | None = None
        self._is_over = False
        self._ending = ""  # the state that was asked for
        self._asked = threading.Event()

    def run(self) -> Status:
        """Goes on from what is in the folder, until the render is done or `stop` was called.

        Taken where another process makes it. Whatever else is raised is in the folder as well.
        """
        with self._folder.attempt() as attempt:
            try:
                if self._render(attempt):
                    self._patiently(attempt.finish)
                else:
                    attempt.end(self._ending)
            except Taken:
                raise
            except _Stopped:
                attempt.end(self._ending)
            except Exception as error:
                reason = str(error) or type(error).__name__
                attempt.end("failed", f"{reason}; {way_on(self._folder)}")
                raise
            except BaseException:
                attempt.end("paused", "it was interrupted")
                raise
            finally:
                with self._telling:
                    self._is_over = True
                    self._telling.notify_all()
        return self._folder.status()

    def stop(self, state: str = "paused") -> None:
        """End within moments, as `paused` or `cancelled`; what is final stays. From any thread."""
        assert state in ("paused", "cancelled"), state
        self._ending = state
        self._asked.set()
        if self._generator is not None:
            self._generator.give_up()

    def finish(self) -> None:
        """Begin no more blocks: those in flight are the last, or the first is, where none has
        begun. From any thread, once it runs."""
        with self._telling:
            attempt = self._running()
            if attempt.redoes:
                raise ValueError(
                    f"a section of render {self._folder.id} is being made anew, and without its "
                    "last blocks the video would have a hole; stop it, or wait"
                )
            attempt.limit = self._tell(Generator.stop)
            attempt.note("finishing", blocks=attempt.limit)

    def set_prompt(self, prompt: str) -> None:
        """Another prompt for the blocks that are yet to begin. From any thread, once it runs."""
        with self._telling:
            attempt = self._running()
            block = self._tell(lambda generator: generator.set_prompt(prompt))
            attempt.prompts[block] = prompt
            attempt.note("prompt", block=block, prompt=prompt)

    def _running(self) -> Attempt:
        if self._generator is None or self._attempt is None:
            raise ValueError(
                f"render {self._folder.id} does not run yet, so there is nobody to tell; call run "
                "in another thread first"
            )
        return self._attempt

    def _tell(self, what: Callable[[Generator], int]) -> int:
        """What it says; where it has ended for want of memory, what the next one says."""
        while not self._is_over:
            assert self._generator is not None
            told = self._generator
            try:
                answer = what(told)
            except ValueError:
                if not told.is_over:
                    raise
            if not told.is_over:
                return answer
            while not self._is_over and self._generator is told:
                self._telling.wait()
        raise ValueError(f"render {self._folder.id} is over, so nothing can be told to it")

    @property
    def is_loaded(self) -> bool:
        """What it is told now is heard at once."""
        generator = self._generator
        return generator is not None and generator.is_loaded and not generator.is_over

    def _render(self, attempt: Attempt) -> bool:
        """Whether it is whole; with less memory, if there is not enough."""
        self._attempt = attempt
        while True:
            plan = self._folder.plan_with(self._all_changes)
            if 0 < _end(plan, attempt) <= attempt.frames_done:
                return True  # its process ended before it could say so
            try:
                return self._render_as(plan, attempt)
            except Exception as error:
                if not is_memory(error):
                    raise
                decoding = self._generator is not None and self._generator.is_decoding
                changes = next_measure(plan, decoding=decoding)
                if changes is None:
                    raise
                self._patiently(partial(attempt.change, changes, first_line(error)))
                _log.warning(
                    "memory was not enough (%s); going on with %s",
                    first_line(error),
                    in_words(changes),
                )

    @property
    def _all_changes(self) -> dict[str, Any]:
        assert self._attempt is not None
        return {**self._attempt.changes, **self._changes}

    def _render_as(self, plan: Plan, attempt: Attempt) -> bool:
        self._check_weights(plan, attempt)
        start, around = attempt.start_point(), None
        splice: Splice | None = None
        fade = 0  # of a section: a segment ends where what was there begins to come back
        if edit := attempt.edit:
            fade = edit.fade if edit.fade < edit.stop else 0
            splice = Splice(plan, edit, self._folder.init, attempt.segments)
            start, around = start or splice.opening(), splice.around()
        if start and not plan.batched:
            start = apart(start)
        cuts, gathered = plan.cuts, _Gathered(start.frames if start else 0)
        seen = self._generator.seen if self._generator else 0
        tail = plan.schedule.num_blocks if attempt.edit else None  # decoded anew, as one segment
        with Saver(attempt) as saver:
            with self._telling:  # what the one before was told is known
                self._generator = Generator(
                    plan,
                    self._report,
                    partial(self._open_backend, hear=self._hear),
                    start=start,
                    keep=saver.keep,
                    prompts=attempt.prompts,
                    limit=attempt.limit,
                    seen=max(seen, cuts.blocks_before(attempt.frames_done), *attempt.prompts),
                    around=around,
                )
                self._telling.notify_all()
            if self._asked.is_set():
                self._generator.give_up()
            with closing(self._generator.chunks()) as chunks:
                for chunk in chunks:
                    gathered.add(chunk, splice)
                    at_end = gathered.stop == cuts.stop_frame(chunk.block)  # of this block
                    is_cut = gathered.stop == fade or cuts.ends(chunk.block)
                    if at_end and is_cut and chunk.block != tail:
                        self._commit(attempt, gathered)
                        saver.committed()
                        gathered = _Gathered(gathered.stop)
            if self._asked.is_set():
                return 0 < _end(plan, attempt) <= attempt.frames_done
            if gathered.frames:
                self._commit(attempt, gathered)
        return True

    def _check_weights(self, plan: Plan, attempt: Attempt) -> None:
        """The same weights as at the beginning, where they can be seen from here, and no other
        version has looked at them then."""
        before, is_here = self._folder.manifest.weights, plan.config.parallel.address == "local"
        if before.get("scheme") != SCHEME or attempt.number == 1 or not is_here:
            return
        now = {"scheme": SCHEME, **fingerprints(plan)}
        for part in now | before:
            if before.get(part) != now.get(part):
                raise ValueError(
                    f"the {part} is not the one that render {self._folder.id} was begun with, so "
                    "its frames would change midway; put that one back, or name where it is with "
                    "model.checkpoint, model.transformer or model.lora"
                )

    def _hear(self, what: str) -> None:
        """Of a failure that the render survives."""
        _log.warning("%s", what)
        if self._attempt is not None:
            self._attempt.tell("repair", reason=what)

    def _commit(self, attempt: Attempt, gathered: "_Gathered") -> None:
        with self._telling:  # what was told before these frames were made is in the journal
            pass
        if gathered.start >= attempt.frames_done:  # else it is final already
            assert gathered.start == attempt.frames_done, "segments are the same each time"
            busy_s = self._generator.busy_s() if self._generator else []
            self._patiently(lambda: gathered.commit(attempt, busy_s))

    def _patiently(self, write: Callable[[], None]) -> None:
        """A full disk is waited for: somebody may clear it."""
        deadline, is_told = time.monotonic() + self._full_s, False
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in _FULL or time.monotonic() > deadline:
                    raise
                if not is_told:
                    _log.warning(
                        "the disk of %s is full, so the render waits, for up to %.0f s; make room",
                        self._folder.path,
                        self._full_s,
                    )
                    is_told = True
                if self._asked.wait(_FULL_POLL_S):
                    raise _Stopped from error


def _end(plan: Plan, attempt: Attempt) -> int:
    """The frame after the last one to be made; 0: there is none."""
    end = attempt.edit.stop if attempt.edit else plan.config.video.frames
    if attempt.limit is None:
        return end
    told = plan.cuts.stop_frame(attempt.limit - 1)
    return min(end, told) if end else told


class _Gathered:
    """Frames that do not make a segment yet."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.frames: list[Frames] = []
        self._latents: dict[int, Tensor] = {}  # latents_BCTHW by block

    @property
    def stop(self) -> int:
        return self.start + sum(map(len, self.frames))

    def add(self, chunk: Chunk, splice: Splice | None) -> None:
        self._latents[chunk.block] = chunk.latents_BCTHW
        self.frames.append(splice.blend(chunk.start, chunk.frames) if splice else chunk.frames)

    def commit(self, attempt: Attempt, busy_s: Sequence[float]) -> None:
        blocks = min(self._latents), max(self._latents) + 1
        latents_BCTHW = torch.cat([*self._latents.values()], dim=2)
        attempt.commit(self.frames, blocks, latents_BCTHW, busy_s)
