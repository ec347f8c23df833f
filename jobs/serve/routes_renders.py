"""/api/v1/renders: made, listed, looked at, steered, removed."""

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.routing import APIRoute

from .context import Context, client_of, context_of
from .errors import ApiError
from .intake import Sender
from .record import Record, State
from .schemas import (
    UNCHANGED,
    ChangePrompt,
    CreateRender,
    ExtendRender,
    RedoRender,
    Removed,
    RenderId,
    RenderPage,
    RenderView,
    failures,
)
from .view import view

router = APIRouter(prefix="/api/v1/renders", tags=["renders"])

Here = Annotated[Context, Depends(context_of)]
Client = Annotated[str, Depends(client_of)]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key and request give the same render, however often they are sent.",
    ),
]


Retry = Annotated[int, Header(alias="x-stainless-retry-count", ge=0, include_in_schema=False)]


async def _sender(client: Client, key: Key = None, retry: Retry = 0) -> Sender:
    return Sender(client=client, key=key, retried=retry > 0)


Asker = Annotated[Sender, Depends(_sender)]


async def _own(here: Here, client: Client, id: RenderId) -> Record:
    here.record(id, client)
    await here.at_hand([id])
    return here.record(id, client)  # as it is now


Own = Annotated[Record, Depends(_own)]


_AGAIN = {"model": RenderView, "description": "The render of the same key and request before."}


@router.post("", status_code=201, responses=failures(409, 429) | {200: _AGAIN})
async def create(asked: CreateRender, here: Here, sender: Asker, response: Response) -> RenderView:
    """A render, in the queue."""
    record, made = await here.intake.accept(asked, sender)
    if made:
        here.keeper.accepted(record)
    else:
        response.status_code = 200
    response.headers["location"] = f"/api/v1/renders/{record.render}"
    return view(here, record)


@router.get("", responses=failures(404))
async def list_renders(
    here: Here,
    client: Client,
    status: Annotated[list[State] | None, Query(max_length=6)] = None,
    after: RenderId | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> RenderPage:
    """Yours, a page at a time."""
    if after is not None:
        here.check_after(after, client)
    records, more = here.queue.page(
        client, states=status or (), after=after, limit=limit, newest_first=order == "desc"
    )
    await here.at_hand(record.render for record in records)
    return RenderPage(
        data=[here.status(record).view for record in records],
        has_more=more,
        last_id=records[-1].render if records else None,
    )


async def get(
    own: Own, here: Here, known: Annotated[str, Header(alias="If-None-Match")] = ""
) -> Response:
    """How it stands, a moment ago at most."""
    return _shown(here, own, known)


def _shown(here: Context, own: Record, known: str) -> Response:
    status = here.status(own)
    headers = {"etag": status.tag, "cache-control": "private, no-cache"}
    if is_known(status.tag, known):
        return Response(status_code=304, headers=headers)
    return Response(status.body, media_type="application/json", headers=headers)


class _Polled(APIRoute):
    """Of `get`, which all clients ask again and again: resolving its dependencies takes FastAPI two
    thirds of the answer's time, so they are for requests that cannot be answered as they come."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        resolved = super().get_route_handler()

        async def answer(request: Request) -> Response:
            here, id = await context_of(request), request.path_params["id"]
            own = here.queue.get(id)
            if own is None or own.client != await client_of(request) or not here.files.has_read(id):
                return await resolved(request)
            return _shown(here, own, request.headers.get("if-none-match", ""))

        return answer


router.add_api_route(
    "/{id}",
    get,
    methods=["GET"],
    response_model=RenderView,
    responses=failures(404) | UNCHANGED,
    route_class_override=_Polled,
)


def is_known(tag: str, named: str) -> bool:
    """To one who sends this `If-None-Match`: proxies may have made it weak, or know several."""
    return named.strip() == "*" or tag in re.findall(r'"[^"]*"', named)


@router.delete("/{id}", responses=failures(404, 409, 429))
async def delete(own: Own, here: Here) -> Removed:
    """With all its files. 409 while it runs: cancel it first."""
    await here.remove(own)
    return Removed(id=own.render)


@router.post("/{id}/cancel", responses=failures(404, 409, 429))
async def cancel(own: Own, here: Here) -> RenderView:
    """At the end of its step; what is final stays to be had. Cancelling twice is no error."""
    if own.state in ("done", "failed"):
        raise ApiError(409, "over", f"it is {own.state}, so there is nothing to cancel")
    if own.state != "cancelled":
        here.keeper.stop(own, "cancel")
    return view(here, here.again(own))


@router.post("/{id}/pause", responses=failures(404, 409, 429))
async def pause(own: Own, here: Here) -> RenderView:
    """At the end of its step; its devices are free for others until it is resumed."""
    if own.over:
        raise ApiError(409, "over", f"it is {own.state}, so there is nothing to pause")
    if own.state != "paused" and not own.wish:
        here.keeper.stop(own, "pause")
    return view(here, here.again(own))


@router.post("/{id}/resume", responses=failures(404, 409, 429))
async def resume(own: Own, here: Here) -> RenderView:
    """It waits for its turn again, with all that is final. Also one that has failed, or that is yet
    to stop."""
    async with here.intake.turn:  # not while it is removed, or an edit of it is given up
        own = here.record(own.render, own.client)
        if own.state not in ("paused", "failed", "cancelled") and not own.wish:
            raise ApiError(409, "not_paused", f"it is {own.state}, so there is nothing to resume")
        if own.over:
            here.intake.check_room(own.client)
        if own.state != "running":
            await here.intake.check_left(own)
        here.keeper.resume(own)
        return view(here, here.again(own))


@router.post("/{id}/extend", responses=failures(404, 409, 429))
async def extend(asked: ExtendRender, own: Own, here: Here) -> RenderView:
    """More of it, after its end: it waits for its turn again. What is there stays as it is."""
    record = await here.editing.edit(own, asked)
    here.keeper.accepted(record)
    return view(here, record)


@router.post("/{id}/redo", responses=failures(404, 409, 429))
async def redo(asked: RedoRender, own: Own, here: Here) -> RenderView:
    """A section of it with other noise, grown to whole segments; the segment behind it is blended.
    Until it is done the video is the old one."""
    record = await here.editing.edit(own, asked)
    here.keeper.accepted(record)
    return view(here, record)


@router.post("/{id}/drop", responses=failures(404, 409, 429))
async def drop(own: Own, here: Here) -> RenderView:
    """Gives up an edit that was paused or cancelled, or has failed: the video is what it was."""
    record = await here.editing.drop(own)
    here.keeper.dropped(record)
    return view(here, record)


@router.post("/{id}/prompt", responses=failures(404, 409, 429))
async def change_prompt(change: ChangePrompt, own: Own, here: Here) -> RenderView:
    """Of the blocks that are yet to begin, while it runs."""
    await here.keeper.change_prompt(own.render, change.prompt)
    return view(here, here.again(own))
