"""What a journal's events add up to: what there is of a render, and how it stands."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .checkpoints import KEPT, Saved
from .edits import Edit
from .journal import Event
from .segments import Segment

STATES = ("queued", "running", "paused", "done", "failed", "cancelled")
ENDS = ("paused", "done", "failed", "cancelled")  # events that an attempt ends with


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a render stands."""

    state: str  # one of STATES
    reason: str  # why it is paused or has failed
    frames_done: int
    frames: int  # in all; 0: until somebody stops
    attempt: int  # how often it was begun
    created_s: float  # of Unix time
    updated_s: float


class Ledger:
    """Grows with the journal."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.segments: list[Segment] = []
        self.checkpoints: list[Saved] = []  # the last of them
        self.prompts: dict[int, str] = {}  # that were set while it ran, by their first block
        self.changes: dict[str, Any] = {}  # of the plan, as memory was not enough
        self.limit: int | None = None  # blocks there will be, if it was told to come to its end
        self.edit: Edit | None = None  # the last one
        self.renewed: list[Segment] | None = None  # of a redo that is not done: in place of others
        self.state = "queued"
        self.reason = ""
        self.attempt = 0
        self.updated_s = 0.0

    def apply(self, event: Event) -> None:
        kind = event["event"]
        self.attempt, self.updated_s = event["attempt"], event["time"]
        if kind == "started":
            self.state, self.reason = "running", ""
        elif kind == "segment":
            self._add(event)
        elif kind == "damaged":
            self.checkpoints = [old for old in self.checkpoints if old.file != event["file"]]
        elif kind == "checkpoint":
            self._save(event)
        elif kind == "prompt":
            self.prompts[event["block"]] = event["prompt"]
        elif kind == "plan":
            self.changes |= event["changes"]
        elif kind == "finishing":
            self.limit = event["blocks"]
        elif kind == "edit":
            self._begin(Edit.from_event(event))
        elif kind in ENDS:
            self.state, self.reason = kind, event.get("reason", "")
            if kind == "done":
                self.checkpoints = []
                self._splice()

    @property
    def frames_done(self) -> int:
        """As they will be."""
        if self.renewed is None:
            return self.position
        assert self.edit is not None
        return self.edit.frames - self.edit.stop + self.position

    @property
    def position(self) -> int:
        """The frame that the next segment begins with."""
        if self.renewed == []:
            assert self.edit is not None
            return self.edit.first
        made = self.renewed or self.segments
        return made[-1].stop if made else 0

    @property
    def next_number(self) -> int:
        """Of a segment."""
        if self.renewed is None:
            return len(self.segments)
        return len(self._stay()) + len(self.renewed)

    def _begin(self, edit: Edit) -> None:
        self.state, self.reason = "queued", ""
        self.renewed = [] if edit.first < self.position else None
        self.edit, self.limit, self.prompts = edit, None, {}
        self.changes["video.frames"] = edit.frames

    def _stay(self) -> list[Segment]:
        """Segments before those that are made anew."""
        assert self.edit is not None
        return [segment for segment in self.segments if segment.stop <= self.edit.first]

    def _splice(self) -> None:
        if self.renewed is None:
            return
        assert self.edit is not None
        later = [segment for segment in self.segments if segment.first >= self.edit.stop]
        segments = [*self._stay(), *self.renewed, *later]
        self.segments = [replace(segment, number=i) for i, segment in enumerate(segments)]
        self.renewed = None

    def _save(self, event: Event) -> None:
        saved = Saved(
            file=event["file"],
            digest=event["digest"],
            frames=event["frames"],
            bytes=event["bytes"],
        )
        # a damaged one is followed by another of its number
        before = [old for old in self.checkpoints if old.file < saved.file]
        self.checkpoints = [*before[1 - KEPT :], saved]

    def _add(self, event: Event) -> None:
        """A segment that is told again is the same: a stopped writer may have repeated it."""
        segment = Segment(
            number=event["number"],
            first=event["first"],
            frames=event["frames"],
            blocks=(event["blocks"][0], event["blocks"][1]),
            path=self._folder / "segments" / event["file"],
            bytes=event["bytes"],
            digest=event["digest"],
            latents=event.get("latents", ""),
        )
        if segment.number == self.next_number:
            (self.segments if self.renewed is None else self.renewed).append(segment)
