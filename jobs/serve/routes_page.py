"""What a browser and a watchdog ask for: the page, its session, health and metrics."""

from importlib.resources import files
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from .context import bearer
from .errors import ApiError
from .routes_renders import Here
from .schemas import AGAIN, failures
from .tokens import COOKIE, cookie_of

router = APIRouter()

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'self'"
)
_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def _file(name: str) -> Response:
    data = (files(__package__) / "page" / name).read_bytes()
    headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
    return Response(data, media_type=_KINDS[name.rpartition(".")[2]], headers=headers)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    return _file("index.html")


@router.get("/page.js", include_in_schema=False)
async def script() -> Response:
    return _file("page.js")


@router.get("/page.css", include_in_schema=False)
async def style() -> Response:
    return _file("page.css")


@router.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    return Response(status_code=204)


class Session(BaseModel):
    client: str
    presets: list[str]
    preset: str  # that of requests which name none; empty: a file of the server's


@router.get("/session", include_in_schema=False)
async def session(request: Request, here: Here) -> Session:
    """Whom the browser's cookie stands for."""
    from ...configs.load import DEFAULT_PRESET, preset_names

    client = request.state.client
    if not client:
        raise ApiError(401, "invalid_api_key", "no session; give a token")
    preset, names = here.intake.preset or DEFAULT_PRESET, preset_names()
    return Session(client=client, presets=names, preset=preset if preset in names else "")


@router.post("/session", include_in_schema=False)
async def open_session(
    token: Annotated[str, Body(embed=True, max_length=1000)], here: Here, response: Response
) -> dict[str, str]:
    """A cookie for a token: media tags of a page cannot send a header."""
    client = here.tokens.client_of(token)
    if client is None:
        raise ApiError(401, "invalid_api_key", "this is no token that the server knows")
    response.set_cookie(COOKIE, cookie_of(token), httponly=True, samesite="strict")
    return {"client": client}


@router.head("/healthz", include_in_schema=False)  # as balancers ask
@router.get("/healthz", tags=["operation"])
async def health() -> dict[Literal["ok"], bool]:
    """The process answers."""
    return {"ok": True}


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    tags=["operation"],
    responses={503: {"description": "Still loading, or ending.", "headers": AGAIN}},
)
async def ready(here: Here, response: Response) -> dict[Literal["ready"], bool]:
    """It takes renders."""
    if not here.ready:
        response.status_code, response.headers["retry-after"] = 503, "1"
    return {"ready": here.ready}


@router.get(
    "/metrics",
    tags=["operation"],
    response_class=PlainTextResponse,
    responses=failures(),
    dependencies=[Depends(bearer)],
)
async def metrics(here: Here) -> Response:
    """For Prometheus."""
    return PlainTextResponse(here.metrics.text(here.queue, here.keeper))
