"""Finished renders that go on, or are made anew in their midst: back into the queue, or copied."""

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Any

from ..home import edits
from ..home.home import new_name
from ..home.lock import Taken
from .errors import ApiError
from .files import AllFiles
from .intake import STRIDE, Intake, Sender, said
from .limits import Limits
from .pace import longest_segment
from .queue import Queue
from .record import NewRender, Record
from .room import promised
from .schemas import ExtendRender, RedoRender

if TYPE_CHECKING:
    from ..home.folder import RenderFolder


class Editing:
    """One at a time, in turn with requests for new renders."""

    def __init__(self, queue: Queue, files: AllFiles, limits: Limits, intake: Intake) -> None:
        self._queue, self._files, self._limits, self._intake = queue, files, limits, intake

    async def edit(self, own: Record, asked: ExtendRender | RedoRender) -> Record:
        """In the queue again. ApiError says why it cannot be."""
        async with self._intake.turn:
            record = self._queue.get(own.render) or own
            if record.state != "done":
                raise ApiError(
                    409, "not_done", f"it is {record.state}, and only what is done can be edited"
                )
            self._intake.check_room(record.client)
            folder = self._files.of(record.render).folder
            pending = folder.status().state != "done"  # one was lost on its way to the queue
            with said(asked):
                if not pending:
                    await asyncio.to_thread(self._begin, folder, record, asked)
                request = await asyncio.to_thread(_measured, folder, record)
            record = self._queue.edit(record.render, request)
            if pending:
                raise ApiError(
                    409, "not_done", "what was asked for before is made first; ask again after it"
                )
            return record

    async def drop(self, own: Record) -> Record:
        """Done again, as it was before an edit that did not come to its end."""
        async with self._intake.turn:
            record = self._queue.get(own.render) or own
            if record.state in ("queued", "running"):
                raise ApiError(409, record.state, f"it is {record.state}; cancel it first")
            folder = self._files.of(record.render).folder
            try:
                await asyncio.to_thread(folder.drop)
            except Taken:
                raise ApiError(409, "running", "its process is still ending; try again") from None
            except ValueError:
                why = f"it is {record.state} and has no unfinished edit: there is nothing to drop"
                raise ApiError(409, "no_edit", why) from None
            request = await asyncio.to_thread(_measured, folder, record)
            return self._queue.drop(record.render, request, time.time())

    async def go_on(
        self, source: Record, asked: ExtendRender, sender: Sender
    ) -> tuple[Record, bool]:
        """As another render, which begins with this one's video; and whether it is new."""
        words = f"{source.render} {asked.model_dump_json()}"
        digest = hashlib.sha256(words.encode()).hexdigest()
        async with self._intake.turn:
            if (known := self._intake.known(sender, digest)) is not None:
                return known, False
            source = self._queue.get(source.render) or source  # as it is by now
            if source.state != "done":
                raise ApiError(
                    409, "not_done", f"it is {source.state}, and only what is done can be extended"
                )
            self._intake.check_room(sender.client)
            folder = self._files.of(source.render).folder
            name = new_name()
            with self._files.coming(name):
                copy = await asyncio.to_thread(self._files.home.copy, folder, name)
                with said(asked):
                    await asyncio.to_thread(self._begin, copy, source, asked)
                    request = await asyncio.to_thread(_measured, copy, source)
                more = request["frames"] - source.request["frames"]
                new = NewRender(
                    render=copy.id,
                    client=sender.client,
                    request=request | {"prompt": asked.prompt or request["prompt"]},
                    digest=digest,
                    priority=source.priority,
                    idempotency_key=sender.key,
                    parent=source.render,
                    room_bytes=request.get("frame_bytes", 0) * more,
                )
                return await asyncio.to_thread(self._queue.add, new, time.time())

    def _begin(
        self, folder: "RenderFolder", record: Record, asked: ExtendRender | RedoRender
    ) -> None:
        times = [] if isinstance(asked, RedoRender) else asked.prompt_at
        words = [asked.prompt, *(change.prompt for change in times)]
        self._intake.check_length([text for text in words if text is not None])
        others = promised(self._queue, self._files)
        if isinstance(asked, RedoRender):
            edits.redo(folder, asked.first, asked.stop, prompt=asked.prompt, promised=others)
            return
        frames = _frames(asked, record.request["fps"])
        total = folder.segments()[-1].stop + frames
        if total > self._limits.frames:
            raise ValueError(
                f"frames={frames} would make {total} of it, more than the {self._limits.frames} "
                "that this server makes; ask for less"
            )
        prompt_at = [(change.seconds, change.prompt) for change in times]
        edits.extend(folder, frames, prompt=asked.prompt, prompt_at=prompt_at, promised=others)


def _measured(folder: "RenderFolder", record: Record) -> dict[str, Any]:
    """The request, with the measures of what will be."""
    plan = folder.plan
    return record.request | {
        "frames": plan.config.video.frames,
        "blocks": plan.schedule.num_blocks,
        "redoes": folder.redoes,
        "segment_frames": max(record.request["segment_frames"], longest_segment(plan)),
    }


def _frames(asked: ExtendRender, fps: int) -> int:
    if (asked.frames is None) == (asked.seconds is None):
        raise ValueError(
            f"frames={asked.frames} and seconds={asked.seconds}: it is unknown how much to add; "
            "give one of them"
        )
    if asked.seconds is None:
        assert asked.frames is not None
        return asked.frames
    return STRIDE * max(1, round(asked.seconds * fps / STRIDE))
