"""The ways out that go on while a render is made. Each reader has its own place, and may come back.

A reader looks into the render's folder now and then; nothing waits for it, but for a render that is
paced by its reader.
"""

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..home.ledger import Cut
from ..home.segments import Segment
from .context import Context
from .files import RenderFiles, told
from .record import Record

_LOOK_S = 0.05
_PROGRESS_S = 0.5  # between two accounts of it to one reader
_BEAT_S = 15.0  # of silence, after which proxies might close


@dataclass
class Reader:
    """How far one has come: a render that is paced by its reader is told."""

    taken: int = 0  # frames


async def _look_later() -> None:
    """At moments that all readers share, as each that wakes this process alone takes a core from
    the renders once more; not so soon that a look would be the one before."""
    soonest = time.monotonic() + _LOOK_S / 2
    await asyncio.sleep(_LOOK_S / 2 + -soonest % _LOOK_S)


async def segments_from(
    context: Context, record: Record, number: int, reader: Reader, cut: int | None = None
) -> AsyncIterator[tuple[RenderFiles, Segment]]:
    """Segments from this number on, each when it is final, until the render is over.

    `cut`: whose they are; none: of now. Of a redo that is done meanwhile nothing comes.
    """
    files = context.files.of(record.render)
    cut = files.cut(cut).number
    while True:
        current = context.queue.get(record.render)
        if number >= len(files.cut(cut).segments):
            await _look_later()
        found = files.cut(cut)  # after the look at the queue, or the last would be missed
        # again and again: the process that makes it may be another by now
        context.keeper.take(record.render, reader.taken, waits=reader.taken >= files.frames)
        while number < len(found.segments):
            yield files, found.segments[number]
            number += 1
        if current is None or current.over or found.is_whole:
            return


async def growing_mp4(context: Context, record: Record) -> AsyncIterator[bytes]:
    begun, reader = False, Reader()
    async for files, segment in segments_from(context, record, 0, reader):
        if not begun:
            yield await asyncio.to_thread(files.init)
            begun = True
        yield await asyncio.to_thread(segment.read)
        reader.taken = segment.stop


async def raw_frames(
    context: Context, record: Record, start: int, cut: Cut, receipt: bool = False
) -> AsyncIterator[bytes]:
    """Of each: the length of what follows in 4 bytes, its number in 8, its pixels; big-endian.

    `receipt`: those of one segment, and no frame counts as taken but those before `start`.
    """
    segments, reader = cut.segments, Reader(start)
    number = next((s.number for s in segments if s.stop > start), len(segments))
    async for files, segment in segments_from(context, record, number, reader, cut.number):
        if segment.stop <= start:
            continue
        frames = files.decode(segment, start)
        while (item := await asyncio.to_thread(next, frames, None)) is not None:
            index, pixels = item
            yield struct.pack(">IQ", 8 + pixels.nbytes, index) + pixels.tobytes()
        if receipt:
            return
        reader.taken = segment.stop


async def events(context: Context, record: Record, after: int) -> AsyncIterator[str]:
    """Server-sent: the journal's events under their numbers; progress, and blocks that have taken
    their last step, without one."""
    files, number, beat = context.files.of(record.render), after, 0.0
    if number < 1:
        number = 1
        facts = {"render": record.render, "created_at": record.created_at}
        yield _event("admitted", facts, 1)
    shown, attempt = "", None
    due = behind = -1  # the block to be told next, and the one after those begun; unknown yet
    while True:
        current = context.queue.get(record.render)
        if current is None or current.over:
            await asyncio.sleep(_LOOK_S)  # the last look may have been before the end
        for event in files.events()[number - 1 :]:
            number += 1
            kind = str(event["event"])
            yield _event(_NAMES.get(kind, kind), told(event), number)
            beat = 0.0
        if current is None or current.over:
            error = None if current is None else current.error
            state = "cancelled" if current is None else current.state
            yield _event(state, {"render": record.render, "error": error}, number)
            return
        status = context.status(current)
        in_flight = [int(block) for block in status.view.progress.in_flight]
        if attempt is not (attempt := context.keeper.live.get(record.render)):
            due = behind = -1  # of what another process was at nothing is known
        behind = max(in_flight, default=behind - 1) + 1
        first = min(in_flight, default=behind)
        # they end in order: those that have come and gone since the last look are told as well
        for block in range(due, first) if due >= 0 else ():
            yield f"event: block\ndata: {json.dumps({'block': block})}\n\n"
        due = max(due, first)
        if status.progress != shown:
            yield f"event: progress\ndata: {status.progress}\n\n"
            shown, beat = status.progress, 0.0
        for _ in range(round(_PROGRESS_S / _LOOK_S)):
            await _look_later()
            beat += _LOOK_S
            if len(files.events()) >= number:
                break
        if beat >= _BEAT_S:
            yield ": still here\n\n"
            beat = 0.0


# what an attempt says of itself is not what becomes of the render
_NAMES = {"done": "made", "failed": "attempt failed", "cancelled": "attempt cancelled"}


def _event(name: str, facts: object, number: int) -> str:
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(facts)}\n\n"


def playlist(files: RenderFiles, record: Record) -> str:
    """HLS: the init section, and the segments there are."""
    fps, cut = record.request["fps"], files.cut()
    target = -(-record.request["segment_frames"] // fps)  # it may not change later
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{target}",
        "#EXT-X-MEDIA-SEQUENCE:0",
        "#EXT-X-PLAYLIST-TYPE:EVENT",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        '#EXT-X-MAP:URI="init.mp4"',
    ]
    for segment in cut.segments:
        lines += [f"#EXTINF:{segment.frames / fps:.6f},", segment.path.name]  # of this cut alone
    is_whole = record.over or cut.is_whole
    return "\n".join([*lines, *(["#EXT-X-ENDLIST"] if is_whole else [])]) + "\n"


def pieces(parts: Sequence[tuple[Path, int]], start: int, stop: int) -> Iterator[bytes]:
    """Bytes of the file that these are, one after the other, from `RenderFiles.parts`."""
    place = 0
    for path, size in parts:
        low, high = max(start, place), min(stop, place + size)
        if low < high:
            with path.open("rb") as file:
                file.seek(low - place)
                piece = file.read(high - low)
            yield piece  # with no file open: a reader that leaves here may never be heard of again
        place += size
