"""Clients that look on at a render; and a stand-in for the server, which tells what they cost.

The clients share the cores with what is measured, as they would not on machines of their own.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import aiohttp

POLLERS, WATCHERS = 200, 20
_PIECE_S = 0.1  # between two pieces of a video that the stand-in sends


@dataclass
class Seen:
    """By all of them."""

    waits_ms: list[float] = field(default_factory=list)  # for a status
    errors: int = 0
    streamed: int = 0  # bytes


def look_on(url: str, path: str, seconds: float) -> Seen:
    """200 ask how it stands once a second, 20 watch it grow."""
    seen = Seen()
    asyncio.run(_look_on(url, path, time.monotonic() + seconds, seen))
    return seen


async def _look_on(url: str, path: str, end: float, seen: Seen) -> None:
    async def poll(number: int) -> None:
        await asyncio.sleep(number / POLLERS)
        while True:  # once at least, however late it is by then
            start = time.monotonic()
            try:
                async with http.get(path) as answer:
                    await answer.read()
                    seen.errors += answer.status != 200
            except aiohttp.ClientError:
                seen.errors += 1
            seen.waits_ms.append(1000 * (time.monotonic() - start))
            rest = max(0.0, start + 1 - time.monotonic())
            if time.monotonic() + rest >= end:
                return
            await asyncio.sleep(rest)

    async def watch() -> None:
        try:
            async with asyncio.timeout(end - time.monotonic()), http.get(f"{path}/video") as video:
                async for data in video.content.iter_any():
                    seen.streamed += len(data)
        except TimeoutError:
            pass
        except aiohttp.ClientError:
            seen.errors += 1

    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as http:
        pollers, watchers = map(poll, range(POLLERS)), (watch() for _ in range(WATCHERS))
        await asyncio.gather(*pollers, *watchers)


@contextmanager
def stand_in(status_bytes: int, video_bytes_per_s: float) -> Iterator[str]:
    """The URL of a process that sends as much as a server would, and does nothing else; of the
    video to each watcher."""
    numbers = map(str, (status_bytes, round(video_bytes_per_s * _PIECE_S)))
    command = [sys.executable, "-P", __file__, *numbers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


class _Answers(asyncio.Protocol):
    """Of one connection."""

    def __init__(self, status: bytes, watched: set[asyncio.Transport]) -> None:
        self._status, self._watched = status, watched

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if b"/video " in data:
            self._transport.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
            self._watched.add(self._transport)
        else:
            self._transport.write(self._status)

    def connection_lost(self, error: Exception | None) -> None:
        self._watched.discard(self._transport)


async def _stand_in(status_bytes: int, piece_bytes: int) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {status_bytes}\r\n\r\n"
    status, piece = head.encode() + bytes(status_bytes), bytes(piece_bytes)
    watched: set[asyncio.Transport] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Answers(status, watched), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    while True:
        await asyncio.sleep(_PIECE_S)
        for transport in watched:
            transport.write(piece)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("status_bytes", type=int)
    parser.add_argument("piece_bytes", type=int)
    asked = parser.parse_args()
    asyncio.run(_stand_in(asked.status_bytes, asked.piece_bytes))
