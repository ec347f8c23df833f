"""The server's side of a worker: a process of its own that runs one render after the other.

Lines of JSON each way. A worker that sees its input end goes at once, so none outlives its server.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from .logs import complain

LINE_BYTES = 2**20
START_LOOKS = 30  # for a process to import torch and the rest on a busy machine
BEAT_S = 2.0  # between two signs of life of a worker
_KILL_S = 10.0  # for the system to end a process
LOOK_S, LOOKS = 10.0, 12  # it stands still where so many looks, each so long, find none

News = Mapping[str, Any]


class Worker:
    """Started, told what to do, listened to, ended."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._is_given_up = False
        self.model: str | None = None  # what it holds in memory: a render of the same starts sooner

    @classmethod
    async def start(cls, settings: Mapping[str, Any]) -> "Worker":
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            f"{__package__}.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # a Ctrl-C at the terminal is the server's to answer
        )
        worker = cls(process)
        try:
            worker.tell("settings", **settings)
            news = await worker.hear(START_LOOKS)
            if news is None or news["event"] != "ready":
                raise RuntimeError(f"a worker did not start: {news}")
        except BaseException:
            await worker.end()
            raise
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def tell(self, do: str, **facts: object) -> None:
        """Nothing is said to one that is gone: whoever listens to it learns that."""
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(json.dumps({"do": do, **facts}).encode() + b"\n")

    async def hear(self, looks: int = LOOKS) -> News | None:
        """Its next news; none: it is gone, or stands still."""
        assert self._process.stdout is not None
        silent = 0  # looks, and not seconds: a server that was stopped itself has taken but one
        while silent < looks:
            try:
                async with asyncio.timeout(LOOK_S):
                    line = await self._process.stdout.readline()
            except TimeoutError:
                silent += 1
                if self._is_given_up:
                    return None
                continue
            if not line:
                return None
            silent = 0
            with contextlib.suppress(ValueError):  # a library that prints
                news = json.loads(line)
                if isinstance(news, dict) and news.get("event", "alive") != "alive":
                    return news
        complain("a worker stands still", pid=self.pid, seconds=looks * LOOK_S)
        return None

    async def end(self, grace_s: float = 0.0) -> int | None:
        """Its exit code; none: it is in a call that nothing interrupts, such as a driver's. Within
        `grace_s` it may come to an end by itself."""
        assert self._process.stdin is not None
        if grace_s and self.alive:
            self._process.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._process.stdin.close()
        self._is_given_up = True
        try:
            async with asyncio.timeout(_KILL_S):
                return await self._process.wait()
        except TimeoutError:
            complain("a worker cannot be killed", pid=self.pid)
            return None
