"""What a render has on disk, as every way out reads it: its journal and its segments."""

import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..home.folder import RenderFolder
from ..home.home import Home
from ..home.journal import Event, JournalReader
from ..home.ledger import Cut
from ..home.lock import Taken
from ..home.segments import Frames, Replaced, Segment
from .errors import ApiError, without_paths

_FRESH_S = 0.02  # many readers of one render look once
_KEPT = 256  # renders whose journals are remembered


class RenderFiles:
    """Of one render; from any thread."""

    def __init__(self, folder: RenderFolder) -> None:
        self.folder = folder
        self._reader = JournalReader(folder.path / "journal")
        self._lock = threading.Lock()
        self._looked = 0.0
        self._events: list[Event] = []
        self._cut = Cut(number=0, segments=(), is_whole=False)
        self._done = 0

    def events(self) -> Sequence[Event]:
        """All there are; those that were there stay as they are."""
        self._look()
        return self._events

    def first_segment_at(self) -> float | None:
        """When, in Unix time."""
        return next((e["time"] for e in self.events() if e["event"] == "segment"), None)

    def segments(self) -> Sequence[Segment]:
        return self.cut().segments

    def cut(self, number: int | None = None) -> Cut:
        """The video as it is now, or was at a reader's first look. ApiError: that is gone."""
        self._look()
        if number in (None, self._cut.number):
            return self._cut
        try:
            return self.folder.cut(number)
        except Replaced as error:
            raise ApiError(409, "replaced", str(error), field="cut") from None

    def named(self, name: str) -> Segment | None:
        """Of this cut, or of the one before, of which somebody may have a playlist."""
        cut = self.cut()
        found = [*cut.segments]
        with suppress(ApiError):
            found += self.cut(cut.number - 1).segments
        return next((segment for segment in found if segment.path.stem == name), None)

    @property
    def frames(self) -> int:
        """Frames that can be had."""
        segments = self.segments()
        return segments[-1].stop if segments else 0

    @property
    def done(self) -> int:
        """Frames that are as they will be."""
        self._look()
        return self._done

    def init(self) -> bytes:
        """What goes before the first segment; it is there with it."""
        return self.folder.init.read_bytes()

    def decode(self, segment: Segment, start: int = 0) -> Iterator[tuple[int, Frames]]:
        """Frames of a segment with their numbers, from `start` on."""
        for number, frame in enumerate(self.folder.frames([segment]), start=segment.first):
            if number >= start:
                yield number, frame

    def parts(self, segments: Sequence[Segment]) -> list[tuple[Path, int]]:
        """Files that are a whole one, one after the other, and their bytes."""
        if not segments:
            return []
        init = self.folder.init
        return [(init, init.stat().st_size), *((s.path, s.bytes) for s in segments)]

    def picture(self) -> str | None:
        """What the render starts from, in base64."""
        image = self.folder.request.image
        return None if image is None else base64.b64encode(image.read_bytes()).decode()

    @property
    def is_read(self) -> bool:
        return self._looked > 0

    def look_again(self) -> None:
        """However fresh the last look is: what has just ended shows all that it has."""
        self._looked = 0.0
        self._look()

    def segment_of(self, frame: int) -> Segment | None:
        return next((s for s in self.segments() if s.first <= frame < s.stop), None)

    def _look(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._looked < _FRESH_S:
                return
            if new := self._reader.poll():
                self._cut = self.folder.cut()
                self._done = self.folder.frames_done
                self._events.extend(new)
            self._looked = now


class AllFiles:
    """Of a home's renders, those that were asked for last kept open."""

    def __init__(self, home: Path) -> None:
        self.home = Home(home)
        self.uploads = home / "uploads"  # what has come, until the queue knows of it
        self._lock = threading.Lock()
        self._open: dict[str, RenderFiles] = {}

    def of(self, render: str) -> RenderFiles:
        """ApiError: somebody has removed them."""
        with self._lock:
            files = self._open.pop(render, None)
            if files is None or not files.folder.path.is_dir():
                if not self.home.holds(render):
                    raise gone()
                try:
                    files = RenderFiles(self.home.open(render))
                except ValueError as error:  # damaged, or of another version
                    said = without_paths(str(error))
                    raise ApiError(409, "files_unreadable", said) from None
                while len(self._open) >= _KEPT:
                    del self._open[next(iter(self._open))]
            self._open[render] = files
            return files

    def has_read(self, render: str) -> bool:
        """Its journal, so that a look at what is new there takes a moment."""
        files = self._open.get(render)
        return files is not None and files.is_read

    def read_ahead(self, renders: Sequence[str]) -> None:
        """Those that can be read."""
        for render in renders:
            self.segments(render)

    def segments(self, render: str, at_end: bool = False) -> Sequence[Segment]:
        """Nothing where the files are gone or cannot be read. `at_end`: there will be no more."""
        try:
            files = self.of(render)
            if at_end:
                files.look_again()
            return files.segments()
        except (ApiError, OSError):
            return ()

    @contextmanager
    def coming(self, render: str) -> Iterator[None]:
        """While it has no place in the queue yet: where it gets none, nothing is left of it."""
        self.uploads.mkdir(parents=True, exist_ok=True)
        mark = self.uploads / render
        mark.touch()
        try:
            yield
        except Exception:
            self.remove(render)
            mark.unlink()
            raise
        mark.unlink()  # not where the server ends meanwhile: a thread may still be at it

    def sweep(self, is_known: Callable[[str], bool]) -> None:
        """Without what was coming when the last server ended, unless it is in the queue."""
        for left in [*self.uploads.glob("*")]:
            if not is_known(left.name):
                self.home.discard(left.name)
            left.unlink()

    def remove(self, render: str) -> None:
        """ApiError while a process holds them."""
        with self._lock:
            self._open.pop(render, None)
        if self.home.holds(render):
            try:
                self.home.remove(self.home.open(render))
            except Taken:
                raise ApiError(409, "running", "its process is yet to let go of it") from None
            except ValueError:  # one that nobody can open is made by nobody
                self.home.discard(render)


def gone() -> ApiError:
    return ApiError(404, "files_gone", "its files are not here any more")


def told(event: Event) -> dict[str, Any]:
    """What a client may know of an event of the journal: nothing of machines and files."""
    hidden = ("host", "pid", "file", "attempt", "digest", "changes", "latents", "section")
    return {
        key: without_paths(value) if isinstance(value, str) else value
        for key, value in event.items()
        if key not in hidden
    }
