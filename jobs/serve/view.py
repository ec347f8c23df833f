"""A render as clients see it: what the queue, its folder and its process say, put together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..home.segments import Segment
from .errors import ApiError
from .record import Record
from .schemas import Failure, Links, Progress, RenderView, StageView

if TYPE_CHECKING:
    from .context import Context


def view(context: "Context", record: Record) -> RenderView:
    request, live = record.request, context.keeper.live.get(record.render)
    segments, done, first = _made(context, record.render)
    frames = segments[-1].stop if segments else 0
    denoise = live.stages.get("denoise") if live else None
    started = record.started_at
    base = f"/api/v1/renders/{record.render}"
    return RenderView(
        id=record.render,
        status=record.state,
        prompt=request["prompt"],
        preset=request["preset"],
        seed=request["seed"],
        width=request["width"],
        height=request["height"],
        fps=request["fps"],
        frames=request["frames"],
        priority=record.priority,
        pace=request["pace"],
        progress=Progress(
            frames=frames,
            of=request["frames"],
            fraction=fraction(record, done, live.done_fraction() if live else 0.0),
            blocks=segments[-1].blocks[1] if segments else 0,
            of_blocks=request["blocks"],
            step=denoise.done if denoise else 0,
            of_steps=denoise.total if denoise else 0,
            of_block_steps=request["steps"],
            stages=[
                StageView(stage=number, busy=live.busy(number) if live else None)
                for number in range(request["stages"])
            ],
            in_flight=live.in_flight if live else {},
            eta_s=live.eta_s() if live else None,
        ),
        place=context.queue.place(record) if record.state == "queued" else None,
        created_at=record.created_at,
        started_at=started,
        ended_at=record.ended_at,
        deadline_at=record.deadline_at,
        first_frame_s=None if first is None or started is None else max(0.0, first - started),
        attempts=record.attempts,
        gpu_seconds=round(record.gpu_seconds, 3),
        parent=record.parent,
        error=None if record.error is None else Failure(**record.error),
        links=Links(
            video=f"{base}/video",
            playlist=f"{base}/hls/index.m3u8",
            events=f"{base}/events",
            frames=f"{base}/frames",
            stream=f"{base}/stream",
            thumbnail=f"{base}/thumbnail",
        ),
    )


def _made(context: "Context", render: str) -> tuple[Sequence[Segment], int, float | None]:
    """Segments, frames that are as they will be, and since when there is one; nothing where its
    files are gone, which they may be from one look to the next, or cannot be read."""
    try:
        files = context.files.of(render)
        return files.segments(), files.done, files.first_segment_at()
    except (ApiError, OSError):
        return (), 0, None


def fraction(record: Record, frames: int, steps: float) -> float:
    """Of the whole; it never falls while a render goes on, and is 1 when it is done alone."""
    if record.state == "done":
        return 1.0
    watched: float = frames / record.request["frames"]
    return round(min(0.99, max(watched, 0.9 * steps + 0.1 * watched)), 4)
