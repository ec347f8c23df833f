"""/v1/videos, in the shape that the `openai` Python client speaks: a thin layer over the queue."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from .context import Context
from .errors import ApiError
from .intake import Sender
from .known_video import find_video
from .record import Record
from .routes_media import spritesheet, thumbnail, whole_video
from .routes_renders import Asker, Client, Here, Own
from .schemas import UNCHANGED, CreateRender, ExtendRender, RenderId, failures
from .video_form import (
    CreateVideo,
    EditVideo,
    ExtendVideo,
    RemixVideo,
    body_of,
    read,
    to_render,
)
from .video_view import Video, VideoDeleted, VideoPage, poll_after_ms, video_view

router = APIRouter(prefix="/v1/videos", tags=["videos"])

_DELETE_S = 60.0  # for the step that a cancelled render is at


@router.post(
    "",
    openapi_extra=body_of(CreateVideo, file="input_reference"),
    responses=failures(409, 429),
)
async def create(request: Request, here: Here, sender: Asker, response: Response) -> Video:
    """As a form, which the client always sends, or as JSON."""
    asked, upload = await read(request, CreateVideo, "input_reference")
    return await _accept(here, response, to_render(asked, upload), sender)


@router.get("", responses=failures(404))
async def list_videos(
    here: Here,
    client: Client,
    after: RenderId | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoPage:
    if after is not None:
        here.check_after(after, client)
    records, more = here.queue.page(client, after=after, limit=limit, newest_first=order == "desc")
    await here.at_hand(record.render for record in records)
    data = [video_view(here, here.again(record)) for record in records]
    return VideoPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=more,
    )


@router.get("/{id}", responses=failures(404))
async def retrieve(own: Own, here: Here, response: Response) -> Video:
    response.headers["openai-poll-after-ms"] = str(poll_after_ms(here, own))
    return video_view(here, own)


@router.head("/{id}/content", include_in_schema=False)
@router.get(
    "/{id}/content",
    response_class=Response,
    responses=failures(404, 409, 416)
    | UNCHANGED
    | {
        200: {"content": {"video/mp4": {}, "image/webp": {}, "image/jpeg": {}}},
        206: {"content": {"video/mp4": {}}, "description": "A range of it."},
    },
)
async def content(
    own: Own,
    here: Here,
    request: Request,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> Response:
    """The video as it grows until it is done; or a picture of it."""
    if variant != "video":
        files = here.files.of(own.render)
        if not files.segments():
            raise ApiError(404, "not_ready", "no frame of it is final yet")
        if variant == "thumbnail":
            picture = await asyncio.to_thread(thumbnail, files)
            return Response(picture, media_type="image/webp")
        return Response(await asyncio.to_thread(spritesheet, files), media_type="image/jpeg")
    return whole_video(here, own, request)


@router.delete("/{id}", responses=failures(404, 409, 429))
async def delete(own: Own, here: Here) -> VideoDeleted:
    """One that runs is cancelled, and gone at the end of its step."""
    if own.state == "running":
        here.keeper.stop(own, "cancel")
        try:
            async with asyncio.timeout(_DELETE_S):
                while (now := here.queue.get(own.render)) and now.state == "running":
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ApiError(409, "running", "it is being cancelled; try again later") from None
    await here.remove(own)
    return VideoDeleted(id=own.render)


@router.post("/{id}/remix", openapi_extra=body_of(RemixVideo), responses=failures(404, 409, 429))
async def remix(own: Own, request: Request, here: Here, sender: Asker, response: Response) -> Video:
    """The same with another prompt: the same seed, so as much as can be stays."""
    asked, _ = await read(request, RemixVideo)
    return await _remix(here, response, own, asked.prompt, sender)


@router.post(
    "/edits", openapi_extra=body_of(EditVideo, file="video"), responses=failures(404, 409, 429)
)
async def edit(request: Request, here: Here, sender: Asker, response: Response) -> Video:
    """A remix of the video that is named by its id, or by itself."""
    asked, upload = await read(request, EditVideo, "video")
    source = await _source(here, sender.client, asked.video.id, upload)
    return await _remix(here, response, source, asked.prompt, sender)


@router.post("/characters", responses=failures(429))
async def create_character(client: Client) -> None:
    """The client has a method for it; models here know none."""
    raise ApiError(400, "no_characters", "this server has no characters; describe them in prompts")


@router.get("/characters/{id}", responses=failures(404))
async def get_character(id: str, client: Client) -> None:
    raise ApiError(404, "no_characters", "this server has no characters")


@router.post(
    "/extensions",
    openapi_extra=body_of(ExtendVideo, file="video"),
    responses=failures(404, 409, 429),
)
async def extend(request: Request, here: Here, sender: Asker, response: Response) -> Video:
    """Another video: all of the one that is named by its id, or by itself, and more of it."""
    asked, upload = await read(request, ExtendVideo, "video")
    source = await _source(here, sender.client, asked.video.id, upload)
    more = ExtendRender(seconds=asked.seconds, prompt=asked.prompt)
    return _answer(here, response, *await here.editing.go_on(source, more, sender))


async def _remix(
    here: Context, response: Response, source: Record, prompt: str, sender: Sender
) -> Video:
    request = source.request
    image = await asyncio.to_thread(here.files.of(source.render).picture)
    again = {name: request[name] for name in ("preset", "seed", "pace")}
    settings = {**request["settings"], "video.frames": request["frames"]}
    asked = CreateRender(
        prompt=prompt, image=image, priority=source.priority, settings=settings, **again
    )
    return await _accept(here, response, asked, sender, source)


async def _accept(
    here: Context,
    response: Response,
    asked: CreateRender,
    sender: Sender,
    parent: Record | None = None,
) -> Video:
    source = None if parent is None else parent.render
    try:
        return _answer(here, response, *await here.intake.accept(asked, sender, source))
    except ApiError as error:
        if error.field == "preset":  # as these clients have it
            error.field, error.message = "model", error.message.replace("preset=", "model=", 1)
        raise


def _answer(here: Context, response: Response, record: Record, made: bool) -> Video:
    if made:
        here.keeper.accepted(record)
    response.headers["openai-poll-after-ms"] = str(poll_after_ms(here, record))
    return video_view(here, record)


async def _source(here: Context, client: str, id: str, upload: bytes | None) -> Record:
    """The render that is named, or whose video was sent: of any other we have no latents."""
    if upload is None:
        return here.record(id, client, "video.id")
    found = await asyncio.to_thread(find_video, here.queue, here.files, client, upload)
    if found is not None:
        return found
    raise ApiError(
        422,
        "unknown_video",
        "this is no video that was made here; give one as it came from this server",
        field="video",
    )
