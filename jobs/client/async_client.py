"""`longreel.AsyncClient`: what a server does, for programs with an event loop."""

import asyncio
import base64
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ...configs.files import expand
from ...configs.schema import OutputConfig
from .errors import RenderFailed
from .http import Http, is_passing
from .wire import Event, EventReader, FrameReader, Frames

URL = "http://127.0.0.1:8500"
_OVER = ("done", "failed", "cancelled")
_POLL_S = 0.5

Setting = str | int | float | bool | None | Sequence[int]


class Writer(Protocol):
    """Takes frames in order, n x height x width x 3."""

    def write(self, frames: Frames, /) -> object: ...


@dataclass(frozen=True, kw_only=True)
class RenderInfo:
    """A render as the server told it last; `all` is everything it said."""

    id: str
    status: str
    prompt: str
    frames: int
    frames_done: int
    fraction: float
    eta_s: float | None
    message: str  # why it has failed
    all: Mapping[str, Any]

    @property
    def over(self) -> bool:
        return self.status in _OVER


class AsyncClient:
    """Of one server. Leaving its `async with` block closes the connections; renders go on."""

    def __init__(
        self, url: str | None = None, token: str | None = None, *, patience_s: float = 120.0
    ) -> None:
        """None: LONGREEL_URL and LONGREEL_TOKEN, or a server of this machine without tokens.

        `patience_s`: how long the server may be away before an error is raised.
        """
        token = os.environ.get("LONGREEL_TOKEN") if token is None else token
        self._http = Http(url or os.environ.get("LONGREEL_URL", URL), token, patience_s)

    async def render(
        self,
        prompt: str,
        *,
        preset: str | None = None,
        frames: int | None = None,
        seed: int = 0,
        image: str | Path | None = None,
        prompt_at: Sequence[tuple[float, str]] = (),
        settings: Mapping[str, Setting] | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        pace: Literal["render", "consumer"] = "render",
        key: str | None = None,
    ) -> "AsyncRender":
        """A render in the server's queue: one, however often the request has to be sent.

        `key` makes that hold beyond this call: the same key and request, the same render.
        """
        body: dict[str, Any] = {
            "prompt": prompt,
            "preset": preset,
            "frames": frames,
            "seed": seed,
            "prompt_at": [{"seconds": at, "prompt": text} for at, text in prompt_at],
            "settings": dict(settings or {}),
            "priority": priority,
            "deadline_s": deadline_s,
            "pace": pace,
        }
        if image is not None:
            data = await asyncio.to_thread(expand(image).read_bytes)
            body["image"] = base64.b64encode(data).decode()
        headers = {"idempotency-key": key or secrets.token_hex(16)}
        answer = await self._http.ask("POST", "/api/v1/renders", json=body, headers=headers)
        return AsyncRender(self._http, _info(answer.json()))

    async def get(self, render: str) -> "AsyncRender":
        """One that is there already, by its id."""
        answer = await self._http.ask("GET", f"/api/v1/renders/{render}")
        return AsyncRender(self._http, _info(answer.json()))

    async def renders(self, status: Sequence[str] = ()) -> AsyncGenerator["AsyncRender"]:
        """Yours, the newest first."""
        asked: dict[str, Any] = {"limit": 100, "status": list(status)}
        page = (await self._http.ask("GET", "/api/v1/renders", params=asked)).json()
        while True:
            items, more = page["data"], page["has_more"]
            if more:  # before these are seen: whoever deletes them takes our place in the list away
                asked["after"] = page["last_id"]
                page = (await self._http.ask("GET", "/api/v1/renders", params=asked)).json()
            for item in items:
                yield AsyncRender(self._http, _info(item))
            if not more:
                return

    async def close(self) -> None:
        await self._http.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()


class AsyncRender:
    """One render of a server."""

    def __init__(self, http: Http, info: RenderInfo) -> None:
        self._http = http
        self._path = f"/api/v1/renders/{info.id}"
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    async def refresh(self) -> RenderInfo:
        """Ask the server how it stands."""
        self.info = _info((await self._http.ask("GET", self._path)).json())
        return self.info

    async def wait(
        self,
        *,
        progress: bool | Callable[[RenderInfo], object] = False,
        timeout_s: float | None = None,
    ) -> RenderInfo:
        """Until it is done. RenderFailed: it ended otherwise. `progress`: a bar, or a call."""
        from .progress import shown

        with shown(progress) as show:
            async for info in self.accounts(timeout_s):
                show(info)
        self.check()
        return self.info

    async def accounts(self, timeout_s: float | None = None) -> AsyncGenerator[RenderInfo]:
        """How it stands, again and again until it is over. TimeoutError after so many seconds."""
        clock = asyncio.get_running_loop().time
        deadline = None if timeout_s is None else clock() + timeout_s
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    info = await self.refresh()
                yield info
                if info.over:
                    return
                async with asyncio.timeout_at(deadline):
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise TimeoutError(
                f"render {self.id} was {self.info.status} when timeout_s={timeout_s} was over; it "
                "is not ended by that: wait for it again, or cancel it"
            ) from error

    async def events(self, after: int = 0) -> AsyncGenerator[Event]:
        """What happens to it, until it is over; `after`: the number of the last one known."""
        reader, patience = EventReader(after), self._http.patience()
        while True:
            try:
                async with self._http.stream(
                    f"{self._path}/events", params={"after": reader.last}
                ) as answer:
                    async for text in answer.aiter_text():
                        patience.good()
                        for event in reader.feed(text):
                            yield event
                            if event.name in _OVER:
                                return
                raise ConnectionError("the stream of events ended before the render did")
            except Exception as error:
                if not (is_passing(error) or isinstance(error, ConnectionError)):
                    raise
                await patience.wait(error)
                reader = EventReader(reader.last)

    async def frames(self, start: int = 0) -> AsyncGenerator[Frames]:
        """Frames from number `start` on, some at a time, each once, as soon as they are final.

        A connection that breaks is made anew where it broke. RenderFailed: it ended early. A live
        session is asked for segment by segment: whatever lies in a buffer is not taken yet. Of a
        redo that is done meanwhile nothing is seen; ServerError where its files are gone by then.
        """
        reader: FrameReader | None = None
        cut: dict[str, str] = {}  # that the first answer was of: a redo may be done meanwhile
        total = ""  # frames of it, if it grows no more
        patience = self._http.patience()
        live = self.info.all["pace"] == "consumer"
        while True:
            here = start if reader is None else reader.next
            try:
                async with self._http.stream(
                    f"{self._path}/frames", params={"start": here, "receipt": live, **cut}
                ) as answer:
                    cut = {"cut": answer.headers["x-longreel-cut"]}
                    total = answer.headers.get("x-longreel-frames", "")
                    if reader is None:
                        height, width = (
                            int(answer.headers[f"x-longreel-{side}"])
                            for side in ("height", "width")
                        )
                        reader = FrameReader(height, width, start)
                    async for data in answer.aiter_raw():
                        patience.good()
                        if (frames := reader.feed(data)) is not None:
                            yield frames
            except Exception as error:
                if not is_passing(error):
                    raise
                await patience.wait(error)
                if reader is not None:
                    reader.forget()
                continue
            if total and reader.next >= int(total):
                return
            if (await self.refresh()).over and reader.next >= self.info.frames_done:
                self.check()
                return
            reader.forget()

    async def write(self, writer: Writer, start: int = 0) -> None:
        """Every frame, to any object with `write(frames)`."""
        async for frames in self.frames(start):
            await asyncio.to_thread(writer.write, frames)

    async def download(self, path: str | Path) -> Path:
        """Waits for it, then its MP4 at `path`; or a folder of pictures, if that is no .mp4.

        ValueError, before the wait: nothing can be written there.
        """
        from ..target import check_target
        from .save import save_pictures, save_video

        target = expand(path)
        is_video = target.suffix.lower() == ".mp4"
        check_target(target, OutputConfig(format="mp4" if is_video else "png"))
        await self.wait()
        if is_video:
            await save_video(self._http, f"{self._path}/video", target)
        else:
            await save_pictures(self, target)
        return target

    async def thumbnail(self, frame: int = 0) -> bytes:
        """A frame that is final, as WebP."""
        answer = await self._http.ask("GET", f"{self._path}/thumbnail", params={"frame": frame})
        return answer.content

    async def set_prompt(self, prompt: str) -> None:
        """Of the blocks that are yet to begin, while it runs."""
        await self._do("prompt", {"prompt": prompt})

    async def extend(
        self,
        frames: int | None = None,
        *,
        seconds: float | None = None,
        prompt: str | None = None,
        prompt_at: Sequence[tuple[float, str]] = (),
    ) -> None:
        """More of it once it is done, by frames or by seconds; `wait` then waits for that.

        It is sent once: where a connection breaks over it, `refresh` says whether it was taken.
        """
        times = [{"seconds": at, "prompt": text} for at, text in prompt_at]
        more = {"frames": frames, "seconds": seconds, "prompt": prompt, "prompt_at": times}
        await self._do("extend", more, again=False)

    async def redo(self, first: int, stop: int, *, prompt: str | None = None) -> None:
        """Frames from `first` to before `stop` anew, once it is done; sent once, as `extend`."""
        await self._do("redo", {"first": first, "stop": stop, "prompt": prompt}, again=False)

    async def drop(self) -> None:
        """Give up an edit that was paused or cancelled, or has failed: it is done as before."""
        await self._do("drop", again=False)

    async def cancel(self) -> None:
        """At the end of its step; what is final can still be had."""
        await self._do("cancel")

    async def pause(self) -> None:
        """At the end of its step; its devices are free for others until `resume`."""
        await self._do("pause")

    async def resume(self) -> None:
        """Back into the queue, with all that is final; also after a cancel or a failure."""
        await self._do("resume", then=409)

    async def delete(self) -> None:
        """With its files; not while it runs."""
        await self._http.ask("DELETE", self._path, then=404)

    async def _do(self, what: str, body: Mapping[str, object] | None = None, **how: Any) -> None:
        answer = await self._http.ask("POST", f"{self._path}/{what}", json=body, **how)
        if answer.is_error:
            await self.refresh()
        else:
            self.info = _info(answer.json())

    def check(self) -> None:
        """RenderFailed, if it has ended otherwise than as done."""
        if self.info.status in ("failed", "cancelled"):
            raise RenderFailed(self.id, self.info.status, self.info.message)


def _info(said: Mapping[str, Any]) -> RenderInfo:
    progress, error = said["progress"], said["error"]
    return RenderInfo(
        id=said["id"],
        status=said["status"],
        prompt=said["prompt"],
        frames=said["frames"],
        frames_done=progress["frames"],
        fraction=progress["fraction"],
        eta_s=progress["eta_s"],
        message=error["message"] if error else "",
        all=said,
    )
