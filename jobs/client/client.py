"""`longreel.Client`: `AsyncClient` and its renders for programs without an event loop."""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, TypeVar

from .async_client import AsyncClient, AsyncRender, RenderInfo, Writer
from .batch import run_batch
from .loop import Loop
from .progress import shown
from .wire import Event, Frames

P = ParamSpec("P")
T = TypeVar("T")


def _made(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, AsyncRender]],
) -> "Callable[Concatenate[Client, P], Render]":
    """The same method, and the render that it gives, for callers who wait."""

    @wraps(method)
    def call(client: "Client", /, *args: P.args, **more: P.kwargs) -> "Render":
        return Render(client._loop, client._loop.call(method(client._client, *args, **more)))

    shown = signature(method).replace(return_annotation="Render")
    setattr(call, "__signature__", shown)  # noqa: B010 -- as help() shows it
    return call


def _waited(
    method: Callable[Concatenate[AsyncRender, P], Coroutine[Any, Any, T]],
) -> "Callable[Concatenate[Render, P], T]":
    @wraps(method)
    def call(render: "Render", /, *args: P.args, **more: P.kwargs) -> T:
        return render._loop.call(method(render._render, *args, **more))

    return call


def _batched(
    run: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> "Callable[Concatenate[Client, P], T]":
    @wraps(run)
    def call(client: "Client", /, *args: P.args, **more: P.kwargs) -> T:
        return client._loop.call(run(client._client, *args, **more))

    return call


class Client:
    """Of one server, from any thread. Leaving its `with` block closes it; renders go on."""

    def __init__(
        self, url: str | None = None, token: str | None = None, *, patience_s: float = 120.0
    ) -> None:
        """As `AsyncClient` takes them."""
        self._client = AsyncClient(url, token, patience_s=patience_s)
        self._loop = Loop()

    render = _made(AsyncClient.render)
    get = _made(AsyncClient.get)
    batch = _batched(run_batch)

    def renders(self, status: Sequence[str] = ()) -> "Iterator[Render]":
        """Yours, the newest first."""
        for render in self._loop.iterate(self._client.renders(status)):
            yield Render(self._loop, render)

    def close(self) -> None:
        """What other threads wait for ends too, and so does every iterator."""
        self._loop.close(self._client.close)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


class Render:
    """One render of a server; its methods are `AsyncRender`'s."""

    def __init__(self, loop: Loop, render: AsyncRender) -> None:
        self._loop, self._render = loop, render

    @property
    def id(self) -> str:
        return self._render.id

    @property
    def info(self) -> RenderInfo:
        """As it was when it was asked for last."""
        return self._render.info

    refresh = _waited(AsyncRender.refresh)
    download = _waited(AsyncRender.download)
    thumbnail = _waited(AsyncRender.thumbnail)
    set_prompt = _waited(AsyncRender.set_prompt)
    extend = _waited(AsyncRender.extend)
    redo = _waited(AsyncRender.redo)
    drop = _waited(AsyncRender.drop)
    cancel = _waited(AsyncRender.cancel)
    pause = _waited(AsyncRender.pause)
    resume = _waited(AsyncRender.resume)
    delete = _waited(AsyncRender.delete)

    def wait(
        self,
        *,
        progress: bool | Callable[[RenderInfo], object] = False,
        timeout_s: float | None = None,
    ) -> RenderInfo:
        """Until it is done. RenderFailed: it ended otherwise. `progress`: a bar, or a call, which
        may use this client."""
        with shown(progress) as show:
            for info in self._loop.iterate(self._render.accounts(timeout_s)):
                show(info)
        self._render.check()
        return self.info

    def events(self, after: int = 0) -> Iterator[Event]:
        return self._loop.iterate(self._render.events(after))

    def frames(self, start: int = 0) -> Iterator[Frames]:
        """Frames from number `start` on, some at a time, each once, as soon as they are final."""
        return self._loop.iterate(self._render.frames(start))

    def write(self, writer: Writer, start: int = 0) -> None:
        """Every frame, to any object with `write(frames)`."""
        for frames in self.frames(start):
            writer.write(frames)
