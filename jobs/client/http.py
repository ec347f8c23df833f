"""Requests to a server that may be away for a while: sent again where that can do no harm."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from ...configs.files import expand
from .errors import ServerError

_log = logging.getLogger("longreel")
_FIRST_S, _MOST_S = 0.2, 5.0  # between two tries
_SAY_S = 5.0  # without an answer, before somebody who watches wonders
_ANSWER_S, _SILENCE_S = 60.0, 600.0  # for an answer; between two pieces of one: a step may be long
_LATER = (408, 429, 502, 503, 504)  # what a busy or restarting server and its proxies say


class Http:
    """Of one client."""

    def __init__(self, url: str, token: str | None, patience_s: float) -> None:
        """ValueError: there is no such address, or the token cannot be sent."""
        _check(url, token)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        timeout = httpx.Timeout(30.0, read=_SILENCE_S)
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, timeout=timeout, trust_env=False
        )
        self._url, self._patience_s = url, patience_s

    async def close(self) -> None:
        await self._client.aclose()

    async def ask(
        self, method: str, path: str, *, again: bool = True, then: int = 0, **more: Any
    ) -> httpx.Response:
        """ServerError: its answer. `again`: to send it twice is the same as once. `then`: what
        the second is answered where the first was taken and its answer was lost."""
        patience, may_be_taken = self.patience(), False
        if method == "GET":
            more["timeout"] = httpx.Timeout(30.0, read=_ANSWER_S)
        while True:
            try:
                answer = await self._client.request(method, path, **more)
            except httpx.TransportError as error:
                if not (again or isinstance(error, httpx.ConnectError)):
                    raise
                may_be_taken |= not isinstance(error, httpx.ConnectError)
                await patience.wait(error)
                continue
            if answer.status_code in _LATER and (again or answer.status_code == 429):
                may_be_taken |= answer.status_code != 429
                await patience.wait(_error(answer), answer.headers)
                continue
            if answer.status_code >= 400 and not (may_be_taken and answer.status_code == then):
                raise _error(answer)
            return answer

    @asynccontextmanager
    async def stream(self, path: str, **more: Any) -> AsyncIterator[httpx.Response]:
        async with self._client.stream("GET", path, **more) as answer:
            if answer.status_code >= 400:
                await answer.aread()
                raise _error(answer)
            try:
                yield answer
            except httpx.ReadTimeout as error:
                raise Quiet(str(error)) from error

    def patience(self) -> "Patience":
        return Patience(self._patience_s, self._url)


class Quiet(httpx.ReadTimeout):
    """A server that has answered had nothing more for long: a render may wait for its turn."""


class Patience:
    """How long a server may be away, and how often it is tried meanwhile."""

    def __init__(
        self, total_s: float, url: str = "", now: Callable[[], float] = time.monotonic
    ) -> None:
        self._total_s, self._url, self._now = total_s, url, now
        self._since: float | None = None
        self._pause_s = _FIRST_S
        self._is_said = False

    def good(self) -> None:
        """It has answered: the time counts anew."""
        self._since, self._pause_s, self._is_said = None, _FIRST_S, False

    async def wait(self, error: Exception, headers: Mapping[str, str] | None = None) -> None:
        """A while; raises `error` when it has lasted too long."""
        if isinstance(error, Quiet):
            return self.good()
        now = self._now()
        self._since = now if self._since is None else self._since
        is_away = isinstance(error, httpx.TransportError)
        if now - self._since > self._total_s:
            if is_away:
                raise type(error)(
                    f"{self._url} has not answered for {self._total_s:g} s ({error}); start a "
                    "server there with `longreel serve`, or give the address of one"
                ) from error
            raise error
        if is_away and now - self._since > _SAY_S and not self._is_said:
            self._is_said = True
            _log.warning(
                "%s does not answer (%s); it is tried for %g s", self._url, error, self._total_s
            )
        asked = (headers or {}).get("retry-after", "")
        pause = float(asked) if asked.isdigit() else self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(_MOST_S, 2 * self._pause_s)
        await asyncio.sleep(min(pause, max(0.1, self._total_s)))


def is_passing(error: Exception) -> bool:
    """Whether another try may go well."""
    return isinstance(error, httpx.TransportError) or (
        isinstance(error, ServerError) and error.status in _LATER
    )


def read_token(path: Path) -> str:
    """The one token of a file, as a server of one client has it."""
    try:
        lines = expand(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"token-file={path} cannot be read ({error}); give a text file with the token in it"
        ) from error
    tokens = [line for line in lines if line.strip() and not line.startswith("#")]
    if len(tokens) != 1:
        raise ValueError(
            f"token-file={path} holds {len(tokens)} tokens, and one is sent; give a file with it"
        )
    return tokens[0].rpartition(":")[2].strip()


def _check(url: str, token: str | None) -> None:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(
            f"url={url} is no address of a server, so nothing could be asked of it; write it like "
            "http://127.0.0.1:8500"
        )
    if token and not (token.isascii() and token.isprintable()):
        raise ValueError(
            "token holds a line break or another character that cannot be sent; give what stands "
            "in the server's token file, without the end of its line"
        )


def _error(answer: httpx.Response) -> ServerError:
    try:
        said = answer.json()["error"]
        code, message, field = said["code"], said["message"], said["param"]
    except (ValueError, KeyError, TypeError):
        code, message, field = "no_answer", f"the server answers {answer.status_code}", None
    return ServerError(answer.status_code, code or "", message, field)
