"""A render's video on this side: whole under its name, or not there."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from ..home.durable import written_aside
from ..png import PngEncoder
from .http import Http, is_passing

if TYPE_CHECKING:
    from .async_client import AsyncRender


async def save_video(http: Http, path: str, target: Path) -> None:
    """A download that breaks goes on where it broke."""
    patience, tag = http.patience(), ""
    with written_aside(target) as part, part.open("wb") as file:
        while True:
            headers = {"range": f"bytes={file.tell()}-", "if-range": tag} if tag else {}
            try:
                async with http.stream(path, headers=headers) as answer:
                    if answer.status_code != 206:  # from the start, or another file by now
                        file.seek(0)
                        file.truncate()
                    tag = answer.headers.get("etag", "")
                    async for data in answer.aiter_raw():
                        patience.good()
                        await asyncio.to_thread(file.write, data)
                return
            except Exception as error:
                if not is_passing(error):
                    raise
                await patience.wait(error)


async def save_pictures(render: "AsyncRender", target: Path) -> None:
    """PNG, a frame each, and what they were made from."""
    said = render.info.all
    names = ("prompt", "preset", "seed", "id")
    with written_aside(target) as part:
        encoder = PngEncoder(
            part,
            height=said["height"],
            width=said["width"],
            metadata={name: str(said[name]) for name in names},
        )
        await render.write(encoder)
