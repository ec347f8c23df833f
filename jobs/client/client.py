"""`longreel.Client`: `AsyncClient` and its renders for programs without an event loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from .async_client import AsyncClient, AsyncRender, RenderInfo, Setting, Writer
from .batch import BatchResult, Item, run_batch
from .loop import Loop
from .wire import Event, Frames


class Client:
    """Of one server, from any thread. Leaving its `with` block closes it; renders go on."""

    def __init__(
        self, url: str | None = None, token: str | None = None, *, patience_s: float = 120.0
    ) -> None:
        """As `AsyncClient` takes them."""
        self._loop = Loop()

        async def make() -> AsyncClient:
            return AsyncClient(url, token, patience_s=patience_s)

        self._client = self._loop.call(make())

    def render(
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
    ) -> "Render":
        """A render in the server's queue: one, however often the request has to be sent."""
        made = self._client.render(
            prompt,
            preset=preset,
            frames=frames,
            seed=seed,
            image=image,
            prompt_at=prompt_at,
            settings=settings,
            priority=priority,
            deadline_s=deadline_s,
            pace=pace,
            key=key,
        )
        return Render(self._loop, self._loop.call(made))

    def get(self, render: str) -> "Render":
        """One that is there already, by its id."""
        return Render(self._loop, self._loop.call(self._client.get(render)))

    def renders(self, status: Sequence[str] = ()) -> "Iterator[Render]":
        """Yours, the newest first."""
        for render in self._loop.iterate(self._client.renders(status)):
            yield Render(self._loop, render)

    def batch(
        self,
        items: str | Path | Sequence[str | Mapping[str, object]],
        out_dir: str | Path,
        *,
        concurrency: int = 4,
        progress: bool | Callable[[Item], object] = True,
        sheet: bool = True,
    ) -> BatchResult:
        """Prompts, or a CSV or JSON-lines file of them, to a folder of videos.

        What is there already is not made again, one failure does not stop the rest, and after an
        interruption the same call goes on.
        """
        return self._loop.call(
            run_batch(
                self._client,
                items,
                out_dir,
                concurrency=concurrency,
                progress=progress,
                sheet=sheet,
            )
        )

    def close(self) -> None:
        self._loop.call(self._client.close())
        self._loop.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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

    def refresh(self) -> RenderInfo:
        return self._loop.call(self._render.refresh())

    def wait(
        self,
        *,
        progress: bool | Callable[[RenderInfo], object] = False,
        timeout_s: float | None = None,
    ) -> RenderInfo:
        """Until it is done. RenderFailed: it ended otherwise."""
        return self._loop.call(self._render.wait(progress=progress, timeout_s=timeout_s))

    def events(self, after: int = 0) -> Iterator[Event]:
        return self._loop.iterate(self._render.events(after))

    def frames(self, start: int = 0) -> Iterator[Frames]:
        """Frames from number `start` on, some at a time, each once, as soon as they are final."""
        return self._loop.iterate(self._render.frames(start))

    def write(self, writer: Writer, start: int = 0) -> None:
        """Every frame, to any object with `write(frames)`."""
        for frames in self.frames(start):
            writer.write(frames)

    def download(self, path: str | Path) -> Path:
        """Waits for it, then its MP4 at `path`; or a folder of pictures, if that is no .mp4."""
        return self._loop.call(self._render.download(path))

    def thumbnail(self, frame: int = 0) -> bytes:
        return self._loop.call(self._render.thumbnail(frame))

    def set_prompt(self, prompt: str) -> None:
        """Of the blocks that are yet to begin, while it runs."""
        self._loop.call(self._render.set_prompt(prompt))

    def extend(
        self,
        frames: int | None = None,
        *,
        seconds: float | None = None,
        prompt: str | None = None,
        prompt_at: Sequence[tuple[float, str]] = (),
    ) -> None:
        """More of it once it is done, by frames or by seconds; `wait` then waits for that."""
        self._loop.call(
            self._render.extend(frames, seconds=seconds, prompt=prompt, prompt_at=prompt_at)
        )

    def redo(self, first: int, stop: int, *, prompt: str | None = None) -> None:
        """Frames from `first` to before `stop` anew, once it is done."""
        self._loop.call(self._render.redo(first, stop, prompt=prompt))

    def cancel(self) -> None:
        self._loop.call(self._render.cancel())

    def pause(self) -> None:
        self._loop.call(self._render.pause())

    def resume(self) -> None:
        self._loop.call(self._render.resume())

    def delete(self) -> None:
        self._loop.call(self._render.delete())
