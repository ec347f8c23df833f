"""One go at a render: what it makes becomes final here, in order, while it holds the lock."""

import logging
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ...configs.schema import Config
from ...pipeline.checkpoint import Checkpoint
from .checkpoints import CheckpointFolder
from .durable import write_whole
from .journal import JournalWriter
from .latents import save_latents
from .ledger import KEPT, Edit, Ledger, Saved
from .lock import Held
from .measures import Changes
from .segments import Frames, Segment, digest, encode_segment

_log = logging.getLogger("longreel")


class Attempt:
    """Of the one process that may write."""

    def __init__(self, folder: Path, journal: JournalWriter, held: Held, config: Config) -> None:
        self.id = folder.name
        self.number = journal.attempt
        self._folder = folder
        self._journal = journal
        self._held = held
        self._config = config
        self.frames_done = 0
        self.prompts: dict[int, str] = {}
        self.changes: dict[str, Any] = {}
        self.limit: int | None = None
        self.edit: Edit | None = None
        self.redoes = False  # that edit takes the place of something, once it is done
        self.segments: list[Segment] = []  # that were there when it began
        self._next_number = 0  # of a segment
        self._saved: list[Saved] = []
        self._checkpoints = CheckpointFolder(folder / "checkpoints", held.check)
        self._writing = threading.Lock()

    def start(self) -> None:
        (self._folder / "segments").mkdir(exist_ok=True)
        self._journal.append(event="started", host=socket.gethostname(), pid=os.getpid())

    def check(self, made: Sequence[Segment]) -> None:
        """From the first of these that is damaged on, they are made again."""
        for segment in made:
            try:
                segment.read()
            except ValueError:  # Replaced is one
                reason = f"segment {segment.path} is damaged or gone"
                _log.warning(
                    "%s; going on from frame %d, which takes longer and makes the same frames",
                    reason,
                    segment.first,
                )
                self.note("damaged", file=segment.path.name, reason=reason)
                return

    def resume(self, ledger: Ledger) -> None:
        self.frames_done, self._next_number = ledger.position, ledger.next_number
        self.edit, self.segments = ledger.edit, list(ledger.segments)
        self.redoes = ledger.renewed is not None
        self.prompts, self.limit = dict(ledger.making.prompts), ledger.making.limit
        self.changes = dict(ledger.making.changes)
        self._saved = list(ledger.checkpoints)

    def start_point(self) -> Checkpoint | None:
        """The newest checkpoint that can be used; none: the render begins at its beginning."""
        while self._saved:
            saved = self._saved[-1]
            try:
                if saved.frames > self.frames_done:
                    raise ValueError(f"checkpoint {saved.file} is ahead of the segments there are")
                return self._checkpoints.load(saved)
            except ValueError as error:
                self._saved.pop()
                before = f"checkpoint {self._saved[-1].file}" if self._saved else "its beginning"
                _log.warning(
                    "%s; going on from %s, which takes longer and makes the same frames",
                    error,
                    before,
                )
                self.tell("damaged", file=saved.file, reason=str(error))
        return None

    def change(self, changes: Changes, reason: str) -> None:
        """Go on with a plan that needs less memory, here and in every later attempt."""
        self.note("plan", changes=dict(changes), reason=reason)
        self.changes |= changes

    def save(self, checkpoint: Checkpoint) -> None:
        """Once the frames that it counts are in segments. OSError: it is not there."""
        assert checkpoint.frames <= self.frames_done, "frames between them would be lost"
        number = int(self._saved[-1].file.partition(".")[0]) + 1 if self._saved else 0
        self._held.check()
        saved = self._checkpoints.save(number, checkpoint)
        self.note("checkpoint", **asdict(saved))
        self._saved = [*self._saved, saved][-KEPT:]
        self._checkpoints.prune(self._saved)

    def commit(
        self,
        frames: Sequence[Frames],
        blocks: tuple[int, int],
        latents_BCTHW: Tensor,
        busy_s: Sequence[float] = (),
    ) -> None:
        """The next segment. OSError: it is not there, and may be committed again."""
        count = sum(map(len, frames))
        init, media = encode_segment(
            frames, self.frames_done, fps=self._config.video.fps, output=self._config.output
        )
        self._held.check()
        self._keep_init(init)
        revision = f"r{self.edit.section.revision}-" if self.edit else ""  # else a name comes twice
        name, check = f"{revision}{self._next_number:06d}", self._held.check
        path = self._folder / "latents" / f"{name}.safetensors"
        latents = save_latents(path, latents_BCTHW, check)
        write_whole(self._folder / "segments" / f"{name}.m4s", media, check)
        self.note(
            "segment",
            number=self._next_number,
            first=self.frames_done,
            frames=count,
            blocks=blocks,
            file=f"{name}.m4s",
            bytes=len(media),
            digest=digest(media),
            latents=latents,
            busy_s=[round(seconds, 3) for seconds in busy_s],
        )
        self.frames_done += count
        self._next_number += 1

    def finish(self) -> None:
        """It is whole: nobody goes on from a checkpoint any more."""
        self._held.check()
        self._checkpoints.clear()  # before the word: nobody who finds it done looks for them
        self.note("done", reason="")

    def end(self, state: str, reason: str = "") -> None:
        """It is not. Without this word it is paused all the same, as its process is gone."""
        self.tell(state, reason=reason)

    def tell(self, event: str, **facts: object) -> None:
        """As `note`, of what a render can do without where a full disk does not take it."""
        try:
            self.note(event, **facts)
        except OSError as error:
            _log.warning("'%s' of render %s cannot be written (%s)", event, self.id, error)

    def note(self, event: str, **facts: object) -> None:
        """Into the journal."""
        self._held.check()
        with self._writing:
            self._journal.append(event=event, **facts)

    def _keep_init(self, init: bytes) -> None:
        path = self._folder / "init.mp4"
        if not path.exists():
            write_whole(path, init, self._held.check)
        elif path.read_bytes() != init:
            raise ValueError(
                f"the H.264 encoder here begins a file otherwise than {path}, so its segments "
                "would not go on from those there; resume with the version of PyAV that is named "
                "in manifest.json"
            )
