"""What a journal's events add up to: what there is of a render, and how it stands."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoints import KEPT, Saved
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
        elif kind in ENDS:
            self.state, self.reason = kind, event.get("reason", "")

    @property
    def frames_done(self) -> int:
        return self.segments[-1].stop if self.segments else 0

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
        )
        if segment.number == len(self.segments):
            self.segments.append(segment)
