"""What a journal's events add up to: what there is of a render, and how it stands."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...pipeline.section import Section
from .journal import Event, JournalReader
from .segments import Replaced, Segment

KEPT = 2  # checkpoints
ENDS = ("paused", "done", "failed", "cancelled")  # events that an attempt ends with


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a render stands."""

    state: str  # queued, running, or one of ENDS
    reason: str  # why it is paused or has failed
    frames_done: int
    frames: int  # in all; 0: until somebody stops
    attempt: int  # how often it was begun
    created_s: float  # of Unix time
    updated_s: float


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A video as a reader finds it. Numbers and borders of segments are those of one cut."""

    number: int
    segments: tuple[Segment, ...]  # that are final, in order
    is_whole: bool  # no more will come of it, whatever is being made


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What the journal says of a checkpoint."""

    file: str
    digest: str
    frames: int  # that are decoded with it
    bytes: int  # with its keys and values


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is made of a video that is there, in frames and in latents."""

    section: Section
    first: int  # frame
    fade: int  # frame from which on there is more and more of what was there
    stop: int  # the frame after the last one that is written
    frames: int  # of the whole video

    def to_event(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_event(cls, event: Event) -> "Edit":
        section = event["section"]
        prompts = tuple((latent, text) for latent, text in section["prompts"])
        names = ("first", "fade", "stop", "frames")
        return cls(
            section=Section(**{**section, "prompts": prompts}), **{n: event[n] for n in names}
        )


@dataclass(kw_only=True)
class Making:
    """What the next attempt goes on with, besides what is made already."""

    edit: Edit | None = None  # none: the render as it was asked for
    prompts: dict[int, str] = field(default_factory=dict)  # set while it ran, by first block
    changes: dict[str, Any] = field(default_factory=dict)  # of the plan, as memory was not enough
    limit: int | None = None  # blocks there will be, if it was told to come to its end


def read_ledger(folder: Path) -> "Ledger":
    """What there is now."""
    ledger = Ledger(folder)
    for event in JournalReader(folder / "journal").poll():
        ledger.apply(event)
    return ledger


class Ledger:
    """Grows with the journal."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.segments: list[Segment] = []
        self.number = 0  # of their cut: the next one has others in place of some
        self.replaced: list[Segment] = []  # those of the cut before, while their files are there
        self.checkpoints: list[Saved] = []  # the last of them
        self.making = Making()
        self.finished: Making | None = None  # of the video before an edit that is not done
        self.renewed: list[Segment] | None = None  # of a redo that is not done: in place of others
        self.revision = 0  # of the last edit, done or dropped
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
            self._lose(event["file"])
        elif kind == "checkpoint":
            self._save(event)
        elif kind == "prompt":
            self.making.prompts[event["block"]] = event["prompt"]
        elif kind == "plan":
            self.making.changes |= event["changes"]
        elif kind == "finishing":
            self.making.limit = event["blocks"]
        elif kind == "edit":
            self._begin(Edit.from_event(event))
        elif kind == "dropped":
            self._drop()
        elif kind in ENDS:
            self.state, self.reason = kind, event.get("reason", "")
            if kind == "done":
                self.checkpoints, self.finished = [], None
                self._splice()

    def cut(self, number: int | None) -> Cut:
        """This one, or the one of now. Replaced: its files are not there any more."""
        if number in (None, self.number):
            is_whole = self.renewed is not None
            return Cut(number=self.number, segments=tuple(self.segments), is_whole=is_whole)
        if number != self.number - 1 or not self.replaced:
            raise Replaced(
                f"cut {number} of render {self._folder.name} was replaced by cut {self.number}, "
                "and its files are gone; read the video anew from its beginning"
            )
        return Cut(number=self.number - 1, segments=tuple(self.replaced), is_whole=True)

    @property
    def edit(self) -> Edit | None:
        """The last one."""
        return self.making.edit

    @property
    def shown(self) -> Making:
        """Of what the segments are."""
        return self.making if self.renewed is None or self.finished is None else self.finished

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

    @property
    def made(self) -> list[Segment]:
        """Of what is being made."""
        if self.renewed is not None:
            return self.renewed
        first = self.edit.first if self.edit else 0
        return [segment for segment in self.segments if segment.first >= first]

    def _lose(self, file: str) -> None:
        """A checkpoint; or a segment, and with it those after it."""
        self.checkpoints = [old for old in self.checkpoints if old.file != file]
        made = self.segments if self.renewed is None else self.renewed
        if number := [n for n, segment in enumerate(made) if segment.path.name == file]:
            del made[number[0] :]

    def _begin(self, edit: Edit) -> None:
        self.state, self.reason = "queued", ""
        self.renewed = [] if edit.first < self.position else None
        changes = {**self.making.changes, "video.frames": edit.frames}
        self.finished, self.making = self.making, Making(edit=edit, changes=changes)
        self.replaced, self.revision = [], edit.section.revision

    def _drop(self) -> None:
        """The edit that is not done, and what was made of it."""
        assert self.finished is not None
        if self.renewed is None and len(self._stay()) < len(self.segments):
            self.segments, self.number = self._stay(), self.number + 1
        self.making, self.finished, self.renewed = self.finished, None, None
        self.checkpoints, self.state, self.reason = [], "done", ""

    def _stay(self) -> list[Segment]:
        """Segments before those that the edit makes."""
        assert self.edit is not None
        return [segment for segment in self.segments if segment.stop <= self.edit.first]

    def _splice(self) -> None:
        if self.renewed is None:
            return
        assert self.edit is not None
        later = [segment for segment in self.segments if segment.first >= self.edit.stop]
        segments = [*self._stay(), *self.renewed, *later]
        self.replaced, self.number = self.segments, self.number + 1
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
