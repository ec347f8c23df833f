"""The application: the routes over one queue, behind the guard."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ... import __version__
from ...configs.files import expand
from ..home.segments import Replaced
from . import routes_media, routes_page, routes_renders, routes_socket, routes_videos
from .context import Context, bearer
from .edits import Editing
from .errors import ApiError, envelope, is_short, without_paths
from .files import AllFiles, gone
from .guard import Guard
from .intake import Intake
from .keeper import Keeper
from .limits import Limits
from .logs import complain, say
from .metrics import Metrics
from .queue import Queue
from .routes_socket import refuse_socket
from .tokens import Tokens

_ABOUT = (
    "Long videos with video diffusion transformers: a queue of renders, and each of them as "
    "events, a growing MP4, HLS, raw frames or a WebSocket while it is made."
)


def make_app(
    home: Path,
    *,
    tokens: Tokens | None = None,
    limits: Limits | None = None,
    workers: int = 1,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> FastAPI:
    """Nothing runs before its lifespan begins. ValueError: the home cannot be used."""
    tokens, limits, home = tokens or Tokens({}), limits or Limits(), expand(home).absolute()
    app = FastAPI(
        title="longreel",
        version=__version__,
        description=_ABOUT,
        lifespan=_lifespan,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
        redirect_slashes=False,
    )
    _make_folder(home)
    queue, files, metrics = Queue(home / "queue.sqlite3"), AllFiles(home), Metrics()
    intake = Intake(queue, files, limits, preset, overrides)
    app.state.context = Context(
        queue=queue,
        files=files,
        keeper=Keeper(
            queue,
            workers=workers,
            settings={"home": str(home), "idle_s": limits.idle_s},
            limits=limits,
            files=files,
            metrics=metrics,
        ),
        intake=intake,
        editing=Editing(queue, files, limits, intake),
        limits=limits,
        tokens=tokens,
        metrics=metrics,
    )
    for routes in (routes_renders, routes_media, routes_videos):
        app.include_router(routes.router, dependencies=[Depends(bearer)])
    for routes in (routes_page, routes_socket):
        app.include_router(routes.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(Replaced, _replaced)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(WebSocketRequestValidationError, _invalid_socket)
    app.add_exception_handler(HTTPException, _http_error)
    for short in (OSError, sqlite3.Error):
        app.add_exception_handler(short, _short)
    app.add_exception_handler(Exception, _bug)
    app.add_middleware(Guard, tokens=tokens, limits=limits)
    return app


def _make_folder(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ValueError(
            f"home={home} cannot be made a folder ({error.strerror}), so there is nowhere to keep "
            "renders; give --home one that can be written, or none"
        ) from error


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    here: Context = app.state.context
    here.files.sweep(lambda name: here.queue.get(name) is not None)
    here.keeper.recover()
    keeping = asyncio.create_task(here.keeper.run())
    loading = asyncio.create_task(_load(here))
    try:
        yield
    finally:
        here.ready = False
        for task in (keeping, loading):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        here.queue.close()


async def _load(here: Context) -> None:
    """What checks a request, before the first one comes."""
    await asyncio.to_thread(here.intake.warm_up)
    here.ready = True
    say("ready", seconds=round(time.time() - here.began, 2))


async def _api_error(request: Request, error: Any) -> JSONResponse:
    return JSONResponse(envelope(error), status_code=error.status, headers=error.headers)


async def _replaced(request: Request, error: Any) -> JSONResponse:
    """An edit has taken a file away between its name and its reading."""
    return await _api_error(request, ApiError(409, "replaced", without_paths(str(error))))


async def _invalid(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"the body is no JSON from its character {first['loc'][1]} on"
        return await _api_error(request, ApiError(400, "invalid_request", message))
    place, said = first["loc"][1:], first["msg"]
    if place[:1] == ("settings",) and len(place) > 2:  # one of the kinds that it is not
        place, said = place[:2], "a setting is a number, a text, true, false, null or a list"
    where = ".".join(map(str, place)) or None
    message = f"{where or 'the request'}: {said}"
    if where is None and first["type"] in ("missing", "model_attributes_type"):
        message = "the body is no JSON object; send one, with `content-type: application/json`"
    return await _api_error(request, ApiError(422, "invalid_request", message, field=where))


async def _invalid_socket(socket: Any, error: Any) -> None:
    await refuse_socket(socket, 422, "invalid_request")


async def _http_error(request: Request, error: Any) -> JSONResponse:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    said = ApiError(error.status_code, code, str(error.detail), headers=error.headers)
    return await _api_error(request, said)


async def _short(request: Request, error: Any) -> JSONResponse:
    render, files = request.path_params.get("id", ""), request.app.state.context.files
    if isinstance(error, FileNotFoundError) and render and not files.home.holds(render):
        return await _api_error(request, gone())  # somebody removes it meanwhile
    if not is_short(error):
        raise error
    complain("no room for a request", path=request.url.path, error=str(error))
    message = "the server has no room for it at the moment, such as on its disk; try again later"
    again = {"retry-after": "5"}
    return await _api_error(request, ApiError(503, "no_room", message, headers=again))


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """What it was is in the log: it is raised once more after this."""
    said = ApiError(500, "internal_error", "this is an error of the server; its log has more")
    return await _api_error(request, said)
