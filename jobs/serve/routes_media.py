"""/api/v1/renders/{id}/...: the ways out of a render."""

import asyncio
import hashlib
import io
import re
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from ..home.segments import Frames
from .context import Context
from .errors import ApiError
from .files import RenderFiles
from .record import Record
from .routes_renders import Here, Own, is_known
from .schemas import UNCHANGED, failures
from .streams import events, growing_mp4, pieces, playlist, raw_frames

router = APIRouter(prefix="/api/v1/renders/{id}", tags=["ways out"])

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MP4 = {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}
_FRAMES = "application/x-longreel-frames"


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses=failures(404, 409) | {200: {"content": {"text/event-stream": {}}}},
)
async def get_events(
    own: Own,
    here: Here,
    last: Annotated[int | None, Header(alias="Last-Event-ID", ge=0)] = None,
    after: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """admitted, started, block, segment, progress, and at the end done, failed or cancelled.

    Whoever comes back with the number of the last event it had misses none.
    """
    here.files.of(own.render)  # or there is an answer, and no stream
    stream = events(here, own, after if last is None else last)
    return StreamingResponse(
        here.metrics.counted(stream, "events"),
        media_type="text/event-stream",
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


@router.head("/video", include_in_schema=False)
@router.get(
    "/video",
    response_class=Response,
    responses=failures(404, 409, 416)
    | UNCHANGED
    | {
        200: {"content": _MP4, "description": "All of it, or as it grows."},
        206: {"content": _MP4, "description": "A range of it, once it is over."},
    },
)
async def get_video(own: Own, here: Here, request: Request) -> Response:
    """A fragmented MP4. While the render is made the answer goes on until it is over; the same
    bytes come by ranges afterwards."""
    return whole_video(here, own, request)


def whole_video(here: Context, own: Record, request: Request) -> Response:
    """For HEAD what is said of it, and none of its bytes."""
    files = here.files.of(own.render)
    if own.over or files.cut().is_whole:
        return _ranged(here, files, request)
    headers = {"accept-ranges": "none", "cache-control": "no-store"}
    if request.method == "HEAD":
        answer = Response(media_type="video/mp4", headers=headers)
        del answer.headers["content-length"]  # nobody knows yet
        return answer
    stream = here.metrics.counted(growing_mp4(here, own), "video")
    return StreamingResponse(stream, media_type="video/mp4", headers=headers)


def _ranged(here: Context, files: RenderFiles, request: Request) -> Response:
    segments = files.segments()  # of one look, as an edit may be done before the next
    if not segments:
        raise ApiError(409, "no_frames", "it ended before its first frame was final")
    parts = files.parts(segments)
    size = sum(count for _, count in parts)
    tag = f'"{hashlib.sha256(repr([s.digest for s in segments]).encode()).hexdigest()[:24]}"'
    headers = {"accept-ranges": "bytes", "etag": tag, "cache-control": "private, no-cache"}
    if is_known(tag, request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":  # for which a range means nothing
        headers["content-length"] = str(size)
        return Response(media_type="video/mp4", headers=headers)
    start, stop, status = 0, size, 200
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked and any(asked.groups()) and request.headers.get("if-range", tag) == tag:
        low, high = asked.groups()
        if low:
            start, stop = int(low), min(size, int(high) + 1 if high else size)
        else:
            start = max(0, size - int(high))
        if start >= stop:
            headers["content-range"] = f"bytes */{size}"
            raise ApiError(416, "no_such_range", f"it has {size} bytes", headers=headers)
        status = 206
        headers["content-range"] = f"bytes {start}-{stop - 1}/{size}"
    headers["content-length"] = str(stop - start)
    body = _in_threads(pieces(parts, start, stop))
    return StreamingResponse(
        here.metrics.counted(body, "video"),
        status_code=status,
        media_type="video/mp4",
        headers=headers,
    )


async def _in_threads(found: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, found, None)) is not None:
        yield piece


@router.get(
    "/hls/index.m3u8",
    response_class=Response,
    responses=failures(404, 409) | {200: {"content": {"application/vnd.apple.mpegurl": {}}}},
)
async def get_playlist(own: Own, here: Here) -> Response:
    """What Safari and players of HLS take; it grows until the render is over."""
    files = here.files.of(own.render)
    text = playlist(files, own)
    return Response(
        text, media_type="application/vnd.apple.mpegurl", headers={"cache-control": "no-cache"}
    )


@router.get(
    "/hls/init.mp4",
    response_class=Response,
    responses=failures(404, 409) | {200: {"content": _MP4}},
)
async def get_init(own: Own, here: Here) -> Response:
    files = here.files.of(own.render)
    if not files.segments():
        raise ApiError(404, "no_frames", "no frame of it is final yet")
    return Response(await asyncio.to_thread(files.init), media_type="video/mp4")


@router.get(
    "/hls/{name}.m4s",
    response_class=Response,
    responses=failures(404, 409) | {200: {"content": _MP4}},
)
async def get_segment(own: Own, here: Here, name: str) -> Response:
    """As the playlist names it."""
    files = here.files.of(own.render)
    segment = files.named(name)
    if segment is None:
        raise ApiError(404, "no_segment", f"it has {len(files.segments())} segments so far")
    data = await asyncio.to_thread(segment.read)
    here.keeper.take(own.render, segment.stop)
    return Response(data, media_type="video/mp4")


@router.get(
    "/frames",
    response_class=Response,
    responses=failures(404, 409) | {200: {"content": {_FRAMES: {}}}},
)
async def get_frames(
    own: Own,
    here: Here,
    start: Annotated[int, Query(ge=0, le=10_000_000)] = 0,
    receipt: bool = False,
    cut: Annotated[int | None, Query(ge=0, le=10_000_000)] = None,
) -> Response:
    """Pixels from this frame on, each as soon as it is final.

    Of each frame: the length of what follows in 4 bytes, its number in 8, then height x width x 3
    bytes of RGB; numbers are big-endian. They are the pixels of the MP4. With `receipt` the answer
    ends with the segment that `start` is in, and of a live session the frames before `start` count
    as taken; without it those that were sent do, though they may lie in buffers on their way.

    A redo makes another cut of the video when it is done. `x-longreel-cut` says of which one the
    frames are; whoever asks again with it as `cut` goes on in the same one, or hears that it is
    gone. `x-longreel-frames` is there when that one grows no more, whatever is being made.
    """
    found = here.files.of(own.render).cut(cut)
    facts = {name: own.request[name] for name in ("height", "width", "fps")} | {"cut": found.number}
    if found.is_whole:
        facts["frames"] = found.segments[-1].stop
    headers = {f"x-longreel-{name}": str(value) for name, value in facts.items()}
    stream = here.metrics.counted(raw_frames(here, own, start, found, receipt), "frames")
    return StreamingResponse(stream, media_type=_FRAMES, headers=headers)


@router.get(
    "/thumbnail",
    response_class=Response,
    responses=failures(404, 409) | {200: {"content": {"image/webp": {}}}},
)
async def get_thumbnail(
    own: Own, here: Here, frame: Annotated[int, Query(ge=0, le=10_000_000)] = 0
) -> Response:
    """A frame as a picture."""
    picture = await asyncio.to_thread(thumbnail, here.files.of(own.render), frame)
    return Response(picture, media_type="image/webp", headers={"cache-control": "no-cache"})


def thumbnail(files: RenderFiles, frame: int = 0) -> bytes:
    from PIL import Image

    picture = Image.fromarray(_frame(files, frame))
    picture.thumbnail((512, 512))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=85)
    return file.getvalue()


def spritesheet(files: RenderFiles, columns: int = 4, rows: int = 4) -> bytes:
    """Frames at even distances, left to right and top to bottom."""
    from PIL import Image

    total = files.frames
    places = [total * i // (columns * rows) for i in range(columns * rows)]
    pictures = [Image.fromarray(_frame(files, place)) for place in places]
    for picture in pictures:
        picture.thumbnail((256, 256))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=90)
    return file.getvalue()


def _frame(files: RenderFiles, frame: int) -> Frames:
    segment = files.segment_of(frame)
    if segment is None:
        raise ApiError(404, "no_frame", f"it has {files.frames} frames so far", field="frame")
    return next(pixels for _, pixels in files.decode(segment, frame))
