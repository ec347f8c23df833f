"""A render on disk: what was asked for, what is there of it, and who is making it.

manifest.json        what was asked for (manifest.py)
journal              what has happened (journal.py, ledger.py)
init.mp4, segments/  the video so far (segments.py)
latents/             what it was decoded from (latents.py)
inputs/              pictures it starts from or ends on
lock                 who is making it (lock.py)
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.arch import ARCHS
from ...pipeline.plan import Plan, Request, make_plan
from ...pipeline.section import change_prompts, prompt_times
from ..metadata import metadata
from .attempt import Attempt
from .durable import remove_parts
from .edits import Edit, check_done
from .export import export
from .journal import JournalReader, JournalWriter
from .ledger import ENDS, Ledger, Status
from .lock import Lock
from .manifest import Manifest, read_manifest
from .segments import Frames, Segment, decode_segments

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
        ledger = self._read()
        section = ledger.edit.section if ledger.edit else None
        return self.manifest.request(self.path, {**ledger.changes, **changes}, section)

    @property
    def plan(self) -> Plan:
        """ValueError where this machine cannot make it."""
        return self.plan_with({})

    def plan_with(self, changes: Mapping[str, Any]) -> Plan:
        """With other values of some fields."""
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
            frames=ledger.changes.get("video.frames", manifest.config.video.frames),
            attempt=ledger.attempt,
            created_s=manifest.created_s,
            updated_s=ledger.updated_s or manifest.created_s,
        )

    @property
    def frames_done(self) -> int:
        """That are as they will be."""
        return self._read().frames_done

    def segments(self) -> Sequence[Segment]:
        """Those that are final, in order."""
        return tuple(self._read().segments)

    def wait(self, number: int, timeout_s: float) -> Segment | None:
        """A segment once it is final; none: the render is not being made, and has no such.

        TimeoutError after `timeout_s` without it.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.status().state  # before the look, or what came between would be missed
            segments = self.segments()
            if number < len(segments):
                return segments[number]
            if state in ENDS:
                return None
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"render {self.id} ({state}) has had no segment {number} for {timeout_s:g} s"
                )
            time.sleep(_POLL_S)

    def follow(self, start: int = 0, *, timeout_s: float) -> Iterator[Segment]:
        """Segments from number `start` on, each when it is final, until the render ends.

        `status` then says how. TimeoutError after `timeout_s` without one.
        """
        while (segment := self.wait(start, timeout_s)) is not None:
            yield segment
            start += 1

    def frames(self, segments: Sequence[Segment] | None = None) -> Iterator[Frames]:
        """Frames of these segments, or of all, height x width x 3, one at a time."""
        chosen = self.segments() if segments is None else segments
        return decode_segments(self.init, chosen, self.manifest.config.output)

    def export(self, output: Path) -> None:
        """The video so far as a file, or a folder of pictures, which appears when complete."""
        segments = self.segments()
        if not segments:
            raise ValueError(
                f"render {self.id} has no frame yet, so there is no video to write to {output}; "
                f"`longreel resume {self.id}` makes it"
            )
        config = self.manifest.config
        video = replace(config.video, frames=segments[-1].stop)
        request = replace(self.request, config=replace(config, video=video))
        if section := request.section:
            stride = ARCHS[config.model.arch].vae.time_stride
            times = prompt_times(section.prompts, fps=video.fps, frames_per_latent=stride)
            request = replace(request, prompt=section.prompts[0][1], prompt_at=times)
        export(self.init, segments, output, request.config, metadata(request))

    def prompts(self, plan: Plan) -> tuple[tuple[int, str], ...]:
        """Of the video by latents, those that were set while it was made included."""
        section, bounds = plan.request.section, plan.schedule.bounds
        found = {bounds(block)[0]: text for block, text in plan.prompts.items()}
        prompts = section.prompts if section else tuple(sorted(found.items()))
        for block, text in sorted(self._read().prompts.items()):
            stop = section.stop if section and section.stop < plan.latents_shape[1] else None
            prompts = change_prompts(prompts, bounds(block)[0], stop, text)
        return prompts

    def edit(self, edit: Edit) -> None:
        """Have the next attempt make it. Taken where another process makes something."""
        with self._lock.held(self.id) as held:
            check_done(self)
            ledger = self._read()
            kept = {path for segment in ledger.segments for path in segment.files}
            for path in (*self.path.glob("segments/*"), *self.path.glob("latents/*")):
                if path not in kept:  # what the edit before this one replaced
                    path.unlink()
            journal, size = self.path / "journal", self._reader.size
            writer = JournalWriter(journal, ledger.attempt, size, held.check)
            try:
                writer.append(event="edit", **edit.to_event())
            finally:
                writer.close()

    def num_bytes(self) -> int:
        """On the disk."""
        files = (path for path in self.path.rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """The right to go on with it, for one process at a time; Taken says who has it."""
        with self._lock.held(self.id) as held:
            remove_parts(self.path, held.check)
            ledger = self._read()
            journal, size = self.path / "journal", self._reader.size
            writer = JournalWriter(journal, ledger.attempt + 1, size, held.check)
            try:
                attempt = Attempt(self.path, writer, held, self.manifest.config)
                attempt.start()
                attempt.resume(self._read())  # again: a stopped writer may have come before us
                yield attempt
            finally:
                writer.close()

    def _read(self) -> Ledger:
        with self._reading:
            for event in self._reader.poll():
                self._ledger.apply(event)
            return self._ledger
