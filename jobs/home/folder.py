"""A render on disk: what was asked for, what is there of it, and who is making it.

manifest.json        what was asked for (manifest.py)
journal              what has happened (journal.py, ledger.py)
init.mp4, segments/  the video so far (segments.py)
latents/             what it was decoded from (latents.py)
inputs/              pictures it starts from or ends on
lock                 who is making it (lock.py)
"""

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.arch import ARCHS
from ...pipeline.request import Request
from ...pipeline.section import change_prompts, prompt_times
from ..metadata import metadata
from ..target import check_target
from .durable import remove_parts, write_whole
from .export import export
from .journal import JournalReader, JournalWriter
from .ledger import ENDS, Cut, Edit, Ledger, Making, Status
from .lock import Held, Lock, Taken, read_by_us
from .manifest import Manifest, read_manifest
from .place import renders_command, resume_command
from .segments import Frames, Segment, decode_segments

if TYPE_CHECKING:  # to look at renders takes no torch
    from ...pipeline.plan import Plan
    from .attempt import Attempt

_log = logging.getLogger("longreel")
_POLL_S = 0.05


class RenderFolder:
    """One render. Any number of processes may read it while one makes it."""

    def __init__(self, path: Path) -> None:
        """ValueError unless it is one."""
        self.path = path
        self.manifest: Manifest = read_manifest(path)
        self._lock = Lock(path)
        self._reader = JournalReader(path / "journal")
        self._ledger = Ledger(path)
        self._reading = threading.Lock()  # the folder may be asked by several threads

    @property
    def id(self) -> str:
        return self.manifest.render

    @property
    def request(self) -> Request:
        return self.request_with({})

    def request_with(self, changes: Mapping[str, Any]) -> Request:
        """As `plan_with`."""
        return self._request(self._read().making, changes)

    @property
    def plan(self) -> "Plan":
        """ValueError where this machine cannot make it."""
        return self.plan_with({})

    def plan_with(self, changes: Mapping[str, Any]) -> "Plan":
        """With other values of some fields."""
        from ...pipeline.plan import make_plan

        return make_plan(self.request_with(changes))

    @property
    def init(self) -> Path:
        """What goes before any run of segments; it is there with the first one."""
        return self.path / "init.mp4"

    def status(self) -> Status:
        ledger, manifest = self._read(), self.manifest
        state, reason = ledger.state, ledger.reason
        if state == "running" and self._lock.owner() is None:
            # it may have ended between the two looks
            ledger = self._read()
            state, reason = ledger.state, ledger.reason
            if state == "running":
                state, reason = "paused", "its process is gone"
        return Status(
            state=state,
            reason=reason,
            frames_done=ledger.frames_done,
            frames=ledger.making.changes.get("video.frames", manifest.config.video.frames),
            attempt=ledger.attempt,
            created_s=manifest.created_s,
            updated_s=ledger.updated_s or manifest.created_s,
        )

    @property
    def frames_done(self) -> int:
        """That are as they will be."""
        return self._read().frames_done

    @property
    def revision(self) -> int:
        """How often it was edited; what was dropped counts as well, as some may have been seen."""
        return self._read().revision

    @property
    def redoes(self) -> bool:
        """What is being made takes the place of something, and is not seen before it is done."""
        return self._read().renewed is not None

    def segments(self) -> Sequence[Segment]:
        """Those that are final, in order."""
        return self.cut().segments

    def cut(self, number: int | None = None) -> Cut:
        """The video as it is now, or as the cut of this number has it.

        A redo makes another cut at the moment that it is done. Files of the cut before it stay
        until the next edit; Replaced once they are gone.
        """
        with self._reading:
            return self._look().cut(number)

    def wait(self, number: int, timeout_s: float, cut: int | None = None) -> Segment | None:
        """A segment once it is final; none: it is not being made, and there is no such.

        `cut`: whose it is; none: of now. TimeoutError after `timeout_s` without it.
        """
        deadline = time.monotonic() + timeout_s
        cut = self.cut(cut).number
        while True:
            state = self.status().state  # before the look, or what came between would be missed
            found = self.cut(cut)
            if number < len(found.segments):
                return found.segments[number]
            if found.is_whole or state in ENDS:
                return None
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"render {self.id} ({state}) has had no segment {number} for {timeout_s:g} s"
                )
            time.sleep(_POLL_S)

    def follow(self, start: int = 0, *, timeout_s: float) -> Iterator[Segment]:
        """Segments from number `start` on, each when it is final, until the render ends.

        `status` then says how. All are of the cut that was there at the beginning: of a redo that
        is done meanwhile nothing is seen. TimeoutError after `timeout_s` without one.
        """
        cut = self.cut().number
        while (segment := self.wait(start, timeout_s, cut)) is not None:
            yield segment
            start += 1

    def frames(self, segments: Sequence[Segment] | None = None) -> Iterator[Frames]:
        """Frames of these segments, or of all, height x width x 3, one at a time."""
        chosen = self.segments() if segments is None else segments
        return decode_segments(self.init, chosen, self.manifest.config.output)

    def export(self, output: Path) -> None:
        """The video so far as a file, or a folder of pictures, which appears when complete.

        ValueError: nothing of it can be written there.
        """
        with self._reading:
            ledger = self._look()
            segments, request = ledger.cut(None).segments, self._request(ledger.shown, {})
        if not segments:
            raise ValueError(
                f"render {self.id} has no frame yet, so there is no video to write to {output}; "
                f"`{resume_command(self.path)}` makes it"
            )
        config = self.manifest.config
        check_target(output, config.output)
        video = replace(config.video, frames=segments[-1].stop)
        request = replace(request, config=replace(config, video=video))
        if section := request.section:
            stride = ARCHS[config.model.arch].vae.time_stride
            times = prompt_times(section.prompts, fps=video.fps, frames_per_latent=stride)
            request = replace(request, prompt=section.prompts[0][1], prompt_at=times)
        with read_by_us(self.path):
            export(self.init, segments, output, request.config, metadata(request))

    def prompts(self, plan: "Plan") -> tuple[tuple[int, str], ...]:
        """Of the video by latents, those that were set while it was made included."""
        section, bounds = plan.request.section, plan.schedule.bounds
        found = {bounds(block)[0]: text for block, text in plan.prompts.items()}
        prompts = section.prompts if section else tuple(sorted(found.items()))
        for block, text in sorted(self._read().making.prompts.items()):
            start = bounds(block)[0]
            stop = section.stop if section and section.stop < plan.latents_shape[1] else None
            if stop is None or start < stop:  # one told too late for a section changes nothing
                prompts = change_prompts(prompts, start, stop, text)
        return prompts

    def edit(self, edit: Edit) -> None:
        """Have the next attempt make it. Taken where another process makes something."""
        from .edits import check_done

        with self._between() as held:
            check_done(self)
            before = self._read().revision
            if edit.section.revision != before + 1:
                raise Taken(
                    f"render {self.id} was edited by another process meanwhile, so this edit would "
                    "be one of a video that is not there any more; ask for it again"
                )
            self._append(held, event="edit", **edit.to_event())
            self._clear(held)

    def drop(self) -> None:
        """Without the edit that is not done: the video is what it was before it was asked for.

        ValueError: there is none. Taken where another process makes it.
        """
        with self._between() as held:
            if self._read().finished is None:
                home = self.path.parents[1]
                raise ValueError(
                    f"render {self.id} is {self.status().state} and has no unfinished edit, so "
                    f"there is nothing to drop; `{renders_command(home)}` lists how all stand"
                )
            remove_parts(self.path, held.check)
            self._append(held, event="dropped")
            held.check()
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
            self._clear(held)

    def num_bytes(self) -> int:
        """On the disk."""
        total = 0
        for place, _, names in os.walk(self.path):
            for name in names:
                with suppress(FileNotFoundError):  # whoever makes it renames and removes
                    total += os.stat(os.path.join(place, name)).st_size
        return total

    @contextmanager
    def attempt(self) -> "Iterator[Attempt]":
        """The right to go on with it, for one process at a time; Taken says who has it."""
        from .attempt import Attempt

        with self._lock.held(self.id) as held:
            remove_parts(self.path, held.check)
            writer = self._writer(held, self._read().attempt + 1)
            try:
                attempt = Attempt(self.path, writer, held, self.manifest.config)
                attempt.start()
                attempt.check(self._read().made)  # again: a stopped writer may have come before us
                attempt.resume(self._read())
                yield attempt
            finally:
                writer.close()

    @contextmanager
    def _between(self) -> Iterator[Held]:
        """Two attempts: the right to note something there."""
        try:
            with self._lock.held(self.id) as held:
                yield held
        except OSError as error:
            error.add_note(
                f"render {self.id} is as it was, as {self.path} cannot be written to; make room "
                "there, or mend what else it is, and ask again"
            )
            raise

    def _append(self, held: Held, **event: object) -> None:
        """Between two attempts."""
        writer = self._writer(held, self._read().attempt)
        try:
            writer.append(**event)
        finally:
            writer.close()

    def _writer(self, held: Held, attempt: int) -> JournalWriter:
        """Goes on after what was read of the journal."""
        journal = self.path / "journal"
        if lost := self._reader.lost():
            kept = journal.with_suffix(".damaged")
            write_whole(kept, journal.read_bytes(), held.check)
            _log.warning(
                "%s is damaged: its last %d lines count for nothing, so the segments that they "
                "told of are made again, without the prompts and edits that they told of; all of "
                "it is kept as %s",
                journal,
                lost,
                kept.name,
            )
        return JournalWriter(journal, attempt, self._reader.size, held.check)

    def _clear(self, held: Held) -> None:
        """Without what edits have replaced, or made for nothing."""
        found = {*self.path.glob("segments/*"), *self.path.glob("latents/*")}
        kept = {path for segment in self.segments() for path in segment.files}
        held.check()  # none of these is of one that takes over from here on
        for path in found - kept:
            path.unlink(missing_ok=True)

    def _request(self, making: Making, changes: Mapping[str, Any]) -> Request:
        section = making.edit.section if making.edit else None
        return self.manifest.request(self.path, {**making.changes, **changes}, section)

    def _read(self) -> Ledger:
        with self._reading:
            return self._look()

    def _look(self) -> Ledger:
        for event in self._reader.poll():
            self._ledger.apply(event)
        return self._ledger
