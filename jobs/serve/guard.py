"""What stands before every route: who it is, from where, how much and how often.

Plain ASGI, so that nothing of a refused request is read or parsed. A body is taken in whole, within
its limits of size and time, before its route begins.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import cookie_parser

from .errors import ApiError, envelope
from .limits import Bucket, Limits
from .tokens import COOKIE, LOCAL, Tokens, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/healthz", "/readyz")  # asked by machines that have no token
_PAGE = ("/", "/page.js", "/page.css", "/favicon.ico", "/session")  # where a browser gives its own
_WRITES = ("POST", "PUT", "PATCH", "DELETE")


class Guard:
    """Wraps the application."""

    def __init__(self, app: App, *, tokens: Tokens, limits: Limits) -> None:
        self._app, self._tokens, self._limits = app, tokens, limits
        self._bucket = Bucket(limits.writes, limits.writes_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        try:
            headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
            }
            scope.setdefault("state", {})["client"] = self._admit(scope, headers)
            if scope["type"] == "http":
                receive = await self._take_body(headers, receive)
        except ApiError as error:
            return await _refuse(scope, receive, send, error)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope, headers: dict[str, str]) -> str:
        if scope["path"] in OPEN:
            return ""
        _check_origin(headers, with_token=bool(self._tokens))
        client = self._client(scope, headers)
        if scope.get("method") in _WRITES and (wait := self._bucket.take(client)):
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"more than {self._limits.writes_per_s:g} changes a second; wait {wait:.1f} s",
                headers={"retry-after": str(max(1, round(wait)))},
            )
        return client

    def _client(self, scope: Scope, headers: dict[str, str]) -> str:
        if not self._tokens:
            return LOCAL
        scheme, _, token = headers.get("authorization", "").partition(" ")
        client = self._tokens.client_of(token.strip()) if scheme.lower() == "bearer" else None
        if client is None and (cookie := cookie_parser(headers.get("cookie", "")).get(COOKIE)):
            client = self._tokens.client_of_cookie(cookie)
        if client is None and scope["path"] in _PAGE:
            return ""
        if client is None:
            raise ApiError(
                401,
                "invalid_api_key",
                "no token that this server knows; send it as `Authorization: Bearer TOKEN`",
                headers={"www-authenticate": "Bearer"},
            )
        return client

    async def _take_body(self, headers: dict[str, str], receive: Receive) -> Receive:
        most = self._limits.body_bytes
        too_large = ApiError(413, "body_too_large", f"a body may have {most} bytes")
        declared = headers.get("content-length", "0")
        if not declared.isdigit():
            raise ApiError(400, "bad_content_length", "content-length is no number")
        if int(declared) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return _replay([message], receive)
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise ApiError(
                408,
                "body_too_slow",
                f"the body did not arrive within {self._limits.body_s:g} s",
                headers={"connection": "close"},
            ) from None
        return _replay([{"type": "http.request", "body": bytes(body)}], receive)


def _replay(first: list[Message], then: Receive) -> Receive:
    async def receive() -> Message:
        return first.pop() if first else await then()

    return receive


def _check_origin(headers: dict[str, str], with_token: bool) -> None:
    """No page of another site may talk to this server through a visitor's browser.

    Without tokens a name that was bound to 127.0.0.1 by a stranger is turned away too.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    if not with_token and not is_loopback(_names(f"//{host}")[1]):
        raise ApiError(
            403, "foreign_host", "without a token this server answers to 127.0.0.1 and localhost"
        )
    if origin is not None and _names(origin)[0] != host:
        raise ApiError(403, "foreign_origin", "pages of other sites may not use this server")


def _names(url: str) -> tuple[str | None, str]:
    """Its host with a port, as it is written, and without."""
    try:
        parts = urlsplit(url)
        return parts.netloc, parts.hostname or ""
    except ValueError:  # brackets that hold no address
        return None, ""


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})  # or a 403 would be all that the other end hears
        code = 4000 + error.status
        await send({"type": "websocket.close", "code": code, "reason": error.code})
        return
    body = json.dumps(envelope(error)).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    raw = [(k.encode(), v.encode()) for k, v in (headers | error.headers).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
