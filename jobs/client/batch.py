"""A batch: many prompts to a folder of videos, whatever happens to some of them or to us."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from ...configs.files import expand
from .batch_items import Asked, read_items
from .batch_log import BatchLog
from .batch_table import shown
from .errors import RenderFailed, ServerError
from .http import is_passing

if TYPE_CHECKING:
    from .async_client import AsyncClient, RenderInfo

SHEET = "sheet.jpg"


@dataclass(kw_only=True)
class Item:
    """One video of a batch, and how it stands."""

    name: str
    prompt: str
    path: Path
    state: str = "waiting"  # then as the server calls it; here: done earlier
    render: str = ""
    fraction: float = 0.0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    items: Sequence[Item]
    sheet: Path | None  # a picture with a frame of each

    @property
    def done(self) -> list[Item]:
        return [item for item in self.items if item.state == "done"]

    @property
    def failed(self) -> list[Item]:
        return [item for item in self.items if item.state != "done"]


async def run_batch(
    client: "AsyncClient",
    items: str | Path | Sequence[str | Mapping[str, object]],
    out_dir: str | Path,
    *,
    concurrency: int = 4,
    progress: bool | Callable[[Item], object] = True,
    sheet: bool = True,
) -> BatchResult:
    """Prompts, or a CSV or JSON-lines file of them, to a folder of videos.

    What is there already is not made again, one failure does not stop the rest, and after an
    interruption the same call goes on. `concurrency`: renders in the server's queue at once.
    httpx.TransportError or ServerError: the server is not there, or lets nobody in.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency} renders nothing; set it to 1 or more")
    asked = read_items(items)
    folder = expand(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    every = [Item(name=a.name, prompt=a.prompt, path=folder / f"{a.name}.mp4") for a in asked]
    turns = asyncio.Semaphore(concurrency)
    with contextlib.closing(BatchLog(folder)) as log, shown(progress, every) as show:
        if not all(_is_there(log, *one) for one in zip(asked, every, strict=True)):
            await _reach(client)

        async def one(number: int) -> None:
            async with turns:
                await _Making(client, log, asked[number], every[number], show).run()

        async with asyncio.TaskGroup() as group:
            for number in range(len(asked)):
                group.create_task(one(number))
    made = [item.path for item in every if item.state == "done"]
    if not (sheet and made):
        return BatchResult(items=every, sheet=None)
    from .sheet import write_sheet

    await asyncio.to_thread(write_sheet, folder / SHEET, made)
    return BatchResult(items=every, sheet=folder / SHEET)


def _is_there(log: BatchLog, asked: Asked, item: Item) -> bool:
    return log.last(asked).get("state") == "done" and item.path.exists()


async def _reach(client: "AsyncClient") -> None:
    """Once, or each of them would wait in turn for a server that is not there."""
    async with contextlib.aclosing(client.renders()) as renders:
        await anext(renders, None)


class _Making:
    """Of one item: asked for, waited for, fetched; or told why not."""

    def __init__(
        self,
        client: "AsyncClient",
        log: BatchLog,
        asked: Asked,
        item: Item,
        show: Callable[[Item], object],
    ) -> None:
        self._client, self._log, self._asked = client, log, asked
        self._item, self._show = item, show

    async def run(self) -> None:
        last = self._log.last(self._asked)
        if _is_there(self._log, self._asked, self._item):
            self._tell("done", fraction=1.0, render=last["render"])
            return
        attempt = last.get("attempt", 0)
        if last.get("state") != "asked":  # else it may be running: it is asked for by the same key
            attempt += 1
            self._log.note(self._asked, "asked", attempt)
        try:
            render = await self._client.render(
                self._asked.prompt, key=self._log.key(self._asked, attempt), **self._asked.more
            )
            self._tell("queued", render=render.id)
            await render.wait(progress=self._hear)
            await render.download(self._item.path)
        except (RenderFailed, ServerError, httpx.TransportError, OSError, ValueError) as error:
            # else its render may be there, and is found again by its key
            if isinstance(error, RenderFailed | ServerError) and not is_passing(error):
                self._log.note(self._asked, "failed", attempt, error=str(error))
            self._tell("failed", message=str(error) or type(error).__name__)
        else:
            self._log.note(self._asked, "done", attempt, render=render.id)
            self._tell("done", fraction=1.0)

    def _hear(self, info: "RenderInfo") -> None:
        if not info.over:
            self._tell(info.status, fraction=info.fraction)

    def _tell(self, state: str, **facts: object) -> None:
        self._item.state = state
        for name, value in facts.items():
            setattr(self._item, name, value)
        self._show(self._item)
