"""A render as the `openai` client's video object."""

from typing import Literal

from pydantic import BaseModel

from .context import Context
from .record import Record, State
from .view import view

Status = Literal["queued", "in_progress", "completed", "failed"]

_STATUS: dict[State, Status] = {
    "queued": "queued",
    "running": "in_progress",
    "paused": "in_progress",
    "done": "completed",
    "failed": "failed",
    "cancelled": "failed",  # a word that the client does not know; error.code says it
}


class VideoError(BaseModel):
    code: str
    message: str


class Video(BaseModel):
    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None = None
    error: VideoError | None
    prompt: str
    remixed_from_video_id: str | None
    seconds: str
    size: str


class VideoPage(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


def video_view(context: Context, record: Record) -> Video:
    seen = view(context, record)
    error = None if seen.error is None else VideoError(**seen.error.model_dump())
    if record.state == "cancelled":
        error = VideoError(code="cancelled", message="it was cancelled")
    done = record.state == "done" and record.ended_at is not None
    return Video(
        id=seen.id,
        model=seen.preset,
        status=_STATUS[record.state],
        progress=100 if record.state == "done" else int(100 * seen.progress.fraction),
        created_at=int(record.created_at),
        completed_at=int(record.ended_at or 0) if done else None,
        error=error,
        prompt=seen.prompt,
        remixed_from_video_id=record.parent,
        seconds=f"{seen.frames / seen.fps:g}",
        size=f"{seen.width}x{seen.height}",
    )


def poll_after_ms(context: Context, record: Record) -> int:
    """When it is worth asking again: a twentieth of what is left to do."""
    live = context.keeper.live.get(record.render)
    eta_s = live.eta_s() if live else None
    return 1000 if eta_s is None else int(min(5000, max(200, 50 * eta_s)))
